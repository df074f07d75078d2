"""Adversarial step distillation in one dimension, where every loss and gradient is known."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.times import shifted
from pocketdiffusion.methods.adversarial import OBJECTIVES, Adversarial, Guide, penalty
from pocketdiffusion.methods.scaling import balanced, peaked
from pocketdiffusion.nn.heads import Heads
from pocketdiffusion.nn.taps import tap
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


@pytest.mark.parametrize("weight", [0.0, 1e-3, 1.0])
def test_the_scaled_term_is_told_without_its_weight(weight):
    parts = one(make(Move(0.3), levels=LEVELS, guide=Guide(Move(1.0), embed, weight)), "generator")
    whole = one(make(Move(0.3), levels=LEVELS, guide=Guide(Move(1.0), embed)), "generator")
    assert parts["scaled"] == whole["scaled"] == whole["kd"] > 0
    torch.testing.assert_close(parts["kd"], weight * parts["scaled"])


class Scale(nn.Module):
    """A network with a layer, whose weight may be broken."""

    def __init__(self, gain):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False).requires_grad_(False)
        nn.init.constant_(self.layer.weight, gain)

    def forward(self, x, t, cond):
        return self.layer(x)


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_frozen_networks_that_are_not_finite_are_named(player):
    fine, broken = Scale(0.5), Scale(torch.nan)
    guided = cfg(broken, embed(data(n=1))[1], 2.0)

    def build(backbone, guide, generator=None, read=embed):
        generator = generator or Move(0.3)
        guide = Guide(guide, embed)
        features = tap(backbone, ["layer"])
        heads = Named()
        method = Adversarial(
            generator, embed, list(generator.parameters()), features, read, heads, LEVELS, guide=guide
        )
        return lambda: one(method, player, data(n=8))

    told = r"^layer \(Linear\) of Scale: .* not finite, in the {}$"
    with pytest.raises(ValueError, match=told.format("discriminator's features")):
        build(broken, fine)()
    if player == "generator":
        with pytest.raises(ValueError, match=told.format("teacher")):
            build(fine, guided)()
    text = nn.Sequential(nn.Linear(1, 1))
    nn.init.constant_(text[0].bias, torch.nan)

    def read(batch):
        x, cond = embed(batch)
        return x, replace(cond, tokens=text(cond.tokens))

    with pytest.raises(ValueError, match=r"^0 \(Linear\) of Sequential: .* in the discriminator's text$"):
        build(fine, fine, read=read)()
    # a generator that has left is for the loop to tell
    assert build(fine, fine, Move(torch.nan))()["loss"].isnan()


class Named(Linear):
    def forward(self, features, x, pooled):
        return self.w * features["layer"] + self.b


class Clips(nn.Module):
    """A small denoiser of clips, whose layers may be tapped."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv3d(2, 8, 3, padding=1), nn.Conv3d(8, 2, 3, padding=1)

    def forward(self, x, t, cond):
        return self.leave(self.enter(x).relu() + t.view(-1, 1, 1, 1, 1))


def test_clips_from_end_to_end():
    """x (B, C, T, H, W): every head and the whole generator learn, and fit finds the backbone as it was."""
    torch.manual_seed(0)
    generator, backbone = Clips(), Clips().requires_grad_(False)
    heads = Heads({"enter": 8, "leave": 2}, 16, text=3, clips=True)

    def read(batch):
        n = len(batch.x)
        return batch.x, Cond(torch.ones(n, 2, 3), torch.ones(n, 2, dtype=torch.bool), torch.ones(n, 3))

    guide = Guide(backbone, read)
    method = Adversarial(
        generator,
        read,
        list(generator.parameters()),
        tap(backbone, ["enter", "leave"]),
        read,
        heads,
        LEVELS,
        guide=guide,
        r1=0.1,
    )
    clips = Batch(torch.randn(2, 2, 3, 4, 4), [""] * 2)
    made = method.draft(clips)
    assert made.y0.shape == clips.x.shape
    # a logit for every place of every frame, of both features
    assert method.judge(made.y0, made.s, read(clips)[1]).shape == (2, 2 * 3 * 4 * 4)
    before = [p.detach().clone() for player in method.players.values() for p in player]
    adam = {who: torch.optim.Adam(owned, 1e-2) for who, owned in method.players.items()}
    nets = {"generator": generator, "heads": heads, "backbone": backbone}
    fit(method, lambda seed, step: clips, adam, nets, Run(3))
    after = [p for player in method.players.values() for p in player]
    assert all(not torch.equal(a, b) for a, b in zip(before, after))


def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown objective 'wasserstein'; known: hinge"):
        make(objective="wasserstein")
    with pytest.raises(ValueError, match="times must decrease"):
        make(levels=(0.5, 0.75))
