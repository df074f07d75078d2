import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pocketdiffusion import noise

ONES = 0xFFFFFFFF
# Random123, kat_vectors, philox4x32 10.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_published_vectors(counter, key, words):
    assert tuple(noise.philox4x32(counter, key)) == words


def test_published_vectors_at_once():
    counters, keys, words = (np.array(column, np.uint32) for column in zip(*PUBLISHED, strict=True))
    assert np.array_equal(noise.philox4x32(counters, keys), words)


def naive_philox4x32(counter, key):
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & ONES, (p >> 32) ^ d ^ m, p & ONES
        k, m = (k + 0x9E3779B9) & ONES, (m + 0xBB67AE85) & ONES
    return a, b, c, d


def naive_normal(seed, image, step, count):
    """One element at a time in Python's own numbers, as a port to another language would write it."""
    z = []
    for block in range(-(-count // 4)):
        words = naive_philox4x32((block, step, image, 0), (seed % 2**32, seed // 2**32))
        u = [(w + 0.5) * 2.0**-32 for w in words]
        for i in (0, 2):
            radius, angle = math.sqrt(-2 * math.log(u[i])), 2 * math.pi * u[i + 1]
            z += [radius * math.cos(angle), radius * math.sin(angle)]
    return z[:count]


@pytest.mark.parametrize(
    ("seed", "image", "step"), [(0, 0, 0), (42, 3, 1), (2**64 - 1, 2**32 - 1, 2**32 - 1)]
)
def test_layout_is_the_documented_one(seed, image, step):
    z = noise.normal(seed, image, step, (3, 7, 11))
    naive = np.array(naive_normal(seed, image, step, 231), np.float32).reshape(3, 7, 11)
    assert z.dtype == np.float32 and z.shape == (3, 7, 11)
    np.testing.assert_array_max_ulp(z, naive, maxulp=1)


def test_values_are_frozen():
    """A change here changes the picture of every seed that anyone has noted down."""
    golden = [-0.0633281022, -0.850946844, -1.16633964, 0.709186971, 0.904206157, 0.221378371]
    np.testing.assert_allclose(noise.normal(2**40 + 7, 2, 3, (6,)), golden, rtol=1e-6)


def test_the_longer_shape_begins_with_the_shorter():
    long = noise.normal(1, 0, 0, (1000,))
    for count in (1, 2, 3, 4, 5, 997):
        np.testing.assert_array_max_ulp(noise.normal(1, 0, 0, (count,)), long[:count], maxulp=1)


def test_statistics():
    n = 400_000
    z = noise.normal(5, 0, 0, (n,)).astype(np.float64)
    # Moments of a standard normal with their standard errors: var 1, 2, 15, 96 over n.
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - moment) < 4.5 * math.sqrt(spread / n)
    below = [(z < q).mean() for q in (-1.959964, -0.674490, 0.0, 0.674490, 1.959964)]
    np.testing.assert_allclose(below, [0.025, 0.25, 0.5, 0.75, 0.975], atol=4.5 * 0.5 / math.sqrt(n))


def test_seeds_images_steps_and_positions_are_independent():
    n = 100_000
    z = [noise.normal(*at, (n,)) for at in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0)]]
    # Neighbours too: the two halves of a Box-Muller pair, the pairs of a block, and blocks.
    z += [np.roll(z[0], k) for k in (1, 2, 3, 4)]
    correlation = np.corrcoef(z) - np.eye(len(z))
    assert np.abs(correlation).max() < 5 / math.sqrt(n)
    squares = np.corrcoef(np.square(z)) - np.eye(len(z))
    assert np.abs(squares).max() < 5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((-1, 0, 0, (2,)), "seed must be at least 0 and below 2^64, not -1"),
        ((2**64, 0, 0, (2,)), "seed must be at least 0 and below 2^64"),
        ((1.5, 0, 0, (2,)), "seed must be an integer, not 1.5"),
        (("7", 0, 0, (2,)), "seed must be an integer, not '7'"),
        ((0, -1, 0, (2,)), "image must be at least 0 and below 2^32, not -1"),
        ((0, 0, 2**32, (2,)), "step must be at least 0 and below 2^32"),
        ((0, 0, 0, (2, 0)), "each size in shape must be at least 1"),
        ((0, 0, 0, (2.0,)), "each size in shape must be an integer"),
    ],
)
def test_bad_input_is_named(args, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        noise.normal(*args)


def test_importing_noise_does_not_load_torch():
    source = Path(noise.__file__).parents[1]
    code = "import sys, pocketdiffusion.noise; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(source)})
