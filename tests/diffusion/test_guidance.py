import pytest
import torch

from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.samplers import heun, run
from pocketdiffusion.diffusion.times import grid


@pytest.fixture
def x(generator):
    return torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)


def levels(*values):
    return torch.tensor(values, dtype=torch.float64)


class Counted:
    """A denoiser that notes the batch of every call."""

    def __init__(self, model):
        self.model, self.batches = model, []

    def __call__(self, x, t, cond):
        assert len(x) == len(t) == len(cond.tokens)
        self.batches.append(len(x))
        return self.model(x, t, cond)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
def test_two_gaussians(gaussian, x, scale):
    """v is affine in the mean, so guidance is the exact denoiser of the mean mu_u + w (mu_c - mu_u)."""
    t, null = levels(0.2, 0.6, 1.0), gaussian.cond(-1.0)
    truth = gaussian.cond(*(-1 + scale * (mean + 1) for mean in (2.0, 0.0, 0.5)))
    v = cfg(gaussian, null, scale)(x, t, gaussian.cond(2.0, 0.0, 0.5))
    torch.testing.assert_close(v, gaussian(x, t, truth))


def test_guided_samples_land_on_the_extrapolated_mean(gaussian, x):
    model = cfg(gaussian, gaussian.cond(-1.0), 3.0)
    *_, end = run(heun, model, x, grid(256), gaussian.cond(2.0, 0.0, 0.5))
    truth = gaussian.ode(x, torch.ones(3), torch.zeros(3), gaussian.cond(8.0, 2.0, 3.5))
    torch.testing.assert_close(end.x, truth, atol=1e-4, rtol=0)


def test_scale_one_is_the_model_itself(gaussian):
    assert cfg(gaussian, gaussian.cond(0.0), 1.0) is gaussian


def test_scale_zero_is_unconditional(gaussian, x):
    t, null = levels(0.2, 0.6, 1.0), gaussian.cond(-1.0)
    v = cfg(gaussian, null, 0.0)(x, t, gaussian.cond(2.0, 0.0, 0.5))
    assert torch.equal(v, gaussian(x, t, null.expand(3)))


def test_one_call_of_twice_the_batch(gaussian, x):
    model = Counted(gaussian)
    cfg(model, gaussian.cond(0.0), 2.0)(x, levels(0.2, 0.6, 1.0), gaussian.cond(2.0, 0.0, 0.5))
    assert model.batches == [6]


def test_every_row_may_have_its_own_negative(gaussian, x):
    t, cond = levels(0.2, 0.6, 1.0), gaussian.cond(2.0, 0.0, 0.5)
    v = cfg(gaussian, gaussian.cond(-1.0, 1.0, 0.0), 2.0)(x, t, cond)
    torch.testing.assert_close(v, gaussian(x, t, gaussian.cond(5.0, -1.0, 1.0)))


def test_prompts_of_different_length(gaussian, x):
    cond = gaussian.cond(2.0, 0.0, 0.5)
    t, null = levels(0.2, 0.6, 1.0), gaussian.cond(-1.0).pad(5)
    torch.testing.assert_close(
        cfg(gaussian, null, 2.0)(x, t, cond), 2 * gaussian(x, t, cond) - gaussian(x, t, null.expand(3))
    )


def test_outside_the_interval_only_the_conditional_call(gaussian, x):
    model, cond = Counted(gaussian), gaussian.cond(2.0, 0.0, 0.5)
    guided = cfg(model, gaussian.cond(-1.0), 2.0, interval=(0.3, 0.7))
    for level, batch in [(1.0, 3), (0.7, 6), (0.5, 6), (0.3, 6), (0.1, 3)]:
        t = levels(level).expand(3)
        v = guided(x, t, cond)
        assert model.batches.pop() == batch
        truth = cond if batch == 3 else gaussian.cond(5.0, 1.0, 2.0)
        torch.testing.assert_close(v, gaussian(x, t, truth))


def test_rows_inside_and_outside_the_interval(gaussian, x):
    t, cond = levels(0.2, 0.5, 1.0), gaussian.cond(2.0, 0.0, 0.5)
    v = cfg(gaussian, gaussian.cond(-1.0), 2.0, interval=(0.3, 0.7))(x, t, cond)
    torch.testing.assert_close(v, gaussian(x, t, gaussian.cond(2.0, 1.0, 0.5)))


def test_frames_inside_and_outside_the_interval(gaussian, generator):
    x = torch.randn(1, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    t, cond = levels(0.2, 0.5, 1.0)[None], gaussian.cond(2.0)
    v = cfg(gaussian, gaussian.cond(-1.0), 2.0, interval=(0.3, 0.7))(x, t, cond)
    plain, far = gaussian(x, t, cond), gaussian(x, t, gaussian.cond(5.0))
    torch.testing.assert_close(v, torch.stack([plain[:, :, 0], far[:, :, 1], plain[:, :, 2]], dim=2))


@pytest.mark.parametrize("interval", [(0.7, 0.3), (-0.1, 1.0), (0.0, 1.1)])
def test_refuses_an_impossible_interval(gaussian, interval):
    with pytest.raises(ValueError, match="guidance interval"):
        cfg(gaussian, gaussian.cond(0.0), 2.0, interval)
