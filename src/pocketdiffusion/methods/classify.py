"""Trains a network to count: how many things of every label a picture shows.

A label is a shape or a colour.

n_k  = min(most, number of things whose shape or colour is label k)
loss = mean over pictures and labels of -log softmax(network(x)_k)[n_k]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Batch, Instance


def counts(truth: Sequence[Sequence[Instance]], labels: Sequence[str], most: int) -> Tensor:
    """(B, labels) integers, at most ``most``."""
    kinds = [[kind for thing in things for kind in (thing.shape, thing.colour)] for things in truth]
    return torch.tensor([[min(most, names.count(label)) for label in labels] for names in kinds])


class Classify:
    """``network``: pictures -> logits (B, labels, most + 1)."""

    def __init__(self, network: nn.Module, labels: Sequence[str], most: int = 3):
        self.network, self.labels, self.most = network, tuple(labels), most
        self.players = {"network": [p for p in network.parameters() if p.requires_grad]}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("network",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        if batch.truth is None:
            raise ValueError("classification needs data with ground truth (Batch.truth)")
        target = counts(batch.truth, self.labels, self.most).to(batch.x.device)
        logits = self.network(batch.x).float()
        right = (logits.argmax(-1) == target).float().mean()
        yield {"loss": F.cross_entropy(logits.flatten(0, 1), target.flatten()), "right": right}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
