"""Discriminator heads: features or pixels -> logits, one per place.

``PatchHead``: the PatchGAN of Isola et al. 2017 with group norm in place of batch norm, so that a logit
depends on its own picture only.

``MapHead`` and ``ClipHead`` read one feature map of a frozen network, ``Heads`` several of them:

    y      = block(W LN(f))                     LN over channels, so that the network's scale does not matter
    logit  = w . y + b + y . V c / sqrt(width)  c the pooled text, V c = 0 at the start

The inner product is that of a projection discriminator (Miyato and Koyama 2018). Heads on many layers of a
frozen network follow projected GANs (Sauer et al. 2021) and LADD (Sauer et al. 2024); the layers are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import rope
from .attention.full import Attention
from .conv import ResBlock
from .norm import LayerNorm
from .projector import as_map


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


class MapHead(nn.Module):
    """Maps (B, channels, H, W) and pooled text (B, text) -> logits (B, H, W). ``text`` 0: without text."""

    def __init__(self, channels: int, width: int = 64, text: int = 0, groups: int = 8):
        super().__init__()
        self.norm = LayerNorm(channels, affine=False)
        self.enter = nn.Conv2d(channels, width, 1)
        self.block = ResBlock(width, width, groups)
        self.out = nn.Conv2d(width, 1, 1)
        self.text = nn.Linear(text, width, bias=False) if text else None
        if self.text is not None:
            nn.init.zeros_(self.text.weight)

    def places(self, feature: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, width, H, W), before the last layer."""
        normed = self.norm(feature.movedim(1, -1)).movedim(-1, 1)
        return F.silu(self.block(self.enter(normed)))

    def logits(self, y: Tensor, pooled: Tensor | None) -> Tensor:
        """(B, width, H, W) -> (B, H, W)."""
        logit = self.out(y)[:, 0]
        if self.text is None:
            return logit
        assert pooled is not None, "a head with text needs the pooled text"
        wanted = self.text(pooled)[:, :, None, None]
        return logit + (y * wanted).sum(1) / y.shape[1] ** 0.5

    def forward(self, feature: Tensor, pooled: Tensor | None = None) -> Tensor:
        return self.logits(self.places(feature), pooled)


class ClipHead(MapHead):
    """Clips (B, channels, T, H, W) -> logits (B, T, H, W): every place also looks at itself in all frames."""

    def __init__(self, channels: int, width: int = 64, text: int = 0, groups: int = 8, heads: int = 4):
        super().__init__(channels, width, text, groups)
        self.time_norm = LayerNorm(width)
        self.time = Attention(width, heads, width // heads)
        self.head_dim = width // heads

    def forward(self, feature: Tensor, pooled: Tensor | None = None) -> Tensor:
        b, _, t, h, w = feature.shape
        y = self.places(feature.transpose(1, 2).flatten(0, 1))  # (B T, D, H, W)
        z = y.unflatten(0, (b, t)).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (B H W, T, D)
        frames = torch.arange(t, device=feature.device, dtype=torch.float32)[:, None]
        z = z + self.time(self.time_norm(z), rope.angles(frames, self.head_dim))
        y = z.reshape(b, h, w, t, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B T, D, H, W)
        every = None if pooled is None else pooled.repeat_interleave(t, 0)
        return self.logits(y, every).unflatten(0, (b, t))


class Heads(nn.Module):
    """One head per tapped feature: {name: tokens or map}, the network's input x, pooled text -> (B, places).

    ``channels``: of every feature, by name. ``to_map``: how one becomes a map (``teachers`` have their own).
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        width: int = 64,
        text: int = 0,
        clips: bool = False,
        to_map: Callable[[Tensor, Tensor], Tensor] = as_map,
    ):
        super().__init__()
        kind = ClipHead if clips else MapHead
        self.names, self.to_map = tuple(channels), to_map
        self.heads = nn.ModuleList(kind(c, width, text) for c in channels.values())

    def forward(self, features: Mapping[str, Tensor], x: Tensor, pooled: Tensor | None = None) -> Tensor:
        maps = (self.to_map(features[name], x) for name in self.names)
        return torch.cat([head(f, pooled).flatten(1) for head, f in zip(self.heads, maps)], dim=1)
