"""Laws of t for training, and the decreasing grids of t for sampling.

Laws (SD3, Esser et al. 2024, section 3.1), all on (0, 1) with t = 1 the noise:

    logit-normal    t = sigmoid(m + s z),  z ~ N(0, 1)
                    rho(t) = exp(-(logit t - m)^2 / (2 s^2)) / (s sqrt(2 pi) t (1 - t))
    mode            t = 1 - u - a (cos^2(pi u / 2) - 1 + u),  u ~ U(0, 1)
    cosmap          rho(t) = 2 / (pi (1 - 2 t + 2 t^2)), used as a weight on uniform t

Shift: the more pixels, the less the same t destroys, so large pictures need higher levels (SD3, section 5.3):

    t' = a t / (1 + (a - 1) t) = e^mu / (e^mu + 1/t - 1)        mu = ln a;  a = sqrt(ratio of pixel counts)

The same shift is applied to the drawn t in training and to the grid in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def logit_normal(
    shape: Sequence[int],
    generator: torch.Generator | None = None,
    mean: float = 0.0,
    std: float = 1.0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Logit-normal t of ``shape``, (B,) or (B, T), on the generator's device (or ``device`` without one)."""
    z = torch.randn(tuple(shape), generator=generator, device=generator.device if generator else device)
    return torch.sigmoid(mean + std * z)


def logit_normal_density(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """rho(t) of ``logit_normal``; 0 < t < 1."""
    z = (torch.logit(t) - mean) / std
    return torch.exp(-z.square() / 2) / (std * math.sqrt(2 * math.pi) * t * (1 - t))


# 1.29 is the default of diffusers' SD3 trainer.
def mode(shape: Sequence[int], generator: torch.Generator, scale: float = 1.29) -> Tensor:
    """Mode-law t of ``shape``; a positive ``scale`` favours the middle. -1 <= scale <= 2 / (pi - 2)."""
    u = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return 1 - u - scale * (torch.cos(math.pi * u / 2).square() - 1 + u)


def cosmap_weight(t: Tensor) -> Tensor:
    """The cosmap density at ``t``: a loss weight that makes uniform t follow the cosine schedule's law."""
    return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))


def shifted(t: Tensor, shift: float) -> Tensor:
    """``t`` moved towards the noise by ``shift`` > 1; the ends 0 and 1 stay. SD3 uses 3.0 for 1024 px."""
    return shift * t / (1 + (shift - 1) * t)


def shifted_exponential(t: Tensor, mu: float) -> Tensor:
    """The shift as FLUX writes it: ``shifted`` with mu = ln shift."""
    return shifted(t, math.exp(mu))


def dynamic_mu(tokens: int) -> float:
    """FLUX's mu for a picture of ``tokens`` latent tokens: linear through (256, 0.5) and (4096, 1.15)."""
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)


def grid(steps: int, shift: float = 1.0) -> Tensor:
    """The ``steps`` + 1 levels from 1 down to 0, evenly spaced and then shifted."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be positive, not {shift}")
    # float64: the last digits cost nothing here, and samplers round to the dtype of x anyway.
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def few_step(times: Sequence[float]) -> Tensor:
    """The levels at which a few-step student is called, such as (1, 0.75, 0.5, 0.25), and the final 0."""
    levels = [float(t) for t in times]
    if not levels:
        raise ValueError("times must name at least one level, such as [1.0]")
    if not all(0 < t <= 1 for t in levels):
        raise ValueError(f"times must lie in (0, 1] (the final 0 is added), not {levels}")
    if any(t <= s for t, s in pairwise(levels)):
        raise ValueError(f"times must decrease strictly, from noise to data, not {levels}")
    return torch.tensor([*levels, 0.0], dtype=torch.float64)
