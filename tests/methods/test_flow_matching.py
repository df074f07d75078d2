"""Against data with a closed form: x0 ~ N(m, s^2), where the true velocity is known."""

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.flow import expand
from pocketdiffusion.methods.flow_matching import FlowMatching
from pocketdiffusion.types import Batch, Cond

MEAN, STD = 0.7, 0.5


def truth(x, t, cond):
    """v(x, t) = E[e - x0 | x_t = x] of N(MEAN, STD^2)."""
    t = expand(t, x)
    slope = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)
    return -MEAN + slope * (x - (1 - t) * MEAN)


def condition(value, batch):
    return Cond(torch.full((batch, 3, 2), float(value)), torch.ones(batch, 3, dtype=torch.bool))


def embed(batch):
    return batch.x, condition(1, len(batch.x))


def gaussian(batch):
    return Batch(MEAN + STD * torch.randn(batch, 4), [""] * batch)


def method(model, **options):
    return FlowMatching(model, embed, lambda: condition(0, 1), list(nn.Linear(1, 1).parameters()), **options)


def loss(model, batch, **options):
    torch.manual_seed(0)
    return next(method(model, **options).losses("denoiser", batch))["loss"]


def test_loss_is_least_at_the_true_velocity():
    batch, at_truth = gaussian(20_000), None
    at_truth = loss(truth, batch)
    for wrong in (
        lambda x, t, c: truth(x, t, c) + 0.05,
        lambda x, t, c: truth(x, t, c) * 1.05,
        lambda x, t, c: truth(x, t, c) + 0.1 * expand(t - t.mean(), x),
        lambda x, t, c: truth(x, 1 - t, c),
    ):
        assert loss(wrong, batch) > at_truth


def test_least_loss_is_the_conditional_variance():
    """E Var(e - x0 | x_t) = E s^2 / ((1-t)^2 s^2 + t^2): what no model can know."""
    torch.manual_seed(1)
    t = torch.sigmoid(torch.randn(200_000))
    least = (STD**2 / ((1 - t) ** 2 * STD**2 + t**2)).mean()
    torch.testing.assert_close(loss(truth, gaussian(50_000)), least, rtol=0.02, atol=0)


def test_the_gradient_vanishes_at_the_truth():
    scale, offset = torch.ones((), requires_grad=True), torch.zeros((), requires_grad=True)
    value = loss(lambda x, t, c: scale * truth(x, t, c) + offset, gaussian(50_000))
    for g in torch.autograd.grad(value, [scale, offset]):
        assert g.abs() < 0.03


class Watch:
    """A denoiser that keeps what it was called with."""

    def __call__(self, x, t, cond):
        self.x, self.t, self.cond = x, t, cond
        return torch.zeros_like(x)


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_dropped_rows_become_null_and_no_others(drop):
    model = Watch()
    loss(model, gaussian(4000), drop=drop)
    values = model.cond.tokens.flatten(1)
    assert ((values == 0).all(1) | (values == 1).all(1)).all(), "a row is mixed"
    assert abs((values[:, 0] == 0).float().mean() - drop) < 0.03


def test_null_is_not_asked_for_when_nothing_is_dropped():
    def never():
        raise AssertionError("the empty prompt was embedded for nothing")

    flow = FlowMatching(Watch(), embed, never, [], drop=0.0)
    next(flow.losses("denoiser", gaussian(4)))


def test_levels_follow_the_law_and_the_shift():
    model = Watch()
    loss(model, gaussian(20_000), mean=-0.5, spread=1.2)
    z = torch.logit(model.t)
    assert abs(z.mean() + 0.5) < 0.05 and abs(z.std() - 1.2) < 0.05
    loss(model, gaussian(20_000), shift=3.0)
    assert abs(torch.logit(model.t).mean() - torch.tensor(3.0).log()) < 0.05


def test_every_row_has_its_own_level_and_noise():
    model, batch = Watch(), Batch(torch.zeros(100, 4), [""] * 100)
    loss(model, batch)
    assert len(model.t.unique()) == 100
    noise = model.x / expand(model.t, model.x)
    assert abs(noise.std() - 1) < 0.15 and len(noise.unique()) == 400


def test_players_and_state():
    flow = method(Watch())
    assert flow.turn(7) == tuple(flow.players) == ("denoiser",)
    flow.load_state_dict(flow.state_dict())
