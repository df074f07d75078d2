"""Parameters and operations of the U-Net, counted from its configs."""

from dataclasses import replace

import pytest
import torch

from pocketdiffusion.bench.cost import cost
from pocketdiffusion.models import dit
from pocketdiffusion.models.unet import PRESETS, UNet, count
from pocketdiffusion.models.unet_config import ladder
from pocketdiffusion.models.unet_count import budget, macs
from pocketdiffusion.types import Cond

SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize(
    "preset, millions",
    [
        ("snapgen", 379.2),
        ("snapgen_imagenet", 370.3),
        ("s_in", 406.3),
        ("dreamlite", 391.9),
        ("mobile_vton", 415.2),
        ("ladder_thin_sdxl", 634.1),
        ("ladder_low_attention", 623.6),
        ("ladder_separable", 475.0),
        ("ladder_expanded", 529.7),
        ("ladder_ffn3", 464.0),
        ("ladder_mqa", 390.7),
    ],
)
def test_parameters_are_those_of_the_specification(preset, millions):
    assert round(count(PRESETS[preset]) / 1e6, 1) == millions


@pytest.mark.parametrize(
    "preset, side, tokens, billions",
    [
        ("snapgen", 128, 205, 656.0),
        ("snapgen", 64, 205, 157.3),
        ("snapgen_imagenet", 32, 77, 37.5),
        ("s_in", 128, 205, 719.3),
        ("ladder_thin_sdxl", 128, 77, 1267.7),
        ("ladder_mqa", 128, 77, 627.8),
    ],
)
def test_operations_are_those_of_the_specification(preset, side, tokens, billions):
    assert round(macs(PRESETS[preset], side, tokens) / 1e9, 1) == billions


def test_the_steps_change_what_was_published():
    """SnapGen, section 3.1: relative changes, met to one point by inner widths of twice the input."""
    steps = {k.removeprefix("ladder_"): c for k, c in PRESETS.items() if k.startswith("ladder_")}

    def change(measure, new, old):
        return 100 * (measure(steps[new]) / measure(steps[old]) - 1)

    assert change(macs, "low_attention", "thin_sdxl") == pytest.approx(-16.9, abs=0.1)
    assert change(count, "separable", "low_attention") == pytest.approx(-24, abs=1)
    assert change(count, "expanded", "low_attention") == pytest.approx(-15, abs=1)
    assert change(macs, "expanded", "low_attention") == pytest.approx(-27, abs=1)
    assert change(count, "ffn3", "expanded") == pytest.approx(-12, abs=1)
    assert change(macs, "ffn3", "expanded") == pytest.approx(-12, abs=1)
    assert change(count, "mqa", "ffn3") == pytest.approx(-16, abs=1)
    assert change(macs, "mqa", "ffn3") == pytest.approx(-6, abs=1)
    assert abs(count(steps["qk_rope"]) / count(PRESETS["snapgen_imagenet"]) - 1) > 0.05


def test_the_budget_of_snapgen():
    """Millions by part, as the specification lists them."""
    millions = {k: part.parameters / 1e6 for k, part in budget(PRESETS["snapgen"]).items()}
    wanted = {"time": 1.31, "pooled": 3.15, "residual convolutions": 34.79, "time projections": 20.73}
    wanted |= {"transformers in and out": 12.95, "cross-attention": 56.02, "self-attention": 41.36}
    wanted |= {"feed-forward": 200.20, "shortcuts": 7.17, "down": 0.34, "up": 1.08}
    # group norms in front of transformers stand beside their linears here
    assert {k: millions[k] for k in wanted} == pytest.approx(wanted, abs=0.02)


VARIANTS = {
    "smoke": SMOKE,
    "dense": replace(ladder(SMOKE)["thin_sdxl"], context=16, last_up=False, activation="hardswish"),
    "max": replace(SMOKE, mid_rule="max", heads=3, mlp=17, kv_heads=0),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_formula_is_the_network(config):
    with torch.device("meta"):
        model = UNet(config)
        x, t, cond = model.example(1, "meta")
    found = cost(model, (x, t, cond))
    assert found.parameters == count(config) == count(model.config)
    assert found.macs == macs(config, SMOKE.side, 12)


@pytest.mark.slow
def test_operations_of_the_whole_network_are_counted_alike():
    config = PRESETS["snapgen_imagenet"]
    with torch.device("meta"):
        model = UNet(config)
        cond = Cond(torch.empty(1, 77, 768), torch.ones(1, 77, dtype=torch.bool), torch.empty(1, 768))
        found = cost(model, (torch.empty(1, 16, 32, 32), torch.empty(1), cond))
    assert found.macs == macs(config)
    assert round(found.macs / 1e9, 1) == 37.5


def test_scenes_is_half_of_the_teacher():
    config = PRESETS["scenes"]
    assert 1.5e6 < count(config) < 0.65 * dit.count(dit.PRESETS["scenes"])
    assert config.text == dit.PRESETS["scenes"].text and config.channels == dit.PRESETS["scenes"].channels
