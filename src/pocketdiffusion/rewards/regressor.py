"""CountNet: pictures -> how many things of every shape and colour, by a density.

    x (B, 3, H, W) in [-1, 1] -> density (B, shapes, colours, h, w), not negative;   forward(x): its sums
    net.count(x, ["red circle", "star"]) -> (B, 2)

A judge of counts that shares nothing with the detector of the scenes world: no pieces, no templates, no
thresholds. It is trained by recipes/count_judge.py; a phrase's count is the sum over all that it may mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.shapes import COLOURS, SHAPES
from ..nn.conv import ResBlock


@dataclass(frozen=True)
class Config:
    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    widths: tuple[int, ...] = (32, 64, 128)  # at 1/2, 1/4, 1/8 of the side
    groups: int = 8
    side: int = 64  # every picture is resized to this first


PRESETS: dict[str, Config] = {
    "smoke": Config(widths=(8, 16), groups=4, side=32),
    "scenes": Config(),
}


class CountNet(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        channels, layers = 3, list[nn.Module]()
        for width in config.widths:
            layers += [nn.Conv2d(4 * channels, width, 3, padding=1), ResBlock(width, width, config.groups)]
            channels = width
        self.stages = nn.ModuleList(layers)
        self.norm = nn.GroupNorm(config.groups, channels)
        self.head = nn.Conv2d(channels, len(config.shapes) * len(config.colours), 1)
        # next to nothing is there to begin with
        nn.init.constant_(self.head.bias, -6.0)  # type: ignore[arg-type]

    def density(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"expected pictures (B, 3, H, W), got {tuple(x.shape)}")
        side = self.config.side
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        for enter, block in zip(self.stages[::2], self.stages[1::2]):
            x = block(enter(F.pixel_unshuffle(x, 2)))  # (B, width, H/2, W/2)
        kinds = (len(self.config.shapes), len(self.config.colours))
        return F.softplus(self.head(F.silu(self.norm(x))).float()).unflatten(1, kinds)

    def forward(self, x: Tensor) -> Tensor:
        """(B, shapes, colours)"""
        return self.density(x).sum((-2, -1))

    @torch.no_grad()
    def count(self, pictures: Tensor, phrases: Sequence[str]) -> Tensor:
        """(B, phrases), not rounded. ValueError for a noun that it was not taught."""
        found = self(pictures)
        rows = []
        for phrase in phrases:
            *words, noun = phrase.split()
            if noun not in self.config.shapes:
                raise ValueError(f"the judge does not know {phrase!r}: {', '.join(self.config.shapes)}")
            of = found[:, self.config.shapes.index(noun)]
            told = [self.config.colours.index(w) for w in words if w in self.config.colours]
            rows.append(of[:, told[0]] if told else of.sum(-1))
        return torch.stack(rows, -1)

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] that tests, bench and exporters use."""
        g = torch.Generator().manual_seed(0)
        side = self.config.side
        return (torch.rand(batch, 3, side, side, generator=g).mul(2).sub(1).to(device),)


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""
    total, channels = 0, 3
    for width in c.widths:
        total += 9 * 4 * channels * width + width + 2 * (9 * width * width + width) + 4 * width
        channels = width
    return total + 2 * channels + (channels + 1) * len(c.shapes) * len(c.colours)
