import math

import pytest
import torch

from pocketdiffusion.diffusion.flow import interpolate, to_x0
from pocketdiffusion.diffusion.samplers import STEPS, euler, heun, renoise, run
from pocketdiffusion.diffusion.times import few_step, grid


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def last(steps):
    *_, end = steps
    return end.x


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_order_of_convergence(gaussian, generator, step, order, shift):
    x, cond = draw(generator, 4, 8), gaussian.cond(2.0, -1.0, 0.0, 0.5)
    truth = gaussian.ode(x, torch.ones(4), torch.zeros(4), cond)
    counts = [16, 32, 64, 128, 256]
    errors = [
        (last(run(step, gaussian, x, grid(n, shift), cond)) - truth).square().mean().sqrt() for n in counts
    ]
    # Error = C n^-order: the slope of a straight line through the logarithms, by least squares.
    a, b = torch.tensor(counts).double().log(), torch.stack(errors).log()
    slope = ((a - a.mean()) * (b - b.mean())).sum() / (a - a.mean()).square().sum()
    assert -slope.item() == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("step", [euler, heun])
def test_samples_have_the_mean_and_spread_of_the_data(gaussian, generator, step):
    n, mean = 50_000, 2.0
    x = last(run(step, gaussian, draw(generator, 1, n), grid(200), gaussian.cond(mean)))
    # Five standard errors, and on the spread what Euler itself is off by at 200 steps.
    assert x.mean().item() == pytest.approx(mean, abs=5 * gaussian.std / math.sqrt(n))
    assert x.std().item() == pytest.approx(gaussian.std, rel=5 / math.sqrt(2 * n) + 0.005)


@pytest.mark.parametrize("start", [1.0, 0.4])
def test_a_student_that_ends_the_ode_keeps_every_marginal_under_renoise(gaussian, generator, start):
    n, mean, t = 200_000, 2.0, torch.tensor([start], dtype=torch.float64)
    data = mean + gaussian.std * draw(generator, 1, n)
    x, cond = interpolate(data, draw(generator, 1, n), t), gaussian.cond(mean)
    levels = few_step([start, 0.75 * start, 0.5 * start, 0.25 * start])
    for at in run(renoise, gaussian.student, x, levels, cond, lambda i: draw(generator, 1, n)):
        std = gaussian.variance(at.s).sqrt().item()
        assert at.x.mean().item() == pytest.approx((1 - at.s.item()) * mean, abs=5 * std / math.sqrt(n))
        assert at.x.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * n))
        assert at.x0.std().item() == pytest.approx(gaussian.std, rel=5 / math.sqrt(2 * n))


def test_a_teacher_that_gives_means_loses_spread_under_renoise(gaussian, generator):
    n, mean, t, s = 200_000, 2.0, torch.tensor([0.6]), torch.tensor([0.3])
    x = (1 - t) * mean + gaussian.variance(t).double().sqrt() * draw(generator, 1, n)
    x, x0 = renoise(gaussian, x, t, s, gaussian.cond(mean), draw(generator, 1, n))
    # Var E[x0 | x_t] = ((1 - t) std^2)^2 / V_t, and then (1 - s)^2 of it plus s^2.
    kept = ((0.4 * gaussian.std**2) ** 2 / gaussian.variance(t)).item()
    assert x0.var().item() == pytest.approx(kept, rel=5 * math.sqrt(2 / n))
    assert x.var().item() == pytest.approx(0.7**2 * kept + 0.3**2, rel=5 * math.sqrt(2 / n))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_to_zero_returns_x0_exactly(gaussian, generator, name, dtype):
    x, noise = draw(generator, 2, 3, 8).to(dtype)
    t, cond = torch.full((3,), 0.3, dtype=dtype), gaussian.cond(2.0, 0.0, -1.0)
    end, x0 = STEPS[name](gaussian, x, t, torch.zeros_like(t), cond, noise)
    assert torch.equal(end, x0) and torch.equal(x0, to_x0(x, gaussian(x, t, cond), t))


