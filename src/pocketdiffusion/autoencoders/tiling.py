"""Large frames in overlapping tiles, blended so that no seam is seen.

    encode(autoencoder, x, tile=64, overlap=16) -> z         memory of one tile of 64 x 64 latent positions
    decode(autoencoder, z, tile=64, overlap=16) -> x

Every tile goes through on its own; where tiles overlap, each counts the less the nearer its border is. Norms
take their statistics from a tile, so the result is near what the whole frame gives, and not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from torch import Tensor


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of a side begin: evenly spread, from border to border, at least ``overlap`` shared."""
    if side <= tile:
        return [0]
    steps = ceil((side - tile) / (tile - overlap))
    return [round(i * (side - tile) / steps) for i in range(steps + 1)]


def weights(start: int, side: int, tile: int, overlap: int, scale: int, like: Tensor) -> Tensor:
    """How much each position of a tile counts: less towards other tiles, flat at the frame's border."""
    length = min(tile, side) * scale
    up = (torch.arange(length, device=like.device, dtype=torch.float32) + 0.5) / (overlap * scale)
    found = torch.ones(length, device=like.device)
    if start > 0:
        found = found.minimum(up)
    if start + tile < side:
        found = found.minimum(up.flip(0))
    return found


def tiled(
    f: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, enter: int = 1, leave: int = 1
) -> Tensor:
    """``f`` on tiles of ``x`` (..., H, W). A position: ``enter`` pixels of ``x``, ``leave`` of the result."""
    if not 0 < overlap <= tile // 2:
        raise ValueError(f"overlap {overlap}: expected 1 to {tile // 2}, half of a tile")
    h, w = x.shape[-2] // enter, x.shape[-1] // enter
    if h <= tile and w <= tile:
        return f(x)
    total = count = torch.zeros(())
    for top in starts(h, tile, overlap):
        for left in starts(w, tile, overlap):
            part = x[..., top * enter : (top + tile) * enter, left * enter : (left + tile) * enter]
            y = f(part)
            if not total.ndim:
                total = y.new_zeros(*y.shape[:-2], h * leave, w * leave)
                count = y.new_zeros(h * leave, w * leave)
            rows = weights(top, h, tile, overlap, leave, y)
            weight = rows[:, None] * weights(left, w, tile, overlap, leave, y)
            place = (
                ...,
                slice(top * leave, top * leave + y.shape[-2]),
                slice(left * leave, left * leave + y.shape[-1]),
            )
            total[place] += weight * y
            count[place] += weight
    return total / count


def encode(autoencoder: Any, x: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """Pictures or clips -> latents; ``tile`` and ``overlap`` in latent positions."""
    return tiled(autoencoder.encode, x, tile, overlap, enter=autoencoder.config.factor)


def decode(autoencoder: Any, z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """Latents -> pictures or clips; ``tile`` and ``overlap`` in latent positions."""
    return tiled(autoencoder.decode, z, tile, overlap, leave=autoencoder.config.factor)
