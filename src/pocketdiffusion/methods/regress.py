"""Trains a network to say how many things of every shape and colour there are.

n_sc = number of things of shape s and colour c,  m_sc = network(x)_sc
loss = mean over pictures of sum over s, c of  h(m_sc - n_sc) + m_sc - n_sc log m_sc
h(d) = d^2 / (2 b) within b, |d| - b / 2 beyond

h counts errors alike whether one thing is there or nine, since an exact count is asked for; alone it ends at
nothing anywhere, which is right for nearly all s and c. The rest is a Poisson likelihood, which never lets a
thing that is there have none. Both together, and b, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Batch, Instance

BEND = 0.1  # b


def pairs(truth: Sequence[Sequence[Instance]], shapes: Sequence[str], colours: Sequence[str]) -> Tensor:
    """(B, shapes, colours)"""
    found = torch.zeros(len(truth), len(shapes), len(colours))
    for row, things in zip(found, truth):
        for thing in things:
            row[shapes.index(thing.shape), colours.index(thing.colour)] += 1
    return found


class Regress:
    """``network``: pictures -> numbers (B, shapes, colours)."""

    def __init__(self, network: nn.Module, shapes: Sequence[str], colours: Sequence[str]):
        self.network, self.shapes, self.colours = network, tuple(shapes), tuple(colours)
        self.players = {"network": [p for p in network.parameters() if p.requires_grad]}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("network",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        if batch.truth is None:
            raise ValueError("counting needs data with ground truth (Batch.truth)")
        target = pairs(batch.truth, self.shapes, self.colours).to(batch.x.device)
        found = self.network(batch.x).float()
        near = F.smooth_l1_loss(found, target, reduction="none", beta=BEND)
        likely = F.poisson_nll_loss(found, target, log_input=False, reduction="none")
        loss = (near + likely).sum((1, 2)).mean()
        right = (found.round() == target).all(-1).all(-1).float().mean()
        yield {"loss": loss, "right": right}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
