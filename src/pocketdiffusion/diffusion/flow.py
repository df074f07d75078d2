"""The one path used here, and every conversion that follows from it.

    x_t   = (1 - t) x0 + t e        e ~ N(0, I);  t = 0 is data, t = 1 is noise
    v     = dx_t/dt = e - x0        what every Denoiser predicts
    x0    = x_t - t v
    e     = x_t + (1 - t) v
    v     = (x_t - x0) / t
    score = grad log p_t(x_t) = -e / t
    snr   = ((1 - t) / t)^2

The score of two models at the same (x_t, t) therefore differs by

    s_a - s_b = -(1 - t) (v_a - v_b) / t = (1 - t) (x0_a - x0_b) / t^2

Foreign conventions (variance preserving, variance exploding, t = 1 at the data) are converted in teachers/.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """``t`` as it multiplies ``x``: (B,), or (B, T) where the frames of a video carry their own level."""
    frames = t.shape[1:]
    lead = (len(t), 1, *frames) if frames else (len(t),)
    return t.to(x).reshape(*lead, *[1] * (x.ndim - len(lead)))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t, the point of the path at ``t``; exactly x0 at 0 and the noise at 1."""
    t = expand(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """v of a known pair: the target of training, the same at every t."""
    return noise - x0


def to_x0(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return x - expand(t, x) * v


def to_noise(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return x + (1 - expand(t, x)) * v


def to_v(x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The velocity that predicts ``x0`` from ``x``; t > 0."""
    return (x - x0) / expand(t, x)


def score(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The gradient of the log density at ``x``; t > 0."""
    return -to_noise(x, v, t) / expand(t, x)


def snr(t: Tensor) -> Tensor:
    """Signal-to-noise ratio of the path in powers, for data of unit variance; infinite at t = 0."""
    return torch.square((1 - t) / t)
