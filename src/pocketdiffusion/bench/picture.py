"""What a whole picture costs: the denoiser's calls with guidance, the text, the decoder.

    found = picture(pipe)                of the schedule that the pipeline was saved with
    calls(pipe.schedule)                 how often a picture goes through the denoiser

A step within guidance's interval counts twice, for it makes a call of twice the batch; so does the text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..diffusion.guidance import cfg
from ..diffusion.samplers import STEPS, run
from ..types import Cond
from .cost import cost, macs


@dataclass(frozen=True)
class Picture:
    calls: int  # of the denoiser, with one picture each
    parameters: int  # of the denoiser
    step: int  # multiply-accumulates of one such call
    macs: int  # of the whole picture


def calls(schedule: Any) -> int:
    """By sampling with a denoiser that does nothing but count."""
    found = 0

    def counted(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        nonlocal found
        found += len(x)
        return torch.zeros_like(x)

    x, cond = torch.zeros(1, 1, 1, 1), Cond(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    model = cfg(counted, cond, schedule.guidance, schedule.interval)
    for _ in run(STEPS[schedule.sampler], model, x, schedule.levels(), cond, lambda step: x):
        pass
    return found


@torch.no_grad()
def picture(pipe: Any, steps: int | None = None, prompt: str = "two green stars") -> Picture:
    """Of a ``pipeline.Pipeline`` at its own size; ``steps`` other than those it was saved with."""
    schedule = pipe.schedule if steps is None else replace(pipe.schedule, steps=steps, times=None)
    side = schedule.size // pipe.vae.config.factor
    x = torch.zeros(1, pipe.vae.config.channels, side, side, device=pipe.device)
    step = cost(pipe.transformer, (x, x.new_full((1,), 0.5), pipe.text_encoder.embed([prompt])))
    times, told = calls(schedule), 1 if schedule.guidance == 1 else 2
    rest = told * macs(pipe.text_encoder.embed, ([prompt],)) + macs(pipe.decoder.decode, (x,))
    return Picture(times, step.parameters, step.macs, times * step.macs + rest)
