"""Classifier-free guidance: one denoiser made of a conditional and an unconditional call.

    v = u + w (c - u)        c = v(x, t, cond),  u = v(x, t, null)      (Ho and Salimans 2022)

w = 1 is the conditional model and w = 0 the unconditional one. A negative prompt is a ``null`` made from the
negative text. Guidance can be limited to an interval of t, outside which only c is computed: at high levels
it costs diversity, at low ones it does nothing (Kynkaanniemi et al. 2024, arXiv 2404.07724).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pocketdiffusion.diffusion.flow import expand
from pocketdiffusion.types import Cond, Denoiser


def cfg(model: Denoiser, null: Cond, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Denoiser:
    """``model`` guided by ``scale`` away from ``null``, which has one row or as many as the batch.

    Both halves go through the model in one call of twice the batch, ``Cond.cat(cond, null)``. ``interval``
    is closed at both ends.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"guidance interval must satisfy 0 <= low <= high <= 1, not ({low}, {high})")
    if scale == 1:
        return model

    def guided(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        inside = (t >= low) & (t <= high)
        if not inside.any():
            return model(x, t, cond)
        both = Cond.cat(cond, null.expand(len(x)))
        c, u = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        # Selected, not blended, so that a row outside the interval equals the conditional call exactly.
        return torch.where(expand(inside, x) > 0, u + scale * (c - u), c)

    return guided
