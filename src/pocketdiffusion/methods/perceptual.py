"""A perceptual distance: how differently a network sees two pictures.

    d(x, y) = sum_l mean_hw || n(F_l(x)) - n(F_l(y)) ||^2,    n: unit length over channels

LPIPS (Zhang et al. 2018) without its learned weights. The network is an argument, a callable from pictures to
a list of maps (B, C, H, W); its parameters are not trained. ``judged`` takes a whole distance in its place:
the published LPIPS is eval.reconstruction.lpips. Of clips every frame is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .autoencode import Distance, Pass, Term, frames

Maps = Callable[[Tensor], Sequence[Tensor]]


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Between the maps of two batches of pictures: (B,)."""

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True).clamp(min=1e-8)

    return torch.stack([(unit(x) - unit(y)).square().sum(1).mean((1, 2)) for x, y in zip(a, b)]).sum(0)


def judged(distance: Distance) -> Term:
    """``distance``: two batches of pictures -> numbers, as eval.reconstruction.lpips() is."""
    return lambda found: distance(frames(found.y), frames(found.x)).mean()


def perceptual(maps: Maps) -> Term:
    def term(found: Pass) -> Tensor:
        with torch.no_grad():
            wanted = maps(frames(found.x))
        return distance(maps(frames(found.y)), wanted).mean()

    return term
