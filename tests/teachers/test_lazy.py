"""Gates and plans on diffusers' networks: what rests does not run, what is computed is theirs."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parent))
from tiny_denoisers import tiny

from pocketdiffusion.compress.lazy import Calls, Lazy, Plan, alternating
from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.samplers import euler, run
from pocketdiffusion.nn.gate import Gates, branches, widths
from pocketdiffusion.teachers.diffusers import published

# the branches of their blocks, as they are called
PARTS = {
    "dit": ("model.transformer_blocks.*.attn1", "model.transformer_blocks.*.ff"),
    "pixart": ("model.transformer_blocks.*.attn1", "model.transformer_blocks.*.ff"),
    "sana": ("model.transformer_blocks.*.attn1", "model.transformer_blocks.*.ff"),
}


def walked(denoiser, model, levels, guidance):
    x, _, cond = model.example(2)
    model_or_guided = denoiser
    if guidance:
        model_or_guided = cfg(denoiser, cond.map(torch.zeros_like), guidance)
    with torch.no_grad():
        for step in run(euler, model_or_guided, x, torch.tensor(levels), cond):
            x = step.x
    return x


@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("name", PARTS)
def test_plans_on_foreign_blocks(name, guidance):
    model = tiny(name).eval().requires_grad_(False)
    names = branches(model, PARTS[name])
    levels = [0.9, 0.7, 0.5, 0.3, 0.0]
    plain = walked(model, model, levels, guidance)
    nothing = Lazy(model, Plan(tuple(levels[:-1]), dict.fromkeys(names, (False,) * 4)))
    assert torch.equal(walked(nothing.start(), model, levels, guidance), plain)
    calls = Calls()
    lazy = walked(Lazy(model, alternating(names, levels[:-1])).start(calls), model, levels, guidance)
    assert calls.laziness == 0.5 and lazy.isfinite().all() and not torch.equal(lazy, plain)


def test_gates_of_the_published_network():
    """DiT-XL/2 at 256 pixels: 28 blocks of two branches, 1,152 wide, 50 steps."""
    model = published("dit-xl-2-256", "meta")
    names = branches(model, PARTS["dit"])
    with torch.device("meta"):
        found = widths(model, model.example(1, "meta"), names)
        gates = Gates(found, 50)
    assert sum(p.numel() for p in gates.parameters()) == 3_225_600
