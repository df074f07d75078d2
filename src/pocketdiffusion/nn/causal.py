"""Causal layers for clips: a frame sees itself and earlier ones, whole or as a stream.

    forward(x (B, C, T, H, W)) -> y         a whole clip; what comes before it is its first frame, repeated
    stream(x, state=None) -> y, state       the same in chunks: one frame first, with no state, then more

A state is a flat dict of tensors whose shapes do not change from chunk to chunk. After the first frame, a
chunk has as many frames as time is halved over (or a multiple), so T frames are 1 + f k. Layers of one frame
have no state. ``forward`` calls every part as a module, so that taps see it (nn/taps.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]


def inner(state: State | None, name: str) -> State | None:
    """The part of ``state`` that belongs to the layer called ``name``."""
    if state is None:
        return None
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def streamed(
    layers: nn.Module, name: str, x: Tensor, state: State | None, after: State, *more: Any
) -> Tensor:
    """One chunk through the child ``name`` of ``layers``; its new state goes into ``after``."""
    layer: Any = layers.get_submodule(name)
    if not hasattr(layer, "stream"):
        return layer(x)
    y, found = layer.stream(x, inner(state, name), *more)
    after.update({f"{name}.{k}": v for k, v in found.items()})
    return y


class Chain(nn.Sequential):
    """Layers one after the other, some with memory and some without."""

    def stream(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        after: State = {}
        for name, _ in self.named_children():
            x = streamed(self, name, x, state, after)
        return x, after


class Frames(nn.Sequential):
    """Layers for pictures, on every frame by itself."""

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.shape[0], x.shape[2]
        y = super().forward(x.transpose(1, 2).flatten(0, 1))  # (B T, C, H, W)
        return y.unflatten(0, (b, t)).transpose(1, 2)


class CausalConv(nn.Module):
    """A 3-D convolution that looks back in time; zero padding in space, ``stride`` in time."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: int = 1):
        super().__init__()
        t, h, w = kernel
        self.kernel, self.stride = t, stride
        self.conv = nn.Conv3d(channels, out, kernel, (stride, 1, 1), (0, h // 2, w // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.stream(x)[0]

    def stream(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        before = x[:, :, :1].expand(-1, -1, self.kernel - 1, -1, -1) if state is None else state["past"]
        x = torch.cat([before, x], 2)
        # what the next output needs of the frames that are here
        return self.conv(x), {"past": x[:, :, x.shape[2] - (self.kernel - self.stride) :]}


class CausalResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with 3 x 3 x 3 causal convolutions.

    Statistics of the norms are per frame: those of a clip would let the future leak into the past.
    """

    def __init__(self, channels: int, groups: int = 8):
        super().__init__()
        self.norm1 = Frames(nn.GroupNorm(groups, channels), nn.SiLU())
        self.conv1 = CausalConv(channels, channels)
        self.norm2 = Frames(nn.GroupNorm(groups, channels), nn.SiLU())
        self.conv2 = CausalConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm2(self.conv1(self.norm1(x))))

    def stream(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        after: State = {}
        h = x
        for name in ("norm1", "conv1", "norm2", "conv2"):
            h = streamed(self, name, h, state, after)
        return x + h, after


class TimeDown(CausalConv):
    """Halve the frame rate, 1 + 2k frames -> 1 + k, by a convolution of three frames in steps of two."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, (3, 1, 1), 2)


class TimeUp(CausalConv):
    """Double the frame rate, 1 + k frames -> 1 + 2k: twice the channels, unfolded into two frames each.

    The very first frame becomes one frame only: the first of its two is dropped.
    """

    def __init__(self, channels: int):
        super().__init__(channels, 2 * channels, (3, 1, 1))

    def stream(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        y, after = super().stream(x, state)
        y = y.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # (B, C, 2 T, H, W)
        return y[:, :, 1:] if state is None else y, after


def chunks(frames: int, length: int) -> list[slice]:
    """1 + k frames as the chunks of a stream: the first alone, then ``length`` at a time."""
    return [slice(0, 1), *(slice(i, min(i + length, frames)) for i in range(1, frames, length))]


def pad_past(x: Tensor, length: int) -> Tensor:
    """The last ``length`` tokens of (..., N, D), with zeros in front of too few."""
    return F.pad(x, (0, 0, length - x.shape[-2], 0))
