"""Hooks that stop a run which has collapsed, and keep the last checkpoint before it.

    watch = Watch("accuracy", least("discriminator/accuracy_real", "discriminator/accuracy_fake"), 0.02, 0.98)
    fit(..., hooks=[every(20, watch)])

    least       smallest of what losses yielded in this step
    ratio       |a| / |b| of two of them
    diversity   mean over prompts of the mean distance |f(x) - f(y)| between pictures of one prompt
    drift       max over channels of |m_g - m_d| / s_d and of |ln(s_g / s_d)|, generated against data

A measure is a function of ``fit.State``; which limits are healthy is the recipe's to say. The newest
checkpoint up to the last healthy look is held (checkpoint.hold), so that rotation cannot drop it once
symptoms begin, and a resumed run still knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor

from . import checkpoint, spread
from .fit import State

Measure = Callable[[State], float]


class Collapsed(RuntimeError):
    """A measure stayed outside its limits; the message names the last healthy checkpoint."""


@dataclass
class Watch:
    """Raises Collapsed when ``measure`` was outside [``low``, ``high``] at ``patience`` looks in a row."""

    name: str
    measure: Measure
    low: float = -inf
    high: float = inf
    patience: int = 3
    sick: int = field(default=0, init=False)  # looks in a row
    healthy: int = field(default=-1, init=False)  # steps that were done at the last healthy look

    def __call__(self, state: State) -> None:
        value, done = self.measure(state), state.step + 1
        if state.log:
            state.log.scalars(done, {f"health/{self.name}": value})
        # one process that is sick stops all of them, or the others would wait for it
        well = not spread.any_of(not self.low <= value <= self.high)
        self.sick, self.healthy = (0, done) if well else (self.sick + 1, self.healthy)
        home = state.run.home
        if home and self.healthy > 0 and spread.rank() == 0:
            checkpoint.hold(home, self.healthy, self.name)
        if self.sick >= self.patience:
            limits = f"outside {self.low:g} to {self.high:g} at {self.sick} looks in a row"
            healthy = checkpoint.held(home, self.name) if home else None
            after = f"last healthy checkpoint: {healthy}, delete later ones to go on from it"
            none = "no checkpoint was saved before"
            said = f"{self.name} is {value:.4g}, {limits}; {after if healthy else none}"
            raise Collapsed(f"collapsed at step {done}: {said}")


def of(state: State, key: str) -> float:
    if key not in state.seen:
        raise ValueError(f"health: no loss {key!r}; this method yields {', '.join(sorted(state.seen))}")
    return float(state.seen[key])


def least(*keys: str) -> Measure:
    """The smallest of the losses ``keys``, which are named player/loss.

    Of a discriminator's two accuracies it nears 1 when that has won, and 0 when it says one thing of all.
    """
    return lambda state: min(of(state, key) for key in keys)


def ratio(above: str, below: str) -> Measure:
    """How many times the size of one loss another one has."""
    return lambda state: abs(of(state, above)) / max(abs(of(state, below)), 1e-12)


def pairwise(features: Tensor, per: int) -> float:
    """Mean distance between rows (N, D) of the same ``per`` consecutive ones."""
    groups = features.float().flatten(1).unflatten(0, (-1, per))
    return float(torch.cdist(groups, groups).sum() / (len(groups) * per * (per - 1)))


def diversity(sample: Callable[[], Tensor], features: Callable[[Tensor], Tensor], per: int) -> Measure:
    """Of ``sample()``: pictures of fixed prompts and noises, ``per`` consecutive ones of each prompt."""

    @torch.no_grad()
    def measure(_: State) -> float:
        return pairwise(features(sample()), per)

    return measure


def channels(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel of (B, C, ...), each (C,)."""
    rows = z.float().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.std(1)


def drift(sample: Callable[[], Tensor], data: Tensor) -> Measure:
    """Of the latents ``sample()`` against those of ``data``, both (B, C, ...), in standard deviations."""
    mean, std = channels(data)

    @torch.no_grad()
    def measure(_: State) -> float:
        middle, wide = channels(sample().to(mean))
        return float(torch.maximum((middle - mean).abs() / std, (wide / std).log().abs()).max())

    return measure
