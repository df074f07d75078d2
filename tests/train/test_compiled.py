"""A compiled model trains and resumes; how closely is reported, not promised."""

import pytest
import torch

from pocketdiffusion.methods.flow_matching import FlowMatching
from pocketdiffusion.models import dit
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.train.optimisers import adamw
from pocketdiffusion.types import Batch

pytestmark = pytest.mark.slow


def data(seed, step):
    g = torch.Generator().manual_seed(1000 * seed + step)
    return Batch(torch.randn(4, 4, 8, 8, generator=g), [])


def run(folder, steps):
    torch.manual_seed(0)
    model = dit.DiT(dit.PRESETS["smoke"])
    cond = model.example(4)[2]
    model.compile()
    method = FlowMatching(
        model, lambda batch: (batch.x, cond), lambda: cond, list(model.parameters()), drop=0.0
    )
    optimiser = adamw(model.parameters(), 1e-3)
    fit(method, data, {"denoiser": optimiser}, {"transformer": model}, Run(steps, folder, ema=0.9))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_compiled_runs_resume_within_rounding(tmp_path, record_property):
    start = run(None, 1)
    whole = run(None, 8)
    run(tmp_path, 4)
    resumed = run(tmp_path, 8)
    gap = float((whole - resumed).abs().max())
    record_property("largest difference", gap)
    assert float((whole - start).abs().max()) > 1e-3
    assert gap < 1e-5
