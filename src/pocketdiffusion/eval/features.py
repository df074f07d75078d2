"""SceneNet: pictures -> features, by a small classifier of the scenes world.

The network that eval/frechet.py measures with when given no other. Its training task is to count: for every
shape and every colour, 0, 1, 2, or 3 and more things of that kind. Counts are sums over the picture, so the
pooled vector in front of the last layer has to know what is there and how much of it.

    x (B, 3, H, W) in [-1, 1] -> logits (B, labels, most + 1);   features(x) -> (B, dim)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.shapes import COLOURS, SHAPES
from ..nn.conv import ResBlock


@dataclass(frozen=True)
class Config:
    labels: tuple[str, ...] = (*SHAPES, *COLOURS)  # what is counted
    most: int = 3  # the last count means "this many or more"
    widths: tuple[int, ...] = (24, 64, 96)  # at 1/2, 1/4, 1/8 of the side
    dim: int = 128  # of the features
    groups: int = 8
    side: int = 64  # every picture is resized to this first


PRESETS: dict[str, Config] = {
    "smoke": Config(widths=(8, 8, 16), dim=16, side=32),
    "scenes": Config(),
}


class SceneNet(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        channels = 3
        layers: list[nn.Module] = []
        for width in config.widths:
            layers += [nn.Conv2d(4 * channels, width, 1 if channels > 3 else 3, padding=int(channels == 3))]
            layers += [ResBlock(width, width, config.groups)]
            channels = width
        self.stages = nn.ModuleList(layers)
        self.norm = nn.GroupNorm(config.groups, channels)
        self.project = nn.Conv2d(channels, config.dim, 1)
        self.head = nn.Linear(config.dim, len(config.labels) * (config.most + 1))

    def features(self, x: Tensor) -> Tensor:
        """(B, dim), not negative: the mean over the picture of the last activations."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"expected pictures (B, 3, H, W), got {tuple(x.shape)}")
        side = self.config.side
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        for enter, block in zip(self.stages[::2], self.stages[1::2]):
            x = block(enter(F.pixel_unshuffle(x, 2)))  # (B, width, H/2, W/2)
        return F.relu(self.project(F.silu(self.norm(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).unflatten(-1, (len(self.config.labels), -1))

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] that tests, bench and exporters use."""
        g = torch.Generator().manual_seed(0)
        return (
            torch.rand(batch, 3, self.config.side, self.config.side, generator=g).mul(2).sub(1).to(device),
        )


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""
    total, channels = 0, 3
    for width in c.widths:
        kernel = 9 if channels == 3 else 1
        total += 4 * channels * width * kernel + width + 2 * (9 * width * width + width) + 4 * width
        channels = width
    outputs = len(c.labels) * (c.most + 1)
    return total + 2 * channels + (channels + 1) * c.dim + (c.dim + 1) * outputs
