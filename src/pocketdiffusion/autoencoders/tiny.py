"""TinyDecoder: latents to pixels with a million parameters, taught by a bigger decoder.

    decode(z (B, C, h, w)) -> x (B, 3, f h, f w)            a picture's latents, at unit variance
    decode(z (B, C, 1 + k, h, w)) -> x (B, 3, 1 + f_t k, f h, f w)      a clip's, where ``double`` is given
    Grafted(autoencoder, decoder)       the autoencoder with another decoder, to train and to judge that

Source: SnapGen (Hu et al. 2024, arXiv 2412.09619): separable convolutions, no attention, one norm per block,
no shortcut convolutions, few blocks where pixels are many. Its width table is not published: the presets
named snapgen are ours and land on the published 1.38 M. ``taesd`` has the shape and size of TAESD's decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.causal import Chain, Frames, State, TimeUp
from ..nn.conv import UpNearest
from ..nn.norm import GroupNorm


@dataclass(frozen=True)
class Config:
    channels: int = 16  # of the latent
    widths: tuple[int, ...] = (64, 128, 256, 256)  # per resolution, finest first
    blocks: tuple[int, ...] = (2, 3, 4, 4)  # residual blocks per resolution
    expansion: int = 1  # of the width inside a block
    plain: bool = False  # TAESD's blocks: three full convolutions, no norm
    double: tuple[int, ...] = ()  # resolutions at which time is doubled, for clips
    groups: int = 32
    latent: int = 8  # positions per side, for example()
    latents: str = ""  # whose they are: pipeline.latents_hash of the autoencoder; "" where nobody knows

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)

    @property
    def time_factor(self) -> int:
        return 2 ** len(self.double)


SNAPGEN = Config()
PRESETS: dict[str, Config] = {
    "smoke": Config(4, (8, 16, 16), (1, 1, 1), groups=8, latent=8),
    "smoke_clips": Config(8, (8, 16, 16), (1, 1, 1), double=(0, 1), groups=8, latent=4),
    "scenes": Config(4, (24, 48, 96), (1, 2, 3), groups=8),
    "scenes_clips": Config(16, (16, 24, 32, 64), (1, 1, 2, 2), double=(1, 2), groups=8),
    "snapgen": SNAPGEN,
    "snapgen_wide": replace(SNAPGEN, widths=(64, 128, 256, 320), blocks=(1, 2, 2, 4)),
    "snapgen_expanded": replace(SNAPGEN, widths=(128, 128, 256, 256), blocks=(1, 1, 2, 2), expansion=2),
    "snapgen_4": replace(SNAPGEN, channels=4),
    # ours: the same budget moved to where pixels are few; on a CPU the finest level is most of the time
    "snapgen_4_fast": replace(SNAPGEN, channels=4, widths=(32, 64, 192, 352), blocks=(1, 2, 3, 4)),
    "snapgen_clips": replace(SNAPGEN, double=(1, 2), latent=4),
    "taesd": Config(4, (64, 64, 64, 64), (1, 3, 3, 3), plain=True),
    "taesd_16": Config(16, (64, 64, 64, 64), (1, 3, 3, 3), plain=True),
}


class Block(nn.Module):
    """x + W2 act(norm(depth2(W1 depth1(x)))): pointwise W without biases, depthwise 3 x 3 with."""

    def __init__(self, width: int, expansion: int, groups: int):
        super().__init__()
        wide = expansion * width
        self.depth1 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point1 = nn.Conv2d(width, wide, 1, bias=False)
        self.depth2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.norm = GroupNorm(groups, wide)
        self.point2 = nn.Conv2d(wide, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.depth2(self.point1(self.depth1(x)))
        return x + self.point2(F.silu(self.norm(h)))


class PlainBlock(nn.Module):
    """relu(x + conv(relu(conv(relu(conv(x)))))), as in TAESD."""

    def __init__(self, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class Squash(nn.Module):
    """3 tanh(z / 3): latents that are far out do no harm."""

    def forward(self, z: Tensor) -> Tensor:
        return 3 * torch.tanh(z / 3)


def up(c: Config, level: int) -> nn.Module:
    """From the resolution below to ``level``."""
    if c.plain:
        conv = nn.Conv2d(c.widths[level + 1], c.widths[level], 3, padding=1, bias=False)
        return nn.Sequential(nn.Upsample(scale_factor=2.0), conv)
    return UpNearest(c.widths[level + 1], c.widths[level])


class TinyDecoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        if len(c.blocks) != len(c.widths):
            raise ValueError(f"{len(c.blocks)} numbers of blocks for {len(c.widths)} widths")
        enter = nn.Conv2d(c.channels, c.widths[-1], 3, padding=1)
        stages: list[nn.Module] = [nn.Sequential(Squash(), enter, nn.ReLU()) if c.plain else enter]
        for level in reversed(range(len(c.widths))):
            if level + 1 < len(c.widths):
                stages.append(up(c, level))
            if level in c.double:
                stages.append(TimeUp(c.widths[level]))
            width = c.widths[level]
            stages += [
                PlainBlock(width) if c.plain else Block(width, c.expansion, c.groups)
                for _ in range(c.blocks[level])
            ]
        tail: list[nn.Module] = [] if c.plain else [GroupNorm(c.groups, c.widths[0]), nn.SiLU()]
        stages.append(nn.Sequential(*tail, nn.Conv2d(c.widths[0], 3, 3, padding=1)))
        if c.double:
            self.stages: nn.Module = Chain(*(s if isinstance(s, TimeUp) else Frames(s) for s in stages))
        else:
            self.stages = nn.Sequential(*stages)

    def forward(self, z: Tensor) -> Tensor:
        if not self.config.double and z.ndim == 5:
            return self(z.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(z), -1)).transpose(1, 2)
        if self.config.double and z.ndim == 4:
            return self.stages(z[:, :, None])[:, :, 0]
        if z.ndim == 4 and z.device.type == "cpu" and not torch.compiler.is_compiling():
            # one thread's 1 x 1 convolutions take twice as long with channels first
            z = z.contiguous(memory_format=torch.channels_last)
        return self.stages(z)

    def decode(self, z: Tensor, first: Tensor | None = None) -> Tensor:
        """``first`` (a first frame) is for others."""
        if z.shape[1] != self.config.channels:
            raise ValueError(f"latents have {z.shape[1]} channels, expected {self.config.channels}")
        return self(z)

    def stream_decode(self, z: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A clip's latents in chunks, one frame first (nn/causal.py)."""
        return self.stages.stream(z, state) if isinstance(self.stages, Chain) else (self(z), {})

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor]:
        """Latents that tests, bench and exporters use."""
        c, g = self.config, torch.Generator().manual_seed(0)
        time = (3,) if c.double else ()
        return (torch.randn(batch, c.channels, *time, c.latent, c.latent, generator=g).to(device),)


