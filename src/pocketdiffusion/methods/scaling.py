"""Timestep-aware scaling: a teacher's losses at the size of the data's, weighed by time.

    S(L_task, L) = mean_i [ a(t_i) L_task,i + (1 - a(t_i)) sg[ L_task,i / (L_i + eps) ] L_i ]
    L_MD         = sum over levels S(L_task, L_level)                     SnapGen: output and feature
    L_KD         = S(L_task, L_out) + weight L_feat                       SnapGen++ (its eq. 8)
    constant     = L_task + sum over levels w_level L_level               for comparison

    rho(t)       = logit-normal(0, 1) density;   t as it was drawn, before any shift
    peaked       a = clamp(rho(t) / rho(1/2), 0.05, 0.95)
    cautious     a = normal CDF of rho(t)

The ratio is detached, so grad S = mean [a grad L_task + (1 - a) ratio grad L]: every level has the task's
size at every t, and no weight is left to tune. Prediction is easy in the middle of the range, where the
data decide, and hard at both ends, where the teacher does. Source: SnapGen (2024), whose a is Phi(rho(t));
Phi is not known to us and both forms are candidates. The clamp and eps = 1e-8 are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..diffusion.times import logit_normal_density

Trust = Callable[[Tensor], Tensor]  # t (B,) -> a (B,), the share of the data
Levels = Mapping[str, Tensor]  # "out", "feat": a teacher's losses (B,)
LOW, HIGH = 0.05, 0.95  # ours
EPS = 1e-8


def density(t: Tensor) -> Tensor:
    """rho(t) of the logit-normal(0, 1), 0 at both ends."""
    # the ends themselves have no logit; so near to them rho is below 1e-35
    return logit_normal_density(t.float().clamp(1e-6, 1 - 1e-6))


def relative(t: Tensor) -> Tensor:
    """rho(t) / rho(1/2): 1 in the middle, 0 at the ends."""
    return density(t) * math.sqrt(2 * math.pi) / 4


def peaked(t: Tensor) -> Tensor:
    return relative(t).clamp(LOW, HIGH)


def cautious(t: Tensor) -> Tensor:
    """Between 1/2 and 0.945: never less to the data than to the teacher."""
    return torch.special.ndtr(density(t))


TRUST: dict[str, Trust] = {"peaked": peaked, "cautious": cautious}


def balanced(task: Tensor, other: Tensor, a: Tensor) -> Tensor:
    """S of two losses (B,) with the data's share ``a`` (B,)."""
    ratio = (task / (other + EPS)).detach()
    return (a * task + (1 - a) * ratio * other).mean()


class Scaling(Protocol):
    """Task loss (B,), the teacher's losses, un-shifted levels t (B,) -> one loss."""

    def __call__(self, task: Tensor, levels: Levels, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class MultiLevel:
    """L_MD. The data's term comes once per level, as in the paper's sum."""

    trust: Trust = peaked

    def __call__(self, task: Tensor, levels: Levels, t: Tensor) -> Tensor:
        a = self.trust(t)
        return torch.stack([balanced(task, level, a) for level in levels.values()]).sum()


@dataclass(frozen=True)
class SingleLevel:
    """L_KD: the output inside S, features beside it. The weight of 1 is SnapGen++'s."""

    trust: Trust = peaked
    weight: float = 1.0

    def __call__(self, task: Tensor, levels: Levels, t: Tensor) -> Tensor:
        loss = balanced(task, levels["out"], self.trust(t))
        return loss + self.weight * levels["feat"].mean() if "feat" in levels else loss


@dataclass(frozen=True)
class Constant:
    """The same weights at every t; a level without one is left out."""

    weights: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, task: Tensor, levels: Levels, t: Tensor) -> Tensor:
        return task.mean() + sum(w * levels[name].mean() for name, w in self.weights.items())
