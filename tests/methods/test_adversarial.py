"""Adversarial step distillation in one dimension, where every loss and gradient is known."""

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.times import shifted
from pocketdiffusion.methods.adversarial import OBJECTIVES, Adversarial, Guide, penalty
from pocketdiffusion.methods.scaling import balanced, peaked
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.types import Batch, Cond

MEAN = 3.0
LEVELS = (1.0, 0.75, 0.5)


def embed(batch):
    n = len(batch.x)
    return batch.x, Cond(torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))


def data(seed=0, step=0, n=512):
    g = torch.Generator().manual_seed(seed * 10_000 + step)
    return Batch(MEAN + torch.randn(n, 1, generator=g), [""] * n)


class Move(nn.Module):
    """v = -m, so that from pure noise y0 = e + m: a Gaussian at m."""

    def __init__(self, m=0.0):
        super().__init__()
        self.m, self.seen = nn.Parameter(torch.tensor(m)), []

    def forward(self, x, t, cond):
        self.seen.append((x, t))
        return -self.m * torch.ones_like(x)


class Backbone(nn.Module):
    """Frozen features, which are the input itself, doubled; keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.gain, self.seen = nn.Parameter(torch.tensor(2.0), requires_grad=False), []

    def forward(self, x, t, cond):
        self.seen.append((x.detach(), t))
        return None, {"x": self.gain * x}


class Linear(nn.Module):
    """The simplest heads: logit = w f + b."""

    def __init__(self, w=0.0, b=0.0):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))

    def forward(self, features, x, pooled):
        return self.w * features["x"] + self.b


def make(generator=None, heads=None, levels=(1.0,), objective="hinge", backbone=None, **options):
    generator, backbone = generator or Move(), backbone or Backbone()
    parameters = list(generator.parameters())
    heads = heads or Linear()
    return Adversarial(generator, embed, parameters, backbone, embed, heads, levels, objective, **options)


def one(method, player, batch=None):
    torch.manual_seed(0)
    return next(method.losses(player, batch or data()))


def test_objectives_by_hand():
    """softplus at 0, 0.5, 1.5 and 2 is 0.693147, 0.974077, 1.701413 and 2.126928; softplus(-x) = it - x."""
    real, fake = torch.tensor([[0.5], [0.0]]), torch.tensor([[2.0], [-1.5]])
    expected = {
        "hinge": ((0.5 + 1.0 + 3.0 + 0.0) / 2, -0.25),
        "non_saturating": ((0.474077 + 0.693147 + 2.126928 + 0.201413) / 2, (0.126928 + 1.701413) / 2),
        "relativistic": ((1.701413 + 0.201413) / 2, (0.201413 + 1.701413) / 2),
    }
    for name, losses in expected.items():
        found = [f(real, fake).item() for f in OBJECTIVES[name][:2]]
        assert found == pytest.approx(losses, rel=1e-5), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_discriminator_tells_two_gaussians_apart(objective):
    method = make(Move(-MEAN), objective=objective)
    optimiser = torch.optim.Adam(method.players["discriminator"], 0.05)
    for _ in range(60):
        optimiser.zero_grad()
        parts = next(method.losses("discriminator", data()))
        parts["loss"].backward()
        optimiser.step()
    # t' is logit-normal: near 1 nobody can tell them apart
    assert parts["accuracy_real"] > 0.85 and parts["accuracy_fake"] > 0.85
    assert method.heads.w > 0 and method.generator.m.grad is None


def test_the_generators_gradient_under_a_linear_discriminator():
    """-mean D(fake) = -w 2 (1 - t') (e + m) + ...: its gradient in m is -2 w mean(1 - t')."""
    method = make(heads=Linear(0.7, 0.1))
    one(method, "generator")["loss"].backward()
    ((_, s),) = method.features.seen
    expected = -2 * 0.7 * (1 - s).mean()
    assert method.generator.m.grad.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_together_they_move_the_mean_to_the_data(objective):
    generator, heads, backbone = Move(), Linear(), Backbone()
    method = make(generator, heads, objective=objective, backbone=backbone, r1=0.1)
    adam = {
        "generator": torch.optim.Adam(generator.parameters(), 0.05, betas=(0.0, 0.99)),
        "discriminator": torch.optim.Adam(heads.parameters(), 0.05, betas=(0.0, 0.99)),
    }
    nets = {"generator": generator, "heads": heads, "backbone": backbone}
    # fit checks that the backbone, which is no player's, stays bit-equal
    fit(method, lambda seed, step: data(seed, step, 128), adam, nets, Run(150))
    assert abs(generator.m.item() - MEAN) < 0.25 * MEAN


def test_levels_are_the_grid_and_the_next_below():
    generator, backbone = Move(), Backbone()
    one(make(generator, levels=LEVELS, backbone=backbone), "generator", data(n=3000))
    (_, t), (_, s) = generator.seen[0], backbone.seen[0]
    for level, below in ((1.0, 0.75), (0.75, 0.5)):
        chosen = t == level
        assert 900 < chosen.sum() < 1100 and (s[chosen] == below).all()
    last = torch.logit(s[t == 0.5])
    assert abs(last.mean()) < 0.1 and abs(last.std() - 1) < 0.1


def test_real_and_fake_have_noise_of_their_own():
    """A generator that returns x0 exactly: what is left between the two is the noise of each."""

    class Perfect(nn.Module):
        def forward(self, x, t, cond):
            return (x - 2.0) / t.view(-1, 1)

    backbone = Backbone()
    perfect = Perfect()
    method = Adversarial(perfect, embed, [], backbone, embed, Linear(), LEVELS)
    one(method, "discriminator", Batch(torch.full((4000, 1), 2.0), [""] * 4000))
    (real, s), (fake, again) = backbone.seen
    assert torch.equal(s, again)
    e1, e2 = ((x[:, 0] - (1 - s) * 2.0) / s for x in (real, fake))
    for e in (e1, e2):
        assert abs(e.mean()) < 0.06 and abs(e.std() - 1) < 0.05
    assert abs((e1 * e2).mean()) < 0.06


def test_each_turn_reaches_its_own_player_alone():
    for player in ("discriminator", "generator"):
        method = make(heads=Linear(0.5, 0.0), objective="relativistic", levels=LEVELS, r1=1.0)
        owned = {p for p in method.players[player]}
        every = {p for ps in method.players.values() for p in ps}
        for p in every:
            p.requires_grad_(p in owned)
        one(method, player)["loss"].backward()
        assert {p for p in every if p.grad is not None and p.grad.abs() > 0} <= owned
        assert any(p.grad.abs() > 0 for p in owned)
        assert method.features.gain.grad is None
    assert method.turn(5) == ("discriminator", "generator") and set(method.players) == set(method.turn(5))


def test_r1_is_the_squared_gradient_of_a_linear_head():
    torch.manual_seed(0)
    w, x = torch.randn(6), torch.randn(40_000, 6)

    def judge(x):
        return (x @ w)[:, None]

    found = penalty(judge, x, judge(x))
    torch.testing.assert_close(found, w.square().sum(), rtol=0.03, atol=0)
    method = make(heads=Linear(0.7, 0.0), r1=0.5)
    plain, parts = one(make(heads=Linear(0.7, 0.0)), "discriminator"), one(method, "discriminator")
    assert parts["r1"].item() == pytest.approx((2 * 0.7) ** 2, rel=0.15)
    torch.testing.assert_close(parts["loss"], plain["loss"] + 0.5 * parts["r1"])


def test_accuracies_count_signs_or_pairs():
    """A constant discriminator is right about all real or all fake ones; of pairs it tells none."""
    parts = one(make(heads=Linear(0.0, 1.0)), "discriminator")
    assert (parts["accuracy_real"], parts["accuracy_fake"]) == (1, 0)
    parts = one(make(heads=Linear(0.0, 1.0), objective="relativistic"), "discriminator")
    assert (parts["accuracy_real"], parts["accuracy_fake"]) == (0, 0)
    assert parts["real"] == parts["fake"] == 1


def test_the_guide_is_the_scaled_term_at_the_level_before_its_shift():
    generator, teacher = Move(0.3), Move(1.0)
    guide = Guide(teacher, embed, weight=2.0, shift=3.0)
    method = make(generator, levels=LEVELS, guide=guide)
    batch = data()
    parts = one(method, "generator", batch)
    (x, t), (same, level) = generator.seen[0], teacher.seen[0]
    assert torch.equal(x, same) and torch.equal(t, level)
    noise = (x - (1 - t)[:, None] * batch.x) / t[:, None]
    task = (-0.3 - (noise - batch.x))[:, 0].square()
    torch.testing.assert_close(parts["task"], task.mean(), rtol=1e-3, atol=0)
    assert parts["out"].item() == pytest.approx(0.7**2, rel=1e-4)
    wanted = 2 * balanced(task, torch.full_like(task, 0.49), peaked(shifted(t, 1 / 3.0)))
    torch.testing.assert_close(parts["kd"], wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(parts["loss"], parts["adversarial"] + parts["kd"])
    parts["loss"].backward()
    assert teacher.m.grad is None


def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown objective 'wasserstein'; known: hinge"):
        make(objective="wasserstein")
    with pytest.raises(ValueError, match="times must decrease"):
        make(levels=(0.5, 0.75))