def test_heun_is_euler_for_a_constant_velocity(gaussian, generator):
    x, v = draw(generator, 2, 3, 8)
    t, s = torch.full((3,), 0.8), torch.full((3,), 0.3)
    args = (lambda x, t, cond: v, x, t, s, gaussian.cond(0.0, 0.0, 0.0))
    for a, b in zip(heun(*args), euler(*args), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", STEPS)
def test_frames_at_their_own_level_step_as_pictures_do(gaussian, generator, name):
    """A video (B, C, T, H, W) with t and s (B, T), some frames arriving at 0, is its frames one by one."""
    x, noise = draw(generator, 2, 2, 3, 4, 5, 5)
    t = torch.tensor([[0.2, 0.4, 0.6, 0.8], [0.5, 0.5, 1.0, 1.0]], dtype=torch.float64)
    s = torch.tensor([[0.0, 0.2, 0.4, 0.6], [0.0, 0.0, 0.5, 0.9]], dtype=torch.float64)
    cond = gaussian.cond(2.0, -1.0)
    video = STEPS[name](gaussian, x, t, s, cond, noise)
    for k in range(4):
        frame = STEPS[name](gaussian, x[:, :, k], t[:, k], s[:, k], cond, noise[:, :, k])
        for whole, part in zip(video, frame, strict=True):
            torch.testing.assert_close(whole[:, :, k], part)


@pytest.mark.parametrize("name", STEPS)
def test_rows_do_not_depend_on_their_batch(gaussian, generator, name):
    x, fresh = draw(generator, 3, 8), draw(generator, 5, 3, 8)
    cond = gaussian.cond(2.0, 0.0, -1.0)
    whole = last(run(STEPS[name], gaussian, x, grid(4), cond, lambda i: fresh[i]))
    for b in range(3):
        one = cond.map(lambda part, b=b: part[b : b + 1])
        row = last(run(STEPS[name], gaussian, x[b : b + 1], grid(4), one, lambda i, b=b: fresh[i, b : b + 1]))
        assert torch.equal(row[0], whole[b])


def test_run_reports_every_step_and_asks_for_the_noise_of_the_level_it_reaches(gaussian, generator):
    asked, x, levels = [], draw(generator, 2, 8).float(), few_step([1.0, 0.5])

    def noise(i):
        asked.append(i)
        return torch.zeros(2, 8)

    steps = list(run(renoise, gaussian, x, levels, gaussian.cond(1.0, 1.0), noise))
    assert [at.index for at in steps] == [0, 1] and asked == [1, 2]
    assert [at.t.tolist() for at in steps] == [[1.0, 1.0], [0.5, 0.5]]
    assert [at.s.tolist() for at in steps] == [[0.5, 0.5], [0.0, 0.0]]
    assert all(at.t.dtype == at.x.dtype == torch.float32 for at in steps)


def test_run_does_no_work_that_is_not_asked_for(gaussian, generator):
    calls = []

    def model(x, t, cond):
        calls.append(t[0].item())
        return gaussian(x, t, cond)

    steps = run(euler, model, draw(generator, 1, 8), grid(4), gaussian.cond(1.0))
    next(steps), next(steps)
    assert calls == [1.0, 0.75]


def test_run_goes_on_from_a_corrected_x(gaussian, generator):
    x, cond = draw(generator, 1, 8), gaussian.cond(1.0)
    steps = run(euler, gaussian, x, grid(4), cond)
    at = next(steps)
    after = steps.send(at.x + 1)
    assert torch.equal(after.x, euler(gaussian, at.x + 1, at.s, after.s, cond)[0])


def test_gradients_flow_through_a_run(gaussian, generator):
    x = draw(generator, 1, 8).requires_grad_()
    last(run(heun, gaussian, x, grid(64), gaussian.cond(1.0))).sum().backward()
    # The exact ODE from t = 1 to 0 scales by std.
    torch.testing.assert_close(x.grad, torch.full_like(x, gaussian.std), atol=1e-3, rtol=0)
