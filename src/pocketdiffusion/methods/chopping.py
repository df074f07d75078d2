"""Chopping: latents without high frequencies should decode to pixels without them.

    C[k, n] = a_k cos(pi (2n + 1) k / (2B)),   a_0 = sqrt(1/B),  a_k = sqrt(2/B)
    D       = C X C^T                          of every B x B block of every channel, B = 8
    low(x)  = sum of C^T [u + v < 14 - (k - 1)] D C,     k ~ U{1 .. 8}, the same for x and z
    term    = |decode(low(z)) - low(x)|

The other way to ask a decoder for a tidy spectrum: Skorokhodov et al. 2025 (arXiv 2502.14831) try it and
prefer scale equivariance; the masks, shared by latents and pixels, are those of Spectrum Matching (arXiv
2603.14645). Ours: how k is drawn. 64 cells of 8 x 8 pixels and of 8 x 8 latent positions are not the same
wavelengths; that is so in the source.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .autoencode import Distance, Pass, Term, l1

BLOCK = 8
MOST = 8  # diagonals that are dropped at most, of 15


@lru_cache
def matrix(size: int = BLOCK) -> Tensor:
    """C (size, size) in float64: the orthogonal DCT-II."""
    n = torch.arange(size, dtype=torch.float64)
    c = torch.cos(math.pi * (2 * n + 1) * n[:, None] / (2 * size)) * math.sqrt(2 / size)
    c[0] /= math.sqrt(2)
    return c


def dct(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H/8, W/8, 8, 8). What is beyond the last whole block is cut off."""
    h, w = (side // BLOCK * BLOCK for side in x.shape[-2:])
    if not h or not w:
        raise ValueError(
            f"a spectrum needs sides of at least {BLOCK}, got {' x '.join(map(str, x.shape[-2:]))}"
        )
    blocks = x[..., :h, :w].unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-3, -2)
    c = matrix().to(x)
    return c @ blocks @ c.T


def undone(found: Tensor) -> Tensor:
    """The inverse of ``dct``: (..., H/8, W/8, 8, 8) -> (..., H, W)."""
    c = matrix().to(found)
    return (c.T @ found @ c).transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)


def low(x: Tensor, dropped: int) -> Tensor:
    """``x`` (..., H, W) without the last ``dropped`` of the 15 diagonals of every block.

    ValueError if a side is no multiple of 8: what ``dct`` cuts off would be gone.
    """
    if any(side % BLOCK for side in x.shape[-2:]):
        sides = " x ".join(map(str, x.shape[-2:]))
        raise ValueError(f"chopping {sides} positions: expected sides that are multiples of {BLOCK}")
    index = torch.arange(BLOCK, device=x.device)
    kept = index + index[:, None] < 2 * BLOCK - 1 - dropped
    return undone(dct(x) * kept)


def chopping(distance: Distance = l1) -> Term:
    """Sides of latents (and so of pixels) must be multiples of 8."""

    def term(found: Pass) -> Tensor:
        dropped = int(torch.randint(1, MOST + 1, ()))
        return distance(found.autoencoder.decode(low(found.z, dropped)).float(), low(found.x, dropped))

    return term
