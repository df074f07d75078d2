"""Prompt tokens -> pictures, given the three components as functions of named arrays.

    call("text_encoder", {"ids", "mask"}) -> {"tokens", ...}
    call("denoiser", {"x", "t", "tokens", "mask", ...}) -> {"v"}     one of several where the schedule is lazy
    call("decoder", {"z"}) -> {"picture"}

The same schedule, guidance and noise as the torch pipeline. All prompts are encoded before the first is
denoised and all denoised before the first is decoded, so that one component at a time needs to be in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..noise import normal
from .manifest import Manifest
from .schedule import STEPS, Array, levels

Named = Mapping[str, Any]
Call = Callable[[str, Named], Named]


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each step of each picture."""

    picture: int
    step: int  # counted from 1
    steps: int
    x0: Array  # (C, h, w), predicted


class Denoiser:
    """The denoiser along one trajectory: which program each level takes, and what it keeps for the next."""

    def __init__(self, call: Call, manifest: Manifest):
        self.call, self.manifest = call, manifest
        self.names = manifest.schedule.get("lazy") or []
        self.times = levels(manifest.schedule)[:-1]
        self.kept: list[dict[str, Any]] = []  # of each call
        self.known = 0  # conditions of the last call

    def program(self, t: np.float32, conditions: int) -> str:
        """A condition that was not there before has nothing kept: everything is computed."""
        new, self.known = conditions > self.known, conditions
        if new or not self.names:
            return "denoiser"
        return self.names[int(np.abs(self.times - t).argmin())]

    def __call__(self, x: Array, t: np.float32, conds: Sequence[Named]) -> list[Array]:
        """Velocities of one latent under several conditions, in calls of the exported batch."""
        name = self.program(t, len(conds))
        shapes = self.manifest.components[name]["inputs"]
        batch = shapes["x"]["shape"][0]
        found: list[Array] = []
        for number, i in enumerate(range(0, len(conds), batch)):
            part = list(conds[i : i + batch])
            part += part[-1:] * (batch - len(part))
            inputs = {key: np.concatenate([c[key] for c in part]) for key in part[0]}
            inputs |= {"x": np.stack([x] * batch), "t": np.full(batch, t, np.float32)}
            self.kept += [{}] * (number + 1 - len(self.kept))
            inputs |= {key: value for key, value in self.kept[number].items() if key in shapes}
            given = dict(self.call(name, inputs))
            found += list(given.pop("v"))
            self.kept[number] = {**self.kept[number], **given}
        return found[: len(conds)]


def velocity(denoiser: Denoiser, cond: Named, null: Named, guidance: float) -> Any:
    """(x, t) -> v, guided inside the schedule's interval."""
    low, high = denoiser.manifest.schedule["interval"]

    def v(x: Array, t: np.float32) -> Array:
        if guidance == 1 or not low <= t <= high:
            return denoiser(x, t, [cond])[0]
        c, u = denoiser(x, t, [cond, null])
        return u + np.float32(guidance) * (c - u)

    return v


def encode(call: Call, ids: Any, mask: Any) -> dict[str, Any]:
    """One row of tokens -> what the denoiser reads."""
    inputs = {"ids": ids.astype(np.int32), "mask": mask.astype(np.float32)}
    said = dict(call("text_encoder", inputs))
    # encoders of which a denoiser reads other tokens than they do say themselves which are real
    return {"mask": said.pop("real", inputs["mask"]), **said}


def sample(
    call: Call,
    manifest: Manifest,
    prompts: Sequence[tuple[Any, Any]],
    negative: tuple[Any, Any],
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    first: int = 0,
    callback: Callable[[Progress], None] | None = None,
    done: Callable[[str], None] = lambda name: None,
) -> Array:
    """Pictures (n, 3, H, W) in [-1, 1], one per row of ``prompts``, each (ids, mask) of (1, N).

    Picture i takes its noise from (seed, first + i). ``done(name)`` tells that a component is no longer
    needed. Raises ValueError for steps that a few-step schedule does not allow.
    """
    schedule = manifest.schedule
    scale = schedule["guidance"] if guidance is None else guidance
    if not np.isfinite(scale) or scale < 0:
        raise ValueError(f"guidance must be 0 or more, got {scale}")
    if schedule.get("lazy") and steps not in (None, schedule["steps"]):
        raise ValueError(f"steps: this lazy bundle takes {schedule['steps']} steps, got {steps}")
    times, step = levels(schedule, steps), STEPS[schedule["sampler"]]
    known: dict[bytes, dict[str, Any]] = {}
    for ids, mask in [*prompts, negative]:
        key = ids.tobytes() + mask.tobytes()
        known[key] = known.get(key) or encode(call, ids, mask)
    conds = [known[ids.tobytes() + mask.tobytes()] for ids, mask in prompts]
    null = known[negative[0].tobytes() + negative[1].tobytes()]
    done("text_encoder")

    latents = []
    for i, cond in enumerate(conds):
        x = normal(seed, first + i, 0, manifest.latent)
        v = velocity(Denoiser(call, manifest), cond, null, scale)
        for index, (t, s) in enumerate(pairwise(times)):
            fresh = schedule["sampler"] == "renoise" and s > 0
            noise = normal(seed, first + i, index + 1, manifest.latent) if fresh else None
            x, x0 = step(v, x, t, s, noise)
            if callback:
                callback(Progress(i, index + 1, len(times) - 1, x0))
        latents.append(x)
    for name in dict.fromkeys(["denoiser", *(schedule.get("lazy") or [])]):
        done(name)
    pictures = [call("decoder", {"z": x[None]})["picture"][0] for x in latents]
    done("decoder")
    return np.clip(np.stack(pictures), -1, 1)
