import pytest
import torch

from pocketdiffusion.diffusion import flow


def draw(generator, *shape):
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "shape", [(5, 3, 4, 4), (5, 3, 6, 4, 4), (5, 7, 8)], ids=["picture", "video", "tokens"]
)
def test_conversions_give_back_the_pair(generator, shape):
    x0, noise = draw(generator, *shape)
    t = torch.tensor([0.01, 0.3, 0.5, 0.9, 1.0], dtype=torch.float64)
    x, v = flow.interpolate(x0, noise, t), flow.velocity(x0, noise)
    torch.testing.assert_close(flow.to_x0(x, v, t), x0, atol=1e-12, rtol=0)
    torch.testing.assert_close(flow.to_noise(x, v, t), noise, atol=1e-12, rtol=0)
    torch.testing.assert_close(flow.to_v(x, x0, t), v, atol=1e-12, rtol=0)


def test_conversions_in_float32_are_good_to_1e_6(generator):
    x0, noise = draw(generator, 8, 3, 4, 4).float().clamp(-2, 2)
    t = torch.linspace(0, 1, 8)
    x, v = flow.interpolate(x0, noise, t), flow.velocity(x0, noise)
    torch.testing.assert_close(flow.to_x0(x, v, t), x0, atol=1e-6, rtol=0)
    torch.testing.assert_close(flow.to_noise(x, v, t), noise, atol=1e-6, rtol=0)


def test_the_path_ends_exactly_at_data_and_noise(generator):
    x0, noise = draw(generator, 2, 3)
    assert torch.equal(flow.interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(flow.interpolate(x0, noise, torch.ones(2)), noise)


def test_velocity_is_the_derivative_of_the_path(generator):
    x0, noise = draw(generator, 3, 4)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    # A straight path: any two of its points give the derivative exactly.
    rise = flow.interpolate(x0, noise, t + 0.1) - flow.interpolate(x0, noise, t)
    torch.testing.assert_close(rise / 0.1, flow.velocity(x0, noise))


def test_frames_of_a_video_carry_their_own_level(generator):
    x0, noise = draw(generator, 2, 3, 4, 5, 5)
    t = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    x = flow.interpolate(x0, noise, t)
    for frame in range(4):
        picture = flow.interpolate(x0[:, :, frame], noise[:, :, frame], t[:, frame])
        assert torch.equal(x[:, :, frame], picture)
    torch.testing.assert_close(flow.to_x0(x, flow.velocity(x0, noise), t), x0)


def test_score_of_a_gaussian(gaussian, generator):
    x, _ = draw(generator, 3, 6)
    t, cond = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), gaussian.cond(2.0, -1.0, 0.5)
    level, mean = flow.expand(t, x), cond.tokens[:, 0]
    truth = -(x - (1 - level) * mean) / gaussian.variance(level)
    torch.testing.assert_close(flow.score(x, gaussian(x, t, cond), t), truth)


def test_score_differences_in_v_and_in_x0(generator):
    x, v_a = draw(generator, 3, 4)
    v_b, _ = draw(generator, 3, 4)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    level = flow.expand(t, x)
    gap = flow.score(x, v_a, t) - flow.score(x, v_b, t)
    torch.testing.assert_close(gap, -(1 - level) * (v_a - v_b) / level)
    x0_gap = flow.to_x0(x, v_a, t) - flow.to_x0(x, v_b, t)
    torch.testing.assert_close(gap, (1 - level) * x0_gap / level**2)


def test_snr():
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(flow.snr(t), torch.tensor([torch.inf, 9.0, 1.0, 1 / 9, 0.0]))


def test_levels_follow_the_dtype_of_x():
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert flow.to_x0(x, x, torch.tensor([0.5, 1.0], dtype=torch.float64)).dtype == torch.bfloat16
