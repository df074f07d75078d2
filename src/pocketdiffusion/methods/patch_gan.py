"""Adversarial training of an autoencoder: a PatchGAN beside the other terms.

    discriminator   mean relu(1 - D(x)) + mean relu(1 + D(sg[y]))
    autoencoder     loss of Autoencode + weight * -mean D(y)        that from step ``start`` on

D learns from the first step, or from ``ahead`` steps before it is first listened to, so that it then knows
something.

D says of every patch of a picture (of every frame of a clip) whether it is real. Sources: Isola et al. 2017
for the network, Lim and Ye 2017 for the hinge, Esser et al. 2021 for its use in autoencoders; here with a
fixed weight instead of their adaptive one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Batch
from .autoencode import Autoencode, frames
from .consistency import constant


class PatchGAN:
    """``autoencode`` as it is, and a ``discriminator``: pictures (B, 3, H, W) -> logits (B, 1, h, w).

    ``ahead`` None: D learns from the first step.
    """

    def __init__(
        self,
        autoencode: Autoencode,
        discriminator: nn.Module,
        weight: float = 0.1,
        start: int = 0,
        ahead: int | None = None,
    ):
        self.autoencode, self.discriminator = autoencode, discriminator
        self.weight, self.start = weight, start
        self.begin = 0 if ahead is None else start - ahead
        self.players = {**autoencode.players, "discriminator": list(discriminator.parameters())}

    def turn(self, step: int) -> tuple[str, ...]:
        who = self.autoencode.turn(step)
        return (*who, "discriminator") if step >= self.begin else who

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        if player == "discriminator":
            with torch.no_grad():
                found = self.autoencode.run(batch.x)
            real = self.discriminator(frames(found.x))
            fake = self.discriminator(frames(found.y))
            loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            yield {"loss": loss, "real": real.mean(), "fake": fake.mean()}
            return
        found = self.autoencode.run(batch.x)
        parts = self.autoencode.parts(found)
        if self.autoencode.step >= self.start:
            with constant(self.discriminator):
                parts["gan"] = -self.discriminator(frames(found.y)).mean()
            parts["loss"] = parts["loss"] + self.weight * parts["gan"]
        yield parts

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
