"""Velocity matching: a changed copy of a denoiser learns to predict as the original does.

    x_t = (1 - t) x0 + t e,   t ~ logit-normal(0, 1), then shifted
    loss = mean || v(x_t, t, c) - v_original(x_t, t, c') ||^2

c and c' are the same captions, each read by its own text encoder; 10 % of the captions are emptied. Trained
are only the parameters that are given: biases and norms of a model whose weights were rounded, say. Source:
self-distillation after quantisation, as SnapGen++ (suppl.) does it; times and drop are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.flow import interpolate
from ..diffusion.times import logit_normal, shifted
from ..types import Batch, Denoiser
from .kd import Embed, emptied


class VelocityMatching:
    """``embed(batch) -> x0, cond`` for each of the two; batches carry captions."""

    def __init__(
        self,
        model: Denoiser,
        embed: Embed,
        original: Denoiser,
        embed_original: Embed,
        parameters: Sequence[nn.Parameter],
        drop: float = 0.1,
        shift: float = 1.0,
    ):
        self.model, self.embed, self.original, self.embed_original = model, embed, original, embed_original
        self.drop, self.shift = drop, shift
        self.players = {"denoiser": list(parameters)}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("denoiser",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        batch = emptied(batch, self.drop)
        with torch.no_grad():
            x0, cond = self.embed_original(batch)
            t = shifted(logit_normal((len(x0),), None, 0.0, 1.0, x0.device), self.shift)
            x = interpolate(x0, torch.randn_like(x0), t)
            wanted = self.original(x, t, cond)
        v = self.model(x, t, self.embed(batch)[1])
        yield {"loss": (v.float() - wanted.float()).square().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
