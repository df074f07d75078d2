"""A wavelet loss: L1 between Haar sub-bands of a picture or clip and its reconstruction.

    pairs (a, b) -> low (a + b) / sqrt 2, high (a - b) / sqrt 2    along height, width and, in clips, time
    term = mean |haar(y) - haar(x)| over all sub-bands

LTX-Video trains with such a loss (space and time); of an odd number of frames the first is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .autoencode import Pass


def haar(x: Tensor, axes: Sequence[int]) -> Tensor:
    """One level along ``axes`` (from the end, even lengths); sub-bands on a new first axis. Keeps energy."""
    bands = x[None]
    for axis in axes:
        a, b = bands.unflatten(axis, (-1, 2)).unbind(axis)
        bands = torch.cat([a + b, a - b]) / 2**0.5
    return bands


def wavelet(found: Pass) -> Tensor:
    error, axes = found.y - found.x, [-2, -1]
    if error.ndim == 5 and error.shape[2] > 1:
        error, axes = error[:, :, error.shape[2] % 2 :], [-3, -2, -1]
    return haar(error, axes).abs().mean()
