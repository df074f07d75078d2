"""H3AE: a high-compression autoencoder for clips; 2-D where pixels are many, causal where few.

    posterior(x (B, 3, 1 + f_t k, H, W) in [-1, 1]) -> mean, logvar (B, C, 1 + k, H/f_s, W/f_s)
    encode(x) = (mean - shift) * scale,   decode(z, first=None) -> x;   a picture is a clip of one frame
    stream_encode(x, state=None) -> z, state;   stream_decode(z, state=None, first=None) -> x, state

Source: H3AE (Wu et al. 2025, arXiv 2504.10567) for the kinds of layers and where they stand: convolutions per
frame at high resolution, causal 3-D convolutions and block-causal attention near the bottleneck, PixelShuffle
to go up, one network that decodes with and without features of a clean first frame. Its widths and depths are
not published; all numbers here are ours. ``first`` is the first frame itself (B, 3, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..nn.attention.causal import CausalBlocks
from ..nn.causal import CausalConv, CausalResBlock, Chain, Frames, State, TimeDown, TimeUp, streamed
from ..nn.conv import Down, ResBlock, Up, UpNearest
from .moments import moments


@dataclass(frozen=True)
class Config:
    channels: int = 32  # of the latent
    widths: tuple[int, ...] = (64, 128, 256, 384, 512)  # per resolution, finest first
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2)  # residual blocks per resolution
    patch: int = 1  # pixels per side that are one position of the finest resolution
    flat: int = 3  # finest resolutions that work on every frame alone
    halve: tuple[int, ...] = (3, 4)  # resolutions at which the encoder halves time, after their blocks
    depth: int = 4  # attention blocks
    heads: int = 8
    mlp: int = 2048
    window: int = 8  # latent frames that attention looks at, its own included
    omni: bool = True  # takes a first frame
    shuffle: bool = True  # go up by PixelShuffle; else nearest neighbour and a separable convolution
    groups: int = 32
    side: int = 256  # for example(), as is frames
    frames: int = 17

    @property
    def factor(self) -> int:
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def time_factor(self) -> int:
        return 2 ** len(self.halve)


# f_t x f_s x f_s: the reference network, and its kind at other compressions.
REFERENCE = Config()
FAST = Config(16, (128, 256, 384), (2, 2, 2), patch=2, flat=2, halve=(1, 2), depth=2, heads=6, mlp=1536)
FOUR = replace(REFERENCE, widths=(128, 256, 384, 512), blocks=(2, 2, 2, 2), patch=2, flat=2, halve=(2, 3))
PRESETS: dict[str, Config] = {
    "smoke": Config(
        8, (16, 24, 32, 48, 64), (1, 1, 1, 1, 1), depth=1, heads=4, mlp=256, groups=8, side=32, frames=9
    ),
    "scenes": Config(16, (32, 64, 96), (1, 2, 2), 2, 2, (1, 2), depth=1, heads=4, mlp=192, groups=8, side=64),
    "ablation": Config(
        16, (24, 48, 64), (1, 1, 1), 2, 2, (1, 2), depth=1, heads=4, mlp=128, groups=8, side=64, frames=9
    ),
    "4x8x8": FAST,
    "4x16x16_c16": replace(REFERENCE, channels=16),
    "4x16x16_c32": REFERENCE,
    "4x16x16_c64": replace(REFERENCE, channels=64),
    "4x16x16_c128": replace(REFERENCE, channels=128),
    "4x16x16_fast_c48": replace(FOUR, channels=48),
    "8x16x16": replace(FOUR, channels=16, halve=(1, 2, 3)),
    **{f"8x32x32_c{c}": replace(FOUR, channels=c, patch=4, flat=1, halve=(1, 2, 3)) for c in (64, 128, 256)},
    # for pictures alone
    "1x32x32": replace(REFERENCE, patch=2, flat=5, halve=(), window=1, omni=False, frames=1),
}


class Encoder(nn.Module):
    """(B, 3, T, H, W) -> (B, 2 C, T', H/f, W/f): means and log variances, side by side."""

    def __init__(self, c: Config):
        super().__init__()
        self.stem = Frames(nn.PixelUnshuffle(c.patch), nn.Conv2d(3 * c.patch**2, c.widths[0], 3, padding=1))
        self.levels = nn.ModuleList(Chain(*blocks(c, i)) for i in range(len(c.widths)))
        down: list[nn.Module] = []
        for i, width in enumerate(c.widths):
            time = [TimeDown(width)] if i in c.halve else []
            last = i + 1 == len(c.widths)
            down.append(Chain(*time, *([] if last else [Frames(Down(width, c.widths[i + 1]))])))
        self.down = nn.ModuleList(down)
        self.attend = CausalBlocks(c.widths[-1], c.depth, c.heads, c.mlp, c.window)
        self.norm = Frames(nn.GroupNorm(c.groups, c.widths[-1]), nn.SiLU())
        self.head = CausalConv(c.widths[-1], 2 * c.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for level, down in zip(self.levels, self.down):
            x = down(level(x))
        return self.head(self.norm(self.attend(x)))

    def stream(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        after: State = {}
        x = self.stem(x)
        for i in range(len(self.levels)):
            x = streamed(self, f"levels.{i}", x, state, after)
            x = streamed(self, f"down.{i}", x, state, after)
        for name in ("attend", "norm", "head"):
            x = streamed(self, name, x, state, after)
        return x, after

    def features(self, first: Tensor) -> list[Tensor]:
        """What every level makes of a first frame (B, 3, H, W): (B, width, 1, h, w) each, finest first."""
        x, found = self.stem(first[:, :, None]), []
        for level, down in zip(self.levels, self.down):
            found.append(level(x))
            x = down(found[-1])
        return found


class Decoder(nn.Module):
    """(B, C, T', h, w) -> (B, 3, T, H, W): the encoder's mirror image.

    ``hints``: features of the first frame, one per level, finest first; added to every frame of the level.
    """

    def __init__(self, c: Config):
        super().__init__()
        self.conv_in = CausalConv(c.channels, c.widths[-1])
        self.attend = CausalBlocks(c.widths[-1], c.depth, c.heads, c.mlp, c.window)
        up: list[nn.Module] = []
        for i, width in enumerate(c.widths):
            last = i + 1 == len(c.widths)
            space = [] if last else [Frames((Up if c.shuffle else UpNearest)(c.widths[i + 1], width))]
            up.append(Chain(*space, *([TimeUp(width)] if i in c.halve else [])))
        self.up = nn.ModuleList(up)
        self.levels = nn.ModuleList(Chain(*blocks(c, i)) for i in range(len(c.widths)))
        tail = nn.Conv2d(c.widths[0], 3 * c.patch**2, 3, padding=1)
        self.tail = Frames(nn.GroupNorm(c.groups, c.widths[0]), nn.SiLU(), tail, nn.PixelShuffle(c.patch))
        # last, so that the rest of a seeded network is the same without
        told = [nn.Conv2d(w, w, 1) for w in c.widths] if c.omni else []
        for layer in told:
            # so that at the start of training a decoder that is told is one that is not
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(cast(Tensor, layer.bias))
        self.inject = nn.ModuleList(Frames(layer) for layer in told)

    def forward(self, z: Tensor, hints: list[Tensor] | None = None, told: Tensor | None = None) -> Tensor:
        """``told`` (B,): 1 in the rows that get the hints, 0 in others; None: all."""
        added = self.added(hints, told)
        x = self.attend(self.conv_in(z))
        for i in reversed(range(len(self.levels))):
            x = self.up[i](x)
            x = self.levels[i](x + added[f"hint.{i}"] if added else x)
        return self.tail(x)

    def added(self, hints: list[Tensor] | None, told: Tensor | None) -> State:
        """What the levels add to their frames; as a state, because a stream remembers it."""
        made = [layer(hint) for layer, hint in zip(self.inject, hints or [])]
        return {
            f"hint.{i}": hint if told is None else hint * told.view(-1, 1, 1, 1, 1)
            for i, hint in enumerate(made)
        }

    def stream(
        self,
        z: Tensor,
        state: State | None = None,
        hints: list[Tensor] | None = None,
        told: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """``hints`` are given with the first chunk; the state remembers what came of them."""
        if state is None:
            added = self.added(hints, told)
        else:
            added = {k: v for k, v in state.items() if k.startswith("hint.")}
        after: State = dict(added)
        x = streamed(self, "conv_in", z, state, after)
        x = streamed(self, "attend", x, state, after)
        for i in reversed(range(len(self.levels))):
            x = streamed(self, f"up.{i}", x, state, after)
            x = streamed(self, f"levels.{i}", x + added[f"hint.{i}"] if added else x, state, after)
        return self.tail(x), after


def blocks(c: Config, level: int) -> list[nn.Module]:
    """The residual blocks of a resolution."""
    width, many = c.widths[level], range(c.blocks[level])
    if level < c.flat:
        return [Frames(*(ResBlock(width, width, c.groups) for _ in many))]
    return [CausalResBlock(width, c.groups) for _ in many]


class H3AE(nn.Module):
    scale: Tensor
    shift: Tensor

    def __init__(self, config: Config):
        super().__init__()
        check(config)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("scale", torch.ones(config.channels, 1, 1, 1))
        self.register_buffer("shift", torch.zeros(config.channels, 1, 1, 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the normalised latent; of a picture (B, 3, H, W) without a time axis."""
        fits(self.config, x)
        found = self.normalised(self.encoder(x if x.ndim == 5 else x[:, :, None]))
        return found if x.ndim == 5 else (found[0][:, :, 0], found[1][:, :, 0])

    def normalised(self, found: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = found.chunk(2, dim=1)
        return (mean - self.shift) * self.scale, logvar.clamp(-30, 20) + 2 * self.scale.log()

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, first: Tensor | None = None, told: Tensor | None = None) -> Tensor:
        """``first`` (B, 3, H, W): the first frame, known exactly; ``told`` (B,) 1 or 0: in which rows."""
        return self.decoded(z, self.hints(first, self.seen(z)), told)

    def decoded(self, z: Tensor, hints: list[Tensor] | None, told: Tensor | None = None) -> Tensor:
        x = self.decoder(self.raw(z if z.ndim == 5 else z[:, :, None]), hints, told)
        return x if z.ndim == 5 else x[:, :, 0]

    def raw(self, z: Tensor) -> Tensor:
        return z / self.scale + self.shift

    def seen(self, z: Tensor) -> tuple[int, ...]:
        """The shape (B, 3, H, W) of the frames that ``z`` becomes; ValueError if it is no latent."""
        c, shape = self.config, tuple(z.shape)
        if z.ndim not in (4, 5):
            expected = f"expected (B, {c.channels}, T, h, w), or of pictures (B, {c.channels}, h, w)"
            raise ValueError(f"latents of shape {shape}: {expected}")
        if shape[1] != c.channels:
            raise ValueError(f"latents have {shape[1]} channels, expected {c.channels}")
        return shape[0], 3, c.factor * shape[-2], c.factor * shape[-1]

    def hints(self, first: Tensor | None, shape: tuple[int, ...]) -> list[Tensor] | None:
        if first is None:
            return None
        if not self.config.omni:
            raise ValueError("this autoencoder takes no first frame (omni is off)")
        if tuple(first.shape) != shape:
            raise ValueError(f"a first frame of shape {tuple(first.shape)}, expected {shape}")
        return self.encoder.features(first)

    def stream_encode(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """One frame (B, 3, 1, H, W) first (or 1 + f_t k), then chunks of f_t frames (or a multiple)."""
        if x.ndim != 5:
            raise ValueError(f"a chunk of shape {tuple(x.shape)}: expected (B, 3, T, H, W)")
        fits(self.config, x if state is None else x[:, :, :1])
        if state is not None and x.shape[2] % self.config.time_factor:
            raise ValueError(
                f"a chunk of {x.shape[2]} frames: expected a multiple of {self.config.time_factor}"
            )
        found, state = self.encoder.stream(x, state)
        return self.normalised(found)[0], state

    def stream_decode(
        self,
        z: Tensor,
        state: State | None = None,
        first: Tensor | None = None,
        told: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """One latent frame (B, C, 1, h, w) first, with ``first`` if it is known; then any number."""
        shape = self.seen(z)
        if z.ndim != 5:
            raise ValueError(f"a chunk of shape {tuple(z.shape)}: expected (B, {z.shape[1]}, T, h, w)")
        hints = self.hints(first, shape) if state is None else None
        return self.decoder.stream(self.raw(z), state, hints, told)

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        # the first frame goes first, so that what a tap keeps of the encoder is the clip's
        hints = self.hints(first, (x.shape[0], 3, *x.shape[-2:]))
        return self.decoded(self.encode(x), hints)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set scale and shift so that the latents of ``x`` have zero mean and unit variance per channel."""
        clips = x if x.ndim == 5 else x[:, :, None]
        mean, variance = moments(lambda part: self.encoder(part).chunk(2, dim=1)[0], clips)
        self.shift.copy_(mean.view(-1, 1, 1, 1))
        self.scale.copy_(variance.rsqrt().view(-1, 1, 1, 1))

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Clips (B, 3, T, H, W) in [-1, 1], and their first frames if these are taken."""
        g, c = torch.Generator().manual_seed(0), self.config
        x = torch.rand(batch, 3, c.frames, c.side, c.side, generator=g).mul(2).sub(1).to(device)
        return (x, x[:, :, 0]) if c.omni else (x,)


def check(c: Config) -> None:
    levels = len(c.widths)
    if len(c.blocks) != levels:
        raise ValueError(f"{len(c.blocks)} numbers of blocks for {levels} widths")
    if wrong := [i for i in c.halve if not 0 <= i < levels]:
        raise ValueError(f"halve names resolution {wrong[0]}, there are {levels}")
    if len(set(c.halve)) < len(c.halve) or c.window < 1 or c.widths[-1] % c.heads:
        wrong_one = f"halve {c.halve}, window {c.window}, {c.heads} heads for width {c.widths[-1]}"
        raise ValueError(f"{wrong_one}: expected different levels, 1 or more, heads that divide the width")


def fits(c: Config, x: Tensor) -> None:
    """Refuse clips that cannot be encoded."""
    if x.ndim not in (4, 5) or x.shape[1] != 3:
        raise ValueError(f"expected clips (B, 3, T, H, W) or pictures (B, 3, H, W), got {tuple(x.shape)}")
    if x.ndim == 5 and (x.shape[2] - 1) % c.time_factor:
        raise ValueError(f"{x.shape[2]} frames: expected 1 + {c.time_factor} k (1, {1 + c.time_factor}, ...)")
    if x.shape[-2] % c.factor or x.shape[-1] % c.factor:
        raise ValueError(f"{x.shape[-2]} x {x.shape[-1]} pixels: sides must be multiples of {c.factor}")


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""

    def conv(a: int, b: int, volume: int) -> int:
        return a * b * volume + b

    levels = list(enumerate(c.widths))
    last, first, pixels = c.widths[-1], c.widths[0], 3 * c.patch**2
    residual = sum(c.blocks[i] * (2 * conv(w, w, 9 if i < c.flat else 27) + 4 * w) for i, w in levels)
    # two norms, q k v out, two norms of heads, the feed-forward
    attention = c.depth * (
        2 * last + 4 * (last * last + last) + 2 * (last // c.heads) + 2 * last * c.mlp + c.mlp + last
    )
    pairs = list(zip(c.widths, c.widths[1:]))
    encoder = conv(pixels, first, 9) + sum(conv(4 * a, b, 1) for a, b in pairs)
    encoder += sum(conv(c.widths[i], c.widths[i], 3) for i in c.halve)
    encoder += 2 * last + conv(last, 2 * c.channels, 27)
    decoder = conv(c.channels, last, 27) + 2 * first + conv(first, pixels, 9)
    decoder += sum(conv(b, 4 * a, 1) if c.shuffle else 10 * b + b * a + a for a, b in pairs)
    decoder += sum(conv(c.widths[i], 2 * c.widths[i], 3) for i in c.halve)
    decoder += sum(conv(w, w, 1) for w in c.widths) if c.omni else 0
    return encoder + decoder + 2 * (residual + attention)
