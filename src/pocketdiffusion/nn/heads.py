"""Discriminator heads: features or pixels -> logits, one per place.

``PatchHead``: the PatchGAN of Isola et al. 2017 with group norm in place of batch norm, so that a logit
depends on its own picture only.
"""

from __future__ import annotations

from torch import Tensor, nn


class PatchHead(nn.Module):
    """(B, channels, H, W) -> (B, 1, H / 2^halvings, W / 2^halvings); every logit sees one patch."""

    def __init__(self, channels: int = 3, width: int = 64, halvings: int = 3, groups: int = 8):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, halvings):
            wide = width * min(2**i, 8)
            layers += [nn.Conv2d(width * min(2 ** (i - 1), 8), wide, 4, 2, 1), nn.GroupNorm(groups, wide)]
            layers += [nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * min(2 ** (halvings - 1), 8), 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
