"""Rotary position embedding in one, two or three dimensions.

    theta_i = base^(-2 i / d_axis),  (a, b) -> (a cos - b sin, a sin + b cos)     for adjacent pairs (a, b)

The head dimension is split evenly over the axes unless told otherwise (Su et al. 2021; 2-D as in EVA and
Lumina). Positions are real numbers, so a grid can be scaled to interpolate resolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid(*sizes: int, device: torch.device | str = "cpu") -> Tensor:
    """Integer positions of a raster, last axis fastest: (prod(sizes), len(sizes))."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(sizes))


def split(head_dim: int, axes: int) -> tuple[int, ...]:
    """Even widths per axis that add up to ``head_dim``; the first axis takes what is left over."""
    if head_dim % 2:
        raise ValueError(f"rotary embedding needs an even head_dim, got {head_dim}")
    part = head_dim // axes // 2 * 2
    return (head_dim - part * (axes - 1),) + (part,) * (axes - 1)


def angles(
    positions: Tensor, head_dim: int, base: float = 10000.0, widths: tuple[int, ...] | None = None
) -> Tensor:
    """Positions (N, axes) -> the table (2, N, head_dim / 2); ``widths``: the parts of the head per axis."""
    parts: list[Tensor] = []
    for axis, width in enumerate(widths or split(head_dim, positions.shape[-1])):
        theta = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
        parts.append(positions[:, axis, None] * theta)
    angle = torch.cat(parts, dim=-1)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs of ``x`` (..., N, head_dim) by ``table`` (2, N, head_dim / 2)."""
    cos, sin = table.to(x.dtype).unbind(0)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
