"""The numpy schedule and samplers are those of ``diffusion``."""

import numpy as np
import pytest
import torch

from pocketdiffusion.diffusion import samplers, times
from pocketdiffusion.runtime import schedule as ours
from pocketdiffusion.types import Cond

BASE = {"sampler": "euler", "steps": 9, "shift": 1.5, "times": None}


@pytest.mark.parametrize("steps", [None, 1, 4, 28])
@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0])
def test_levels(steps, shift):
    expected = times.grid(steps or 9, shift).float().numpy()
    np.testing.assert_array_equal(ours.levels(BASE | {"shift": shift}, steps), expected)


def test_few_step_levels_are_fixed():
    few = BASE | {"times": [1.0, 0.75, 0.5]}
    np.testing.assert_array_equal(ours.levels(few), np.float32([1, 0.75, 0.5, 0]))
    assert len(ours.levels(few, 3)) == 4
    with pytest.raises(ValueError, match="takes 3 steps, got 5"):
        ours.levels(few, 5)
    with pytest.raises(ValueError, match="at least 1"):
        ours.levels(BASE, 0)


@pytest.mark.parametrize("name", sorted(ours.STEPS))
def test_steps(name):
    assert set(ours.STEPS) == set(samplers.STEPS)
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    fresh = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    cond = Cond(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))

    def v(x, t):
        return np.sin(x) * np.float32(t) + np.float32(0.3)

    def model(x, t, cond):
        return torch.sin(x) * t.view(-1, 1, 1, 1) + 0.3

    for t, s in ((0.8, 0.5), (0.25, 0.0)):
        noise = fresh if s else None
        levels = torch.full((1,), t), torch.full((1,), s)
        expected = samplers.STEPS[name](model, x, *levels, cond, noise)
        given = (x[0].numpy(), np.float32(t), np.float32(s), None if noise is None else noise[0].numpy())
        for a, b in zip(ours.STEPS[name](v, *given), expected):
            np.testing.assert_allclose(a, b[0].numpy(), rtol=1e-5, atol=1e-6)
