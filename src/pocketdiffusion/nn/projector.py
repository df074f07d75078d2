"""Features of one network in the width and on the grid of another's.

    as_map      tokens (B, N, C) -> (B, C, [T,] h, w), the grid that has the proportions of the input x
    Projector   (B, C, [T,] H, W) -> (B, out, [T,] H up / stride, W up / stride)

The projector is either a convolution whose kernel is its stride (2 x 2 for SnapGen's last up-block against
SD3.5's tokens), or an average over as many places and a 1 x 1. It is trained and thrown away afterwards.
"""

from __future__ import annotations

from math import prod, sqrt

from torch import Tensor, nn


def as_map(feature: Tensor, x: Tensor) -> Tensor:
    """What a tap gave for the input ``x`` (B, C, [T,] H, W), as a map; frames are taken to stay apart."""
    if feature.ndim == x.ndim:
        return feature
    tokens, sides = feature.shape[1], x.shape[2:]
    patch = round(sqrt(prod(sides) / tokens))
    grid = (*sides[:-2], sides[-2] // max(patch, 1), sides[-1] // max(patch, 1))
    if prod(grid) != tokens:
        raise ValueError(f"{tokens} tokens are no grid of square patches over an input of {tuple(sides)}")
    return feature.transpose(1, 2).unflatten(2, grid)


class Projector(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1, up: int = 1, pool: bool = False):
        super().__init__()
        kernel = 1 if pool else stride
        self.pool = nn.AvgPool2d(stride) if pool else nn.Identity()
        self.conv = nn.Conv2d(channels, out * up**2, kernel, kernel)
        self.shuffle = nn.PixelShuffle(up)

    @classmethod
    def between(cls, mine: Tensor, theirs: Tensor, pool: bool = False) -> Projector:
        """One that takes maps like ``mine`` to maps like ``theirs``; one grid must tile the other."""
        (h, w), (height, width) = mine.shape[-2:], theirs.shape[-2:]
        stride, up = max(h // height, 1), max(height // h, 1)
        if (h * up, w * up) != (height * stride, width * stride):
            raise ValueError(f"no whole stride takes features of {h} x {w} to {height} x {width}")
        return cls(mine.shape[1], theirs.shape[1], stride, up, pool)

    def forward(self, x: Tensor) -> Tensor:
        pictures = x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x
        y = self.shuffle(self.conv(self.pool(pictures)))
        return y.unflatten(0, (len(x), -1)).transpose(1, 2) if x.ndim == 5 else y
