"""Frames through an autoencoder and back, in chunks: padded, tiled, streamed.

    way = Through(autoencoder, tile=1024)
    for x in way.chunks(frames, count):     x (T, 3, H, W)
        z = way.encode(x)                   (C, T', h, w)
        y = way.decode(z)                   (T, 3, H, W)

A picture autoencoder sees ``batch`` frames at a time. A video autoencoder with stream_encode and
stream_decode sees the first frame, then about ``batch`` at a time, so that memory does not grow with length;
one without them sees the whole clip at once. Sides that do not divide by the factor are padded with copies of
the last row and column, which are cut off again. Frames larger than ``tile`` go through in tiles
(autoencoders/tiling.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 4  # latent positions per side of a tile


class Tiles:
    """A streaming function on tiles: each has its own state; they come in the same order in every chunk.

    ``given(i)``: what tile ``i`` gets beside its first chunk.
    """

    def __init__(self, step: Callable[..., tuple[Tensor, Any]], given: Callable[[int], dict[str, Any]]):
        self.step, self.given = step, given
        self.states: list[Any] = []
        self.turn = 0

    def __call__(self, x: Tensor) -> Tensor:
        i, self.turn = self.turn, self.turn + 1
        if i < len(self.states):
            y, self.states[i] = self.step(x, self.states[i])
        else:
            y, state = self.step(x, None, **self.given(i))
            self.states.append(state)
        return y


class Through:
    def __init__(
        self,
        autoencoder: Any,
        tile: int = 1024,
        batch: int = 4,
        first: bool = False,
        device: Any = "cpu",
        dtype: Any = None,
    ):
        """``tile``: pixels, 0 for none. ``first``: tell the decoder the first frame. ``dtype`` computes."""
        import torch

        self.autoencoder, self.device = autoencoder.to(device), torch.device(device)
        self.dtype, self.batch, self.first = dtype or torch.float32, batch, first
        c = autoencoder.config
        self.factor, self.time = c.factor, getattr(c, "time_factor", 1)
        # a clip has 1 + period k frames
        self.period = getattr(c, "period", self.time)
        self.streams = hasattr(autoencoder, "stream_encode") and hasattr(autoencoder, "stream_decode")
        self.tile = tile // self.factor if tile else 2**30
        if self.tile < LEAST:
            raise ValueError(
                f"--tile {tile}: expected {LEAST * self.factor} pixels or more, or 0 for no tiles"
            )
        if first and not getattr(c, "omni", False):
            raise ValueError(f"--first: {type(autoencoder).__name__} takes no first frame")
        self.restart()

    def restart(self) -> None:
        """The next frames are another clip's."""
        self.functions: dict[str, Tiles] = {}
        self.known: list[Tensor] = []
        self.size: tuple[int, int] | None = None
        self.seconds = {"encode": 0.0, "decode": 0.0}

    def usable(self, count: int) -> int:
        """How many of ``count`` frames the autoencoder can take."""
        return count - (count - 1) % self.period

    def lengths(self, count: int, latent: bool = False) -> Iterator[int]:
        """Of the chunks that ``count`` frames, or latent frames, are cut into."""
        many = max(1, self.batch // self.time) * (1 if latent else self.time)
        if self.time > 1 and not self.streams:
            many = count
        elif self.time > 1:
            yield 1
            count -= 1
        for start in range(0, count, many):
            yield min(many, count - start)

    def chunks(self, frames: Iterable[Tensor], count: int) -> Iterator[Tensor]:
        """The first ``count`` frames (3, H, W), stacked to (T, 3, H, W), on the device."""
        import torch

        parts = iter(frames)
        for length in self.lengths(count):
            yield torch.stack(list(islice(parts, length))).to(self.device)

    def encode(self, x: Tensor) -> Tensor:
        """(T, 3, H, W) -> (C, T', h, w)."""
        from torch.nn import functional as F

        h, w = self.size = x.shape[-2], x.shape[-1]
        x = F.pad(x, (0, -w % self.factor, 0, -h % self.factor), mode="replicate")
        if self.first and not self.known:
            # what the tiles of a clip will see, in their order
            def keep(part: Tensor) -> Tensor:
                self.known.append(part)
                return part[..., :: self.factor, :: self.factor]

            self._tiled(keep, x[:1], enter=self.factor)
        return self._run("encode", x.transpose(0, 1), enter=self.factor)

    def decode(self, z: Tensor) -> Tensor:
        """(C, T', h, w) -> (T, 3, H, W) in [-1, 1], of the size that was encoded."""
        y = self._run("decode", z, leave=self.factor).transpose(0, 1)
        h, w = self.size or (y.shape[-2], y.shape[-1])
        return y[..., :h, :w].clamp(-1, 1)

    def _tiled(self, f: Callable[[Tensor], Tensor], x: Tensor, **scale: int) -> Tensor:
        from ..autoencoders.tiling import tiled

        return tiled(f, x, self.tile, self.tile // 4, **scale)

    def _run(self, name: str, x: Tensor, **scale: int) -> Tensor:
        """(C, T, H, W) -> (C', T', H', W')."""
        import torch

        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32),
        ):
            start = self._clock()
            if self.time == 1:
                y = self._tiled(getattr(self.autoencoder, name), x.transpose(0, 1), **scale).transpose(0, 1)
            else:
                y = self._tiled(self._of_clips(name), x[None], **scale)[0]
            self.seconds[name] += self._clock() - start
        return y.float()

    def _of_clips(self, name: str) -> Tiles:
        """Encoder or decoder, ready for the tiles of one more chunk."""
        if name not in self.functions:
            whole = getattr(self.autoencoder, name)
            step = getattr(self.autoencoder, f"stream_{name}", None)
            told = self.first and name == "decode"
            self.functions[name] = Tiles(
                step if step and self.streams else lambda x, state, **more: (whole(x, **more), state),
                lambda i: {"first": self.known[i]} if told else {},
            )
        self.functions[name].turn = 0
        return self.functions[name]

    def _clock(self) -> float:
        import torch

        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter()
