"""Cond, Batch, Instance and the protocols that every part of the house speaks. Start here.

Shapes: pictures (B, C, H, W), videos (B, C, T, H, W), tokens (B, N, D). Pixels in [-1, 1].
Time: x_t = (1 - t) x0 + t e, t = 0 data, t = 1 noise; a Denoiser predicts v = e - x0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree


@dataclass(frozen=True)
class Cond:
    """What a denoiser is conditioned on. ``mask`` is True where a token is real."""

    tokens: Tensor  # (B, N, D)
    mask: Tensor  # (B, N) bool
    pooled: Tensor | None = None  # (B, P)
    label: Tensor | None = None  # (B,) integer
    image: Tensor | None = None  # (B, C, ...) latent of a conditioning picture

    def map(self, f: Callable[[Tensor], Tensor]) -> Cond:
        parts = {k.name: getattr(self, k.name) for k in fields(self)}
        done: Any = {k: None if v is None else f(v) for k, v in parts.items()}
        return Cond(**done)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Cond:
        """Move to ``device``; ``dtype`` applies to floating-point parts only."""
        return self.map(lambda v: v.to(device=device, dtype=dtype if v.is_floating_point() else None))

    def pad(self, length: int) -> Cond:
        """The same condition with its tokens padded (and masked) to ``length``."""
        more = length - self.tokens.shape[1]
        return replace(self, tokens=F.pad(self.tokens, (0, 0, 0, more)), mask=F.pad(self.mask, (0, more)))

    def expand(self, batch: int) -> Cond:
        """A condition of one row repeated to ``batch`` rows."""
        return self.map(lambda v: v.expand(batch, *v.shape[1:]))

    @staticmethod
    def cat(*conds: Cond) -> Cond:
        """Stack along the batch; token sequences of different length are padded."""
        conds = tuple(c.pad(max(c.tokens.shape[1] for c in conds)) for c in conds)
        parts = {k.name: [getattr(c, k.name) for c in conds] for k in fields(Cond)}
        done: Any = {k: None if v[0] is None else torch.cat(v) for k, v in parts.items()}
        return Cond(**done)

    def where(self, drop: Tensor, null: Cond) -> Cond:
        """``null`` in the rows where ``drop`` (B,) is True, ``self`` elsewhere. ``null`` has one row or B."""
        length = max(self.tokens.shape[1], null.tokens.shape[1])
        a, b = self.pad(length), null.pad(length)

        def pick(x: Tensor | None, y: Tensor | None) -> Tensor | None:
            return None if x is None or y is None else torch.where(drop.view(-1, *[1] * (x.ndim - 1)), y, x)

        done: Any = {k.name: pick(getattr(a, k.name), getattr(b, k.name)) for k in fields(Cond)}
        return Cond(**done)


_pytree.register_dataclass(Cond, field_names=[f.name for f in fields(Cond)])


@dataclass(frozen=True)
class Instance:
    """One thing in a picture: ground truth of a scene, or what a detector saw. Units are pixels."""

    shape: str
    colour: str
    texture: str = "plain"
    x: float = 0.0  # centre, from the left
    y: float = 0.0  # centre, from the top
    radius: float = 0.0
    mask: Tensor | None = None  # (H, W) bool
    score: float = 1.0


@dataclass(frozen=True)
class Batch:
    """``x``: pixels or cached latents. ``text``: captions or cached embeddings. ``truth``: what is shown."""

    x: Tensor
    text: Sequence[str] | Cond
    truth: Sequence[Sequence[Instance]] | None = None


class Denoiser(Protocol):
    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


class TextEncoder(Protocol):
    def embed(self, texts: Sequence[str] | Cond) -> Cond: ...


class Autoencoder(Protocol):
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, z: Tensor, first: Tensor | None = None) -> Tensor: ...


class Detector(Protocol):
    def __call__(self, pictures: Tensor) -> list[list[Instance]]: ...


class Method(Protocol):
    """``players``: exactly the trainable parameters, by role. See ``train.fit``."""

    players: dict[str, list[nn.Parameter]]

    def turn(self, step: int) -> tuple[str, ...]: ...
    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
