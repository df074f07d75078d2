"""Exponential moving average of weights.

shadow <- d shadow + (1 - d) weights,   d = min(decay, (1 + step) / (10 + step))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .shard import split


class Ema:
    """Shadows of all trainable parameters of ``networks``; buffers follow the networks themselves."""

    def __init__(self, networks: Mapping[str, nn.Module], decay: float):
        self.decay = decay
        self.live = {
            f"{name}.{key}": p
            for name, net in networks.items()
            for key, p in net.named_parameters()
            if p.requires_grad
        }
        self.shadow = {key: p.detach().clone() for key, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        # what is split over processes and what is not cannot be in one call
        for kind in (True, False):
            keys = [k for k, v in self.shadow.items() if isinstance(v, DTensor) is kind]
            if keys:
                live = [self.live[k].detach() for k in keys]
                torch._foreach_lerp_([self.shadow[k] for k in keys], live, 1 - d)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the networks hold the averaged weights."""
        kept = {key: p.detach().clone() for key, p in self.live.items()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for key, p in self.live.items():
            p.copy_(values[key])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in self.shadow.items():
            value.copy_(split(state[key], value))
