"""Weights on the grid of their bits: a plain model that exporters pack without changing a value.

    8 bits   per output channel, symmetric:        w ~ s q,  q in -127..127,  s = max |w| / 127
    4 bits   per group of inputs, all 16 levels:   w ~ s q,  q in -8..7,      s = m / -8

with m the entry of largest magnitude, sign and all, so that it lies on the grid exactly. These are the grids
of onnxruntime (QInt8 per channel; MatMulNBits), so packing a rounded weight gives back the same numbers: s q
up to the last place of a float for 8 bits, bit for bit for 4. A group is 32 inputs; a row that is no multiple
of 32 long is one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
GROUP = 32
BITS = (4, 8, 16)  # 16: half precision


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> every layer whose weight can be rounded; of layers that share one weight, the first."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS):
            found.setdefault(id(layer.weight), (name, layer))
    return dict(found.values())


def group_of(row: int) -> int:
    """Inputs that share a scale at 4 bits, for rows of ``row`` inputs."""
    return row if row % GROUP else GROUP


def codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers, shaped like ``weight``, and scales: (out, 1) at 8 bits, (out, groups) at 4."""
    flat = weight.detach().flatten(1)
    if bits == 8:
        scale = flat.abs().amax(1, keepdim=True) / 127
        safe = torch.where(scale == 0, 1, scale)
        return (flat / safe).round().clamp(-127, 127).view_as(weight), scale
    if bits == 4:
        grouped = flat.unflatten(1, (-1, group_of(flat.shape[1])))
        largest = grouped.gather(2, grouped.abs().argmax(2, keepdim=True))
        scale = largest / -8
        safe = torch.where(scale == 0, 1, scale)
        return (grouped / safe).round().clamp(-8, 7).view_as(weight), scale.squeeze(2)
    raise ValueError(f"bits must be 4 or 8, not {bits}")


def grid(weight: Tensor, bits: int) -> Tensor:
    """The nearest point of the grid; 16 bits: the nearest half-precision number."""
    if bits == 16:
        return weight.half().to(weight.dtype)
    q, scale = codes(weight, bits)
    flat = q.flatten(1)
    return (flat.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]).view_as(weight)


def size(weight: Tensor, bits: int, scale_bytes: int = 4) -> int:
    """Bytes of a packed weight and its scales (16 bits: two bytes each)."""
    if bits == 16:
        return 2 * weight.numel()
    rows, row = weight.shape[0], weight[0].numel()
    groups = rows if bits == 8 else rows * (row // group_of(row))
    return weight.numel() * bits // 8 + scale_bytes * groups


@torch.no_grad()
def rounded(module: nn.Module, bits: Mapping[str, int]) -> nn.Module:
    """A copy with the weight of each named layer on its grid. ValueError for a name that is no layer."""
    copy = deepcopy(module)
    known = layers(copy)
    if wrong := sorted(set(bits) - set(known)):
        raise ValueError(f"{type(module).__name__} has no layer {wrong[0]!r} with weights to round")
    for name, b in bits.items():
        weight: Tensor = known[name].weight  # type: ignore[assignment]
        weight.copy_(grid(weight, b))
    return copy
