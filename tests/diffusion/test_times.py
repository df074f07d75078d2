import math

import pytest
import torch

from pocketdiffusion.diffusion import times

SAMPLES = 200_000


def histogram_gap(samples, density, bins=20):
    """The largest gap between the frequency of a bin and its probability, in standard errors."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    counts = torch.histogram(samples.double(), edges).hist
    fine = torch.linspace(0, 1, 200 * bins + 1, dtype=torch.float64)
    middles = (fine[1:] + fine[:-1]) / 2
    p = density(middles).view(bins, 200).mean(1) / bins
    return ((counts / len(samples) - p) / torch.sqrt(p * (1 - p) / len(samples))).abs().max()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 1.0), (-0.5, 0.7)])
def test_logit_normal_density(generator, mean, std):
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    rho = times.logit_normal_density(t, mean, std)
    assert torch.trapezoid(rho, t).item() == pytest.approx(1, abs=1e-6)
    samples = times.logit_normal((SAMPLES,), generator, mean, std)
    assert histogram_gap(samples, lambda t: times.logit_normal_density(t, mean, std)) < 4


def test_logit_normal_has_any_shape_and_follows_its_generator():
    first, again = (times.logit_normal((2, 3), torch.Generator().manual_seed(7)) for _ in range(2))
    assert first.shape == (2, 3) and torch.equal(first, again)
    assert ((first > 0) & (first < 1)).all()


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.8, 1.29])
def test_mode_follows_the_density_of_its_map(generator, scale):
    samples = times.mode((SAMPLES,), generator, scale)
    # t(u) decreases, so P(t <= t(u)) = 1 - u: a check on the whole law through its quantiles.
    u = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    quantiles = 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    below = (samples.double() <= quantiles[:, None]).double().mean(1)
    assert ((below - (1 - u)).abs() < 4.5 * torch.sqrt(u * (1 - u) / SAMPLES)).all()


def test_mode_without_scale_is_uniform(generator):
    assert histogram_gap(times.mode((SAMPLES,), generator, 0.0), torch.ones_like) < 4


def test_cosmap_is_a_density_of_the_cosine_schedule(generator):
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    assert torch.trapezoid(times.cosmap_weight(t), t).item() == pytest.approx(1, abs=1e-7)
    # Uniform angles of a = cos, b = sin, carried to our path by t = b / (a + b).
    angle = math.pi / 2 * torch.rand(SAMPLES, generator=generator, dtype=torch.float64)
    samples = angle.sin() / (angle.sin() + angle.cos())
    assert histogram_gap(samples, times.cosmap_weight) < 4


def test_shift_values():
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(times.shifted(t, 3.0), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    assert torch.equal(times.shifted(t, 1.0), t)


def test_shift_of_three_on_28_steps():
    start = torch.tensor([1, 0.9878, 0.9750, 0.9615, 0.9474], dtype=torch.float64)
    torch.testing.assert_close(times.grid(28, 3.0)[:5], start, atol=5e-5, rtol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
def test_both_forms_of_the_shift_agree(shift):
    t, mu = torch.linspace(0.01, 1, 100, dtype=torch.float64), math.log(shift)
    literal = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    torch.testing.assert_close(times.shifted_exponential(t, mu), literal)
    torch.testing.assert_close(times.shifted(t, shift), literal)


def test_shifts_compose_by_product():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(times.shifted(times.shifted(t, 2.0), 1.5), times.shifted(t, 3.0))


def test_dynamic_mu():
    assert times.dynamic_mu(256) == 0.5
    assert times.dynamic_mu(4096) == pytest.approx(1.15)
    assert times.dynamic_mu(2176) == pytest.approx(0.825)


@pytest.mark.parametrize("steps", [1, 2, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_grid_falls_from_one_to_zero(steps, shift):
    levels = times.grid(steps, shift)
    assert levels.shape == (steps + 1,) and levels[0] == 1 and levels[-1] == 0
    assert (levels.diff() < 0).all()


def test_few_step_appends_zero():
    assert times.few_step((1, 0.75, 0.5, 0.25)).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert times.few_step([0.6]).tolist() == [0.6, 0]


@pytest.mark.parametrize(
    "levels", [[], [1.0, 0.5, 0.0], [1.0, 1.0], [0.5, 1.0], [1.5], [-0.1], [math.nan], [1.0, math.nan]]
)
def test_few_step_refuses(levels):
    with pytest.raises(ValueError, match="times must"):
        times.few_step(levels)


@pytest.mark.parametrize("steps", [0, -3])
def test_grid_refuses_steps(steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1, not {steps}"):
        times.grid(steps)


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan, math.inf])
def test_grid_refuses_shift(shift):
    with pytest.raises(ValueError, match="shift must be positive"):
        times.grid(4, shift)
