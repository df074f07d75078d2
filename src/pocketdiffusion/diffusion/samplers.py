"""One-step samplers, and the one loop over them.

    euler     x_s = x_t + (s - t) v(x_t, t)
    heun      x_s = x_t + (s - t) (v(x_t, t) + v(x', s)) / 2,   x' the Euler step;  Euler where s = 0
    renoise   x_s = (1 - s) x0(x_t, t) + s e',                  e' fresh, for few-step students (DMD2, LADD)

A step is pure, goes from level t down to s, both (B,) or (B, T), and returns x_s and the x0 predicted at x_t.
With s = 0 each of them returns x0 itself. Whoever needs gradients or more control loops over a step directly.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from pocketdiffusion.diffusion.flow import expand, interpolate, to_x0
from pocketdiffusion.types import Cond, Denoiser


class Sampler(Protocol):
    def __call__(
        self, model: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


def euler(
    model: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of dx/dt = v from level ``t`` down to ``s``; first order."""
    v = model(x, t, cond)
    return x + expand(s - t, x) * v, to_x0(x, v, t)


def heun(
    model: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same with the velocity averaged over both ends; second order for two calls of the model."""
    v = model(x, t, cond)
    x0 = to_x0(x, v, t)
    ahead = x + expand(s - t, x) * v
    # At s = 0 a model is hardly trained; one Euler step there leaves the order at two (EDM, algorithm 1).
    if not s.any():
        return ahead, x0
    mean = (v + model(ahead, s, cond)) / 2
    return x + expand(s - t, x) * torch.where(expand(s, x) > 0, mean, v), x0


def renoise(
    model: Denoiser, x: Tensor, t: Tensor, s: Tensor, cond: Cond, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Predict x0, then go back up to level ``s`` with fresh ``noise``; only a step to 0 can do without it."""
    x0 = to_x0(x, model(x, t, cond), t)
    if noise is None:
        assert not s.any(), "renoise needs fresh noise at every level above 0"
        return x0, x0
    return interpolate(x0, noise.to(x), s), x0


# Saved pipelines name their sampler (scheduler_config.json).
STEPS: dict[str, Sampler] = {"euler": euler, "heun": heun, "renoise": renoise}


@dataclass(frozen=True)
class Step:
    """Where a trajectory stands after its step ``index``, counted from 0."""

    index: int
    t: Tensor  # (B,) level before the step
    s: Tensor  # (B,) level of x
    x: Tensor
    x0: Tensor  # predicted from level t


def run(
    step: Sampler,
    model: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Cond,
    noise: Callable[[int], Tensor] | None = None,
) -> Generator[Step, Tensor | None, None]:
    """Walk ``x`` down the levels ``times`` (steps + 1,), yielding after every step; the last x is the result.

    ``noise(i)`` gives the fresh noise of the level ``times[i]``, i >= 1; by the same rule noise(0) is the x
    to start from. To stop early, leave the loop. To correct a trajectory, ``send`` the x to go on from in
    place of the one that was yielded.
    """
    for index, (t, s) in enumerate(pairwise(times.to(x))):
        t, s = t.expand(len(x)), s.expand(len(x))
        x, x0 = step(model, x, t, s, cond, noise(index + 1) if noise else None)
        corrected = yield Step(index, t, s, x, x0)
        x = x if corrected is None else corrected
