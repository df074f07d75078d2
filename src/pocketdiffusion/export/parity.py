"""Parity: exported components and whole pictures against the original.

    rel     || y - r || / || r ||        of a component, over all probes
    psnr    10 log10(4 / mean (y - r)^2)  of pictures in [-1, 1]; inf when they are equal

Inputs and noise are the same. Limits are ours: fp32 must be exact up to rounding, fp16 up to half precision;
at 8 and 4 bits they only catch a broken conversion: whether such a model is still good is SceneEval's to say.
Beyond a limit the export fails: ParityError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pipeline import Pipeline
from ..runtime.manifest import Manifest
from ..runtime.sample import Call, sample
from .program import Program

# precision -> (largest rel of a component, least PSNR of a picture)
LIMITS = {
    "fp32": (1e-3, 45.0),
    "fp16": (2e-2, 25.0),
    "w8": (5e-2, 15.0),
    "int8": (0.15, 10.0),
    "w4": (0.6, 5.0),
    "8da4w": (0.6, 5.0),
}
PROMPTS = ("a red circle", "two green stars", "a blue square to the left of a yellow heart")

Named = Mapping[str, Any]
Runner = Callable[[Named], Named]
Probes = list[dict[str, Tensor]]


class ParityError(RuntimeError):
    """An exported program does not compute what the original does."""


def tokens(pipe: Pipeline, prompt: str) -> tuple[Any, Any]:
    """ids and mask (1, N), padded to the exported length."""
    ids, mask = pipe.text_encoder.tokenizer([prompt], multiple=pipe.text_encoder.config.length)
    return ids.numpy().astype(np.int32), mask.numpy().astype(np.float32)


def pictures(call: Call, manifest: Manifest, pipe: Pipeline, prompts: Sequence[str] = PROMPTS) -> Any:
    """One picture per prompt, (n, 3, H, W), by the runtime's own loop around the components ``call``."""
    return sample(call, manifest, [tokens(pipe, p) for p in prompts], tokens(pipe, ""))


def recorded(
    programs: Mapping[str, Program], manifest: Manifest, pipe: Pipeline, prompts: Sequence[str] = PROMPTS
) -> tuple[Any, dict[str, Probes]]:
    """The original's pictures, and what every component was given on the way, at every noise level."""
    found: dict[str, Probes] = {name: [] for name in programs}

    def call(name: str, inputs: Named) -> Named:
        given = {key: torch.from_numpy(np.asarray(inputs[key])) for key in programs[name].inputs}
        found[name].append(given)
        return {key: value.numpy() for key, value in programs[name](given).items()}

    return pictures(call, manifest, pipe, prompts), found


def relative(program: Program, run: Runner, inputs: Probes) -> float:
    """rel over all outputs and probes."""
    off = power = 0.0
    for given in inputs:
        ours, theirs = program(given), run({k: v.numpy() for k, v in given.items()})
        for name, r in ours.items():
            y = np.asarray(theirs[name], np.float64)
            if y.shape != tuple(r.shape):
                raise ParityError(f"{program.name}: {name} has shape {y.shape}, expected {tuple(r.shape)}")
            off += float(np.square(y - r.numpy()).sum())
            power += float(r.double().square().sum())
    return (off / max(power, 1e-30)) ** 0.5


def psnr(a: Any, b: Any) -> float:
    error = float(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())
    return float("inf") if error == 0 else float(10 * np.log10(4 / error))


def demand(name: str, precision: str, rel: float) -> None:
    limit = LIMITS[precision][0]
    if not rel <= limit:
        raise ParityError(f"{name} in {precision} is off by {rel:.3g} (relative), allowed are {limit:g}")


def demand_pictures(precision: str, found: Sequence[float]) -> None:
    limit, middle = LIMITS[precision][1], float(np.median(found))
    if not middle >= limit:
        raise ParityError(
            f"pictures in {precision} are at {middle:.1f} dB (median), at least {limit:g} is due"
        )
