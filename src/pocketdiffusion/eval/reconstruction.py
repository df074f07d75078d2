"""How well an autoencoder gives its input back.

PSNR = -10 log10(mean ((x - y) / 2)^2)      pixels in [-1, 1], so the peak is 2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Decibels per picture: (B, ...) and (B, ...) -> (B,)."""
    return -10 * ((x - y) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10()


@torch.no_grad()
def reconstruct(autoencoder: Any, x: Tensor) -> Tensor:
    """``x`` (B, 3, H, W) through the posterior's mean and back, clamped to [-1, 1]."""
    return autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)
