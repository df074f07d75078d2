"""adaLN-single: one projection of the time embedding, a small table per block.

(shift, scale, gate) x branches = Linear(SiLU(temb)) + table        (PixArt-alpha, section 2.3)
branch input = norm(h) (1 + scale) + shift,      h <- h + gate * branch
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SharedModulation(nn.Module):
    """temb (B, D) -> (B, k, D), shared by all blocks. Zero-initialised: the tables decide at the start."""

    def __init__(self, dim: int, k: int = 6):
        super().__init__()
        self.k = k
        self.proj = nn.Linear(dim, k * dim)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, temb: Tensor) -> Tensor:
        return self.proj(F.silu(temb)).unflatten(-1, (self.k, -1))


class Table(nn.Module):
    """A block's own offset (k, D) to the shared modulation; returns k tensors (B, 1, D)."""

    def __init__(self, dim: int, k: int = 6):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(k, dim) / dim**0.5)

    def forward(self, shared: Tensor) -> tuple[Tensor, ...]:
        return (shared + self.weight).unsqueeze(-2).unbind(-3)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
