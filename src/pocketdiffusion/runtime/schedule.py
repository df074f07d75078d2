"""Levels of a schedule and its one-step samplers, in numpy; the twin of ``diffusion``.

A schedule is the JSON object that a pipeline saves: sampler, steps, shift, times, guidance, interval, size.
Levels are float64 until they meet a picture, velocities and pictures float32, as in the torch pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Velocity = Callable[[Array, np.float32], Array]
Step = Callable[[Velocity, Array, np.float32, np.float32, "Array | None"], "tuple[Array, Array]"]


def levels(schedule: Mapping[str, Any], steps: int | None = None) -> NDArray[np.float32]:
    """From 1 (noise) down to 0. ValueError for a number of steps that the schedule does not allow."""
    times = schedule.get("times")
    if times:
        if steps not in (None, len(times)):
            raise ValueError(f"steps: this few-step model takes {len(times)} steps, got {steps}")
        return np.array([*times, 0.0], np.float32)
    count = schedule["steps"] if steps is None else steps
    if count < 1:
        raise ValueError(f"steps must be at least 1, not {count}")
    t, shift = np.linspace(1, 0, count + 1), schedule["shift"]
    return (shift * t / (1 + (shift - 1) * t)).astype(np.float32)


def euler(v: Velocity, x: Array, t: np.float32, s: np.float32, noise: Array | None) -> tuple[Array, Array]:
    """x_s = x_t + (s - t) v(x_t, t), and the x0 predicted at t."""
    velocity = v(x, t)
    return x + (s - t) * velocity, x - t * velocity


def heun(v: Velocity, x: Array, t: np.float32, s: np.float32, noise: Array | None) -> tuple[Array, Array]:
    """The velocity averaged over both ends; Euler in the last step, to s = 0."""
    velocity = v(x, t)
    x0, ahead = x - t * velocity, x + (s - t) * velocity
    if s == 0:
        return ahead, x0
    mean = (velocity + v(ahead, s)) / np.float32(2)
    return x + (s - t) * mean, x0


def renoise(v: Velocity, x: Array, t: np.float32, s: np.float32, noise: Array | None) -> tuple[Array, Array]:
    """x_s = (1 - s) x0 + s e with fresh noise e, for few-step models."""
    x0 = x - t * v(x, t)
    return (x0 if noise is None else (np.float32(1) - s) * x0 + s * noise), x0


STEPS: dict[str, Step] = {"euler": euler, "heun": heun, "renoise": renoise}
