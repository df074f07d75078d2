"""Flow matching: learns the velocity of the straight path from data to noise.

    x_t = (1 - t) x0 + t e,   t ~ logit-normal(m, s), then shifted
    loss = mean || v(x_t, t, c) - (e - x0) ||^2

The condition is dropped (replaced by the empty prompt's) in 10 % of the rows, for guidance. Source: rectified
flow with SD3's time density (Esser et al. 2024); the spread of t and the shift are the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.flow import interpolate, velocity
from ..diffusion.times import logit_normal, shifted
from ..types import Batch, Cond, Denoiser

Embed = Callable[[Batch], tuple[Tensor, Cond]]


class FlowMatching:
    """``embed(batch) -> x0, cond``; ``null()`` the empty condition; ``parameters`` all that trains.

    A text encoder that trains with the denoiser belongs to the same player.
    """

    def __init__(
        self,
        model: Denoiser,
        embed: Embed,
        null: Callable[[], Cond],
        parameters: Sequence[nn.Parameter],
        drop: float = 0.1,
        mean: float = 0.0,
        spread: float = 1.0,
        shift: float = 1.0,
    ):
        self.model, self.embed, self.null = model, embed, null
        self.drop, self.mean, self.spread, self.shift = drop, mean, spread, shift
        self.players = {"denoiser": list(parameters)}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("denoiser",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        x0, cond = self.embed(batch)
        b, device = x0.shape[0], x0.device
        t = shifted(logit_normal((b,), None, self.mean, self.spread, device), self.shift)
        noise = torch.randn_like(x0)
        if self.drop:
            cond = cond.where(torch.rand(b, device=device) < self.drop, self.null())
        v = self.model(interpolate(x0, noise, t), t, cond)
        yield {"loss": (v.float() - velocity(x0, noise)).square().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
