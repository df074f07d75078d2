"""Conversion of foreign predictions: closed forms on a Gaussian, DDIM's own x0, the ends of the schedule."""

import json

import pytest
import torch

from pocketdiffusion.diffusion import flow
from pocketdiffusion.teachers.convert import Discrete, Flow, process

STD = 0.7  # of the Gaussian data


def alphas(zero=False):
    """SD1.5's; with ``zero``, stretched so that the last step is pure noise."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    roots = (1 - betas).cumprod(0).sqrt()
    if zero:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return roots.square()


def discrete(prediction, zero=False):
    return Discrete(alphas(zero), prediction)


def optimum(path):
    """The network that minimises its loss on N(0, STD^2): linear in y. The level is found from the step k."""

    def network(y, k):
        # between two steps a and b are those of the level that is interpolated in t
        low = k.floor().long().clamp(max=len(path.alphas) - 2)
        t = torch.lerp(path.levels[low], path.levels[low + 1], k - low).view(-1, 1)
        size = ((1 - t) ** 2 + t**2).sqrt()
        a, b = (1 - t) / size, t / size
        variance = a**2 * STD**2 + b**2
        x0, e = a * STD**2 / variance * y, b / variance * y
        return {"epsilon": e, "v_prediction": a * e - b * x0, "sample": x0}[path.prediction]

    return network


def truth(x, t):
    """E[e - x0 | x_t] for x0 ~ N(0, STD^2)."""
    t = t.view(-1, 1)
    return (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2) * x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_velocity_of_a_gaussian(prediction):
    path = discrete(prediction)
    t = torch.cat([torch.linspace(0.03, 0.93, 61, dtype=torch.float64), path.levels[[0, 1, 500, 999]]])
    x = torch.randn(len(t), 5, dtype=torch.float64)
    torch.testing.assert_close(path.velocity(optimum(path), x, t), truth(x, t), atol=1e-9, rtol=1e-9)


def test_the_steps_have_the_levels_signal_to_noise_ratio():
    path = discrete("epsilon")
    torch.testing.assert_close(flow.snr(path.levels), path.alphas / (1 - path.alphas))
    k, level = path.at(path.levels)
    assert torch.equal(k, torch.arange(1000, dtype=torch.float64))
    assert torch.equal(level, path.levels)
    k, _ = path.at(path.levels.float())
    assert (k - torch.arange(1000)).abs().max() < 0.02


def test_what_the_network_gets_has_unit_variance():
    path, seen = discrete("epsilon"), {}

    def network(y, k):
        seen.update(y=y, k=k)
        return torch.zeros_like(y)

    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    x0, e = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    path.velocity(network, flow.interpolate(x0, e, t), t)
    size = ((1 - t) ** 2 + t**2).sqrt().view(-1, 1)
    torch.testing.assert_close(seen["y"], ((1 - t).view(-1, 1) * x0 + t.view(-1, 1) * e) / size)
    assert (
        path.levels[seen["k"].floor().long()].le(t).all() and path.levels[seen["k"].ceil().long()].ge(t).all()
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_beyond_the_schedule_the_nearest_step_is_asked(prediction):
    path, steps = discrete(prediction), []
    network = optimum(path)

    def heard(y, k):
        steps.append(k)
        return network(y, k)

    t = torch.tensor([0.0, 0.01, 0.97, 1.0], dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    v = path.velocity(heard, x, t)
    assert steps[0].tolist() == [0, 0, 999, 999]
    # SD1.5 leaves 7 % of the signal at its last step and 3 % of noise at its first
    torch.testing.assert_close(v, truth(x, t), atol=0.2, rtol=0)
    (gradient,) = torch.autograd.grad(v.sum(), x)
    assert gradient.isfinite().all()


def test_a_last_step_of_pure_noise():
    path = discrete("v_prediction", zero=True)
    assert path.levels[-1] == 1
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([1.0, 0.99999, 0.5], dtype=torch.float64)
    v = path.velocity(optimum(path), x, t)
    torch.testing.assert_close(v, truth(x, t), atol=1e-9, rtol=1e-9)
    assert torch.autograd.grad(v.sum(), x)[0].isfinite().all()
    with pytest.raises(ValueError, match="'epsilon' with a last step of pure noise"):
        discrete("epsilon", zero=True)


def test_half_precision_is_converted_in_float32():
    path = discrete("epsilon")
    x, t = torch.randn(4, 6), torch.tensor([0.1, 0.4, 0.7, 0.9])
    network = optimum(path)

    def rounded(y, k):
        assert y.dtype == torch.float32
        return network(y.double(), k.double()).to(torch.bfloat16)

    v = path.velocity(rounded, x.to(torch.bfloat16), t)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, truth(x, t).float(), atol=0.15, rtol=0.02)


def test_flow_matching_is_ours():
    seen = []
    path = Flow()
    t = torch.tensor([[0.25, 0.5]])
    x = torch.randn(1, 3)
    assert torch.equal(path.velocity(lambda y, step: seen.append(step) or 2 * y, x, t), 2 * x)
    assert seen[0].tolist() == [[250.0, 500.0]]


def test_an_unknown_prediction_is_refused():
    with pytest.raises(
        ValueError, match="prediction_type 'score': expected one of epsilon, v_prediction, sample"
    ):
        discrete("score")


# what the files of diffusers' schedulers say


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
def test_schedules_of_betas(diffusers, kind):
    config = json.loads(getattr(diffusers, kind)(**SD, prediction_type="v_prediction").to_json_string())
    path = process(config, "a.json")
    assert path.prediction == "v_prediction" and path.config["_class_name"] == kind
    torch.testing.assert_close(path.alphas.double(), alphas(), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, shift",
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, 3.0),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, None),
        (
            {
                "_class_name": "UniPCMultistepScheduler",
                "prediction_type": "flow_prediction",
                "use_flow_sigmas": True,
                "flow_shift": 5.0,
            },
            5.0,
        ),
    ],
)
def test_schedules_of_flow_matching(diffusers, config, shift):
    path = process(config, "a.json")
    assert isinstance(path, Flow) and (path.shift, path.steps) == (shift, 1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, message",
    [
        ({"_class_name": "EDMEulerScheduler"}, "a.json: EDMEulerScheduler is not read"),
        (
            {"_class_name": "UNet2DConditionModel"},
            "a.json: _class_name 'UNet2DConditionModel' is no scheduler",
        ),
        ({}, "a.json: _class_name None is no scheduler"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "score"}, "a.json: prediction_type 'score'"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "mine"}, "a.json: .*mine"),
    ],
)
def test_other_schedules_are_refused(diffusers, config, message):
    with pytest.raises(ValueError, match=message):
        process(config, "a.json")


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_x0_is_that_of_ddim(diffusers, prediction):
    scheduler = diffusers.DDIMScheduler(
        **SD, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(20)
    path = process(dict(scheduler.config) | {"_class_name": "DDIMScheduler"}, "a.json")
    answer = torch.randn(20, 6, dtype=torch.float64)
    y = torch.randn(20, 6, dtype=torch.float64)
    for i, k in enumerate(scheduler.timesteps):
        wanted = scheduler.step(answer[i : i + 1], k, y[i : i + 1]).pred_original_sample
        a = path.alphas[k].double().sqrt()
        t = path.levels[k].view(1)
        x = y[i : i + 1] / (a + (1 - a**2).sqrt())

        def network(given, step, i=i, k=k):
            torch.testing.assert_close(step, k.double().view(1))
            torch.testing.assert_close(given, y[i : i + 1])
            return answer[i : i + 1]

        found = flow.to_x0(x, path.velocity(network, x, t), t)
        # DDIM keeps its products in float32
        torch.testing.assert_close(found, wanted.double(), atol=1e-6, rtol=1e-6)