class Grafted(nn.Module):
    """``autoencoder`` with its encoder as it is, and ``decoder`` (z -> x) in place of its own."""

    def __init__(self, autoencoder: Any, decoder: Any):
        super().__init__()
        self.autoencoder, self.decoder = autoencoder.requires_grad_(False), decoder
        ours, theirs = decoder.config, autoencoder.config
        for name in ("channels", "factor", "time_factor"):
            a, b = getattr(ours, name, 1), getattr(theirs, name, 1)
            if a != b:
                raise ValueError(f"the decoder has {name} {a}, the autoencoder {b}")
        # a decoder of ours takes no first frame
        self.config = replace(theirs, omni=False) if getattr(theirs, "omni", False) else theirs
        # there where both are: who streams asks whether they are
        if hasattr(autoencoder, "stream_encode") and hasattr(decoder, "stream_decode"):
            self.stream_encode: Any = autoencoder.stream_encode
            self.stream_decode: Any = decoder.stream_decode

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.autoencoder.posterior(x)

    def encode(self, x: Tensor) -> Tensor:
        return self.autoencoder.encode(x)

    def decode(self, z: Tensor, first: Tensor | None = None) -> Tensor:
        return self.decoder.decode(z, first)


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""

    def block(w: int) -> int:
        wide = c.expansion * w
        return 3 * (9 * w * w + w) if c.plain else 2 * wide * w + 10 * w + 12 * wide

    total = 9 * c.channels * c.widths[-1] + c.widths[-1] + 27 * c.widths[0] + 3
    total += 0 if c.plain else 2 * c.widths[0]
    total += sum(n * block(w) for n, w in zip(c.blocks, c.widths))
    for a, b in zip(c.widths[1:], c.widths):
        total += 9 * a * b if c.plain else 10 * a + a * b + b
    return total + sum(6 * c.widths[i] ** 2 + 2 * c.widths[i] for i in c.double)
