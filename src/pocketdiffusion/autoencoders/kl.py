"""AutoencoderKL: a plain convolutional autoencoder with a Gaussian posterior, f4 and f8.

    posterior(x (B, 3, H, W) in [-1, 1]) -> mean, logvar (B, C, H/f, W/f)
    encode(x) = (mean - shift) * scale,   decode(z) -> x

Latents have unit variance: scale and shift are buffers measured once after training (``calibrate``). The
layout is that of latent diffusion (Rombach et al. 2022) without attention, with pixel shuffling to resample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn.conv import Down, ResBlock, Up
from .moments import moments


@dataclass(frozen=True)
class Config:
    channels: int = 4  # of the latent
    widths: tuple[int, ...] = (32, 64, 128)  # per resolution, finest first; f = 2^(levels - 1)
    blocks: int = 1  # residual blocks per level
    groups: int = 8
    side: int = 64  # for example()

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)


PRESETS: dict[str, Config] = {
    "smoke": Config(widths=(8, 16, 16), side=32),
    "scenes": Config(widths=(24, 48, 96)),
    "f4": Config(channels=3, widths=(128, 256, 512), blocks=2, groups=32, side=256),
    "f8": Config(channels=4, widths=(128, 256, 512, 512), blocks=2, groups=32, side=256),
}


def stage(width: int, blocks: int, groups: int) -> list[nn.Module]:
    return [ResBlock(width, width, groups) for _ in range(blocks)]


class Encoder(nn.Sequential):
    def __init__(self, c: Config):
        layers: list[nn.Module] = [nn.Conv2d(3, c.widths[0], 3, padding=1)]
        for width, wider in zip(c.widths, c.widths[1:]):
            layers += [*stage(width, c.blocks, c.groups), Down(width, wider)]
        layers += [
            *stage(c.widths[-1], c.blocks + 1, c.groups),
            nn.GroupNorm(c.groups, c.widths[-1]),
            nn.SiLU(),
        ]
        super().__init__(*layers, nn.Conv2d(c.widths[-1], 2 * c.channels, 3, padding=1))


class Decoder(nn.Sequential):
    def __init__(self, c: Config):
        layers: list[nn.Module] = [nn.Conv2d(c.channels, c.widths[-1], 3, padding=1)]
        layers += stage(c.widths[-1], c.blocks + 1, c.groups)
        for width, finer in zip(c.widths[::-1], c.widths[-2::-1]):
            layers += [Up(width, finer), *stage(finer, c.blocks, c.groups)]
        layers += [nn.GroupNorm(c.groups, c.widths[0]), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(c.widths[0], 3, 3, padding=1))


class AutoencoderKL(nn.Module):
    scale: Tensor
    shift: Tensor

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("scale", torch.ones(config.channels, 1, 1))
        self.register_buffer("shift", torch.zeros(config.channels, 1, 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the normalised latent; ValueError if ``x`` does not divide."""
        fits("pixels", x, 3, self.config.factor)
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return (mean - self.shift) * self.scale, logvar.clamp(-30, 20) + 2 * self.scale.log()

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, first: Tensor | None = None) -> Tensor:
        """``first`` (features of a first frame) is for video autoencoders and unused here."""
        fits("latents", z, self.config.channels, 1)
        return self.decoder(z / self.scale + self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set scale and shift so that the latents of ``x`` have zero mean and unit variance per channel."""
        mean, variance = moments(lambda part: self.encoder(part).chunk(2, dim=1)[0], x)
        self.shift.copy_(mean.view(-1, 1, 1))
        self.scale.copy_(variance.rsqrt().view(-1, 1, 1))

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] that tests, bench and exporters use."""
        g = torch.Generator().manual_seed(0)
        return (
            torch.rand(batch, 3, self.config.side, self.config.side, generator=g).mul(2).sub(1).to(device),
        )


def fits(what: str, x: Tensor, channels: int, factor: int) -> None:
    """Refuse what is not (B, channels, factor i, factor j)."""
    if x.ndim != 4 or x.shape[1] != channels:
        clips = "; frames of clips come as a batch" if x.ndim == 5 else ""
        raise ValueError(f"{what} of shape {tuple(x.shape)}: expected (B, {channels}, H, W){clips}")
    if x.shape[-2] % factor or x.shape[-1] % factor:
        raise ValueError(f"{what} of {x.shape[-2]} x {x.shape[-1]}: expected multiples of {factor}")


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""

    def conv(a: int, b: int, k: int = 3) -> int:
        return a * b * k * k + b

    def res(w: int) -> int:
        return 2 * conv(w, w) + 4 * w

    first, last = c.widths[0], c.widths[-1]
    pairs = list(zip(c.widths, c.widths[1:]))
    deep = (c.blocks + 1) * res(last)
    encoder = conv(3, first) + sum(c.blocks * res(a) + conv(4 * a, b, 1) for a, b in pairs) + deep
    encoder += 2 * last + conv(last, 2 * c.channels)
    decoder = conv(c.channels, last) + deep + sum(conv(b, 4 * a, 1) + c.blocks * res(a) for a, b in pairs)
    return encoder + decoder + 2 * first + conv(first, 3)
