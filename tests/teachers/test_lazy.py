"""Gates and plans on diffusers' networks: what rests does not run, what is computed is theirs."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parent))
from tiny_denoisers import tiny

from pocketdiffusion.compress.lazy import ByGates, Calls, Lazy, Plan, alternating, planned
from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.samplers import euler, run
from pocketdiffusion.methods.gates import LearnGates
from pocketdiffusion.models import unet_config
from pocketdiffusion.models.dit import PRESETS, DiT
from pocketdiffusion.models.unet import UNet
from pocketdiffusion.nn.gate import Gates, branches, widths
from pocketdiffusion.teachers.diffusers import published
from pocketdiffusion.teachers.first_block import FirstBlock
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.types import Batch

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


@pytest.mark.parametrize("name", PARTS)
def test_gates_are_trained_on_foreign_blocks(name):
    """Gates alone change; then they decide, and read off as a plan they rest as they said."""
    model = tiny(name).eval().requires_grad_(False)
    names, times = branches(model, PARTS[name]), [0.9, 0.7, 0.5, 0.3]
    gates = Gates(widths(model, model.example(), names), 4)
    x, _, cond = model.example(2)
    method = LearnGates(
        model, gates, lambda batch: (batch.x, cond), times, {"attn1": 1.0, "ff": 1.0}, drop=0.0
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = {"gates": torch.optim.AdamW(gates.parameters(), 3e-2, weight_decay=0.0)}
    fit(method, lambda *_: Batch(x, ["x"] * 2), optimiser, {"gates": gates}, Run(40))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not w[0::2].any() and w[1::2].any(1).all() for w in gates.w.values())
    calls, levels = Calls(decided={}), [*times, 0.0]
    made = walked(Lazy(model, ByGates(gates, times)).start(calls), model, levels, 0.0)
    assert 0 < calls.laziness <= 0.5 and made.isfinite().all()
    plan, again = planned(calls.decided, names, times), Calls()
    walked(Lazy(model, plan).start(again), model, levels, 0.0)
    assert again.laziness == pytest.approx(plan.laziness) and plan.laziness > 0


def branch_names(model):
    return branches(model, () if hasattr(model, "BRANCHES") else PARTS["pixart"])


@pytest.fixture(params=["ours", "pixart"])
def one_chain(request):
    torch.manual_seed(0)
    model = DiT(PRESETS["smoke"]) if request.param == "ours" else tiny(request.param)
    for p in model.parameters():
        p.data = 0.1 * torch.randn_like(p)
    return model.eval().requires_grad_(False)


def test_first_block_cache_of_diffusers(one_chain):
    levels, names = [0.9, 0.7, 0.5, 0.3, 0.0], branch_names(one_chain)
    plain = walked(one_chain, one_chain, levels, 2.0)
    calls = Calls()
    cached = FirstBlock(one_chain, 0.0, names)
    assert torch.equal(walked(cached.start(calls), one_chain, levels, 2.0), plain) and calls.laziness == 0
    # the first block runs at all four steps, the others at the first alone
    calls, cached = Calls(), FirstBlock(one_chain, 1e9, names)
    lazy = walked(cached.start(calls), one_chain, levels, 2.0)
    inner = [n for n in names if ".0." not in n]
    assert calls.laziness == pytest.approx(0.75 * len(inner) / len(names)) and not torch.equal(lazy, plain)
    # another trajectory keeps nothing of the last one, and the model itself is as it was
    assert torch.equal(walked(cached.start(), one_chain, levels, 2.0), lazy)
    assert torch.equal(walked(one_chain, one_chain, levels, 2.0), plain)


def test_first_block_cache_needs_a_chain():
    with pytest.raises(ValueError, match="UNet has no blocks that diffusers can cache"):
        FirstBlock(UNet(unet_config.PRESETS["smoke"]), 0.1)
