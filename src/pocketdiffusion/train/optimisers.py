"""Optimisers and learning-rate schedules with our defaults: AdamW, warm-up and cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

Schedule = Callable[[int], float]


def warmup_cosine(steps: int, warmup: int = 200, final: float = 0.02) -> Schedule:
    """step -> factor of the learning rate: linear up, cosine down to ``final``."""

    def factor(step: int) -> float:
        up = min(1.0, (step + 1) / max(1, warmup))
        progress = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
        return up * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return factor


def warmup_decay(steps: int, warmup: int = 200, decay: float = 0.3, final: float = 0.02) -> Schedule:
    """Linear up, constant, then linear down over the last ``decay`` share of the steps."""

    def factor(step: int) -> float:
        up = min(1.0, (step + 1) / max(1, warmup))
        down = min(1.0, max(0.0, (steps - step) / max(1.0, decay * steps)))
        return up * (final + (1 - final) * down)

    return factor


def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
) -> Optimizer:
    """AdamW; vectors and scalars (norms, biases, tables of one row) are not decayed."""
    matrices, rest = split(parameters)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas)


def split(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those with two or more dimensions, and the others."""
    every = list(parameters)
    return [p for p in every if p.ndim >= 2], [p for p in every if p.ndim < 2]
