"""The one source of sampling noise: Philox4x32-10 and Box-Muller, the same numbers on every machine.

A generator with a counter instead of a state (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3"): each element is a function of (seed, image, step, position) alone, so a picture's noise does not depend
on the batch around it, the device or the runtime. numpy only. What a port to another language has to do:

    key     = (seed mod 2^32, seed div 2^32)                       seed < 2^64
    counter = (b, step, image, 0)                                  b = 0, 1, 2, ...: the block
    (w0, w1, w2, w3) = philox4x32(counter, key)
    u_i     = (w_i + 0.5) 2^-32                                    in (0, 1), float64
    z_4b    = sqrt(-2 ln u_0) cos(2 pi u_1)      z_4b+1 = sqrt(-2 ln u_0) sin(2 pi u_1)
    z_4b+2  = sqrt(-2 ln u_2) cos(2 pi u_3)      z_4b+3 = sqrt(-2 ln u_2) sin(2 pi u_3)

z fills the shape in row-major order, rounded to float32 at the very end. The words are exact everywhere. ln,
cos and sin may differ in the last places of a float64 between libraries; the rounding hides it but for about
one element in 10^8, which then differs by one unit in the last place of a float32.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Multipliers and key increments of Philox4x32 (Salmon et al. 2011; Random123, philox.h).
MULTIPLY = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
BUMP = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
ROUNDS = 10

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Four random words (..., 4) for each ``counter`` (..., 4) under ``key`` (..., 2), all below 2^32."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = np.moveaxis(np.asarray(key, dtype=np.uint64), -1, 0)
    for _ in range(ROUNDS):
        # A product of two 32-bit words fits 64 bits, so nothing here ever wraps.
        a, b = MULTIPLY[0] * c0, MULTIPLY[1] * c2
        c0, c1, c2, c3 = (b >> HALF) ^ c1 ^ k0, b & LOW, (a >> HALF) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + BUMP[0]) & LOW, (k1 + BUMP[1]) & LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def normal(seed: int, image: int, step: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of ``shape`` for one picture of a seed.

    ``image`` is the picture's number under that seed. ``step`` is 0 for the noise that sampling starts from,
    k for the fresh noise of the k-th later level. Raises ValueError for a number out of range.
    """
    seed = _number("seed", seed, 0, 2**64)
    image, step = _number("image", image, 0, 2**32), _number("step", step, 0, 2**32)
    sizes = tuple(_number("each size in shape", n, 1, 2**32) for n in shape)

    count = math.prod(sizes)
    blocks = -(-count // 4)
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0], counter[:, 1], counter[:, 2] = np.arange(blocks), step, image
    words = philox4x32(counter, (seed % 2**32, seed // 2**32))

    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2.0 * np.log(u[:, 0::2])), 2.0 * np.pi * u[:, 1::2]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)  # (blocks, pair, cos | sin)
    return z.reshape(-1)[:count].reshape(sizes).astype(np.float32)


def _number(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, not {value!r}") from None
    if not low <= number < high:
        raise ValueError(f"{name} must be at least {low} and below 2^{high.bit_length() - 1}, not {number}")
    return number
