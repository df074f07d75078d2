"""RMSNorm and LayerNorm with fp32 statistics, GroupNorm that is exact in any memory format."""

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


class GroupNorm(nn.GroupNorm):
    """torch's own; with channels last on a CPU, where that takes a difference of squares, by var_mean.

    The variance of a group is the mean variance of its channels and the variance of their means.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = x.ndim != 4 or x.device.type != "cpu" or x.dtype != torch.float32 or x.is_contiguous()
        if plain or torch.compiler.is_compiling() or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        b, c, h, w = x.shape
        y = x.permute(0, 2, 3, 1).view(b, h * w, c)
        variance, mean = torch.var_mean(y, 1, correction=0)  # of channels, (B, C)
        apart, centre = torch.var_mean(mean.view(b, self.num_groups, -1), 2, correction=0, keepdim=True)
        spread = variance.view(b, self.num_groups, -1).mean(2, keepdim=True) + apart
        scale = torch.rsqrt(spread + self.eps) * self.weight.view(self.num_groups, -1)  # (B, G, C / G)
        shift = self.bias.view(self.num_groups, -1) - centre * scale
        y = torch.addcmul(shift.view(b, 1, c), y, scale.view(b, 1, c))
        return y.view(b, h, w, c).permute(0, 3, 1, 2)
