"""The noise level t in [0, 1] as a vector: sinusoids and a two-layer MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .residual import ACTIVATIONS


def sinusoid(t: Tensor, dim: int, scale: float = 1000.0, longest: float = 10000.0) -> Tensor:
    """(...,) -> (..., dim), fp32: cos and sin of scale * t * longest^(-2 i / dim) (Vaswani et al. 2017)."""
    half = dim // 2
    frequency = torch.exp(
        -math.log(longest) * torch.arange(half, device=t.device, dtype=torch.float32) / half
    )
    angle = scale * t.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """t (B,) or (B, T) -> (B, dim) or (B, T, dim)."""

    def __init__(self, dim: int, features: int = 256, act: str = "silu"):
        super().__init__()
        self.features = features
        self.up = nn.Linear(features, dim)
        self.act = ACTIVATIONS[act]()
        self.down = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        return self.down(self.act(self.up(sinusoid(t, self.features).to(self.up.weight.dtype))))
