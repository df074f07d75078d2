"""RMSNorm and LayerNorm with fp32 statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6, affine: bool = True):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x.float(), (self.dim,), None, self.eps).to(x.dtype)
        return y if self.weight is None else y * self.weight


class LayerNorm(nn.Module):
    """y = weight * (x - mean) / sqrt(var + eps) + bias, over the last dimension; ``bias`` as ``affine``."""

    def __init__(self, dim: int, eps: float = 1e-6, affine: bool = True, bias: bool = True):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.float(), (self.dim,), None, None, self.eps).to(x.dtype)
        return affine(y, self.weight, self.bias)
