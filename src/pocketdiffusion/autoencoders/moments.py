"""Mean and variance of latents per channel, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ROWS = 4  # that are encoded at once


def moments(encode: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``encode(x)`` (B, C, ...): (C,) each in fp64 on the CPU; the variance divides by the count."""
    count, sums = 0, torch.zeros(())
    for part in x.split(ROWS):
        z = encode(part).transpose(0, 1).flatten(1).double().cpu()
        count += z.shape[1]
        sums = sums + torch.stack([z.sum(1), z.square().sum(1)])
    mean, square = sums / count
    return mean, square - mean.square()
