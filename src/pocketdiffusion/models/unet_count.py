"""Parameters and multiply-accumulates of a U-Net by part, from its config alone.

With C = width, D = width of the text, h = heads * head_dim, k = key-value heads * head_dim:

    self-attention   2 C h + 2 C k + C, and 2 C for the norm before it, 2 head_dim for those of q and k
    cross-attention  2 C h + 2 D k + C, and the same norms
    feed-forward     3 C f + 2 f + C, and 2 C
    residual block   conv(a, m) + conv(m, b) + temb m + m + 2 a + 2 m (+ a b + b where levels change)
    conv(a, b)       9 a + a + a b separable, 9 a b + b dense

MACs are counted as bench/cost.py counts them, and tested to be equal: all pairs in attention, no norms, no
biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .unet_config import Config, Slot, slots


class Part(NamedTuple):
    name: str
    parameters: int
    macs: int


def conv(a: int, b: int, separable: bool, places: int) -> tuple[int, int]:
    if separable:
        return 10 * a + a * b, (9 * a + a * b) * places
    return 9 * a * b + b, 9 * a * b * places


def residual(c: Config, i: int, slot: Slot, n: int) -> Iterator[Part]:
    """The ``i``-th residual block, on ``n`` positions."""
    assert isinstance(c.mid, tuple)
    a, b, m = sum(c.dims[level] for level in slot.enters), c.dims[slot.level], c.mid[i]
    yield Part("residual convolutions", *conv(a, m, c.separable, n))
    yield Part("residual convolutions", *conv(m, b, c.separable, n))
    yield Part("time projections", c.temb * m + m, c.temb * m)
    yield Part("norms", 2 * a + 2 * m, 0)
    if slot.enters != (slot.level,):
        yield Part("shortcuts", a * b + b, a * b * n)


def block(c: Config, i: int, level: int, n: int, tokens: int) -> Iterator[Part]:
    """The ``i``-th transformer block, on ``n`` positions and ``tokens`` of text."""
    assert isinstance(c.heads, tuple) and isinstance(c.cross_heads, tuple) and isinstance(c.mlp, tuple)
    d, source, norms = c.dims[level], c.context or c.text, 2 * c.head_dim if c.qk_norm else 0
    if c.self_attention[level]:
        h, k = c.heads[i] * c.head_dim, (c.kv_heads or c.heads[i]) * c.head_dim
        linear = 2 * d * h + 2 * d * k
        yield Part("self-attention", linear + 3 * d + norms, linear * n + 2 * n * n * h)
    if c.cross_attention[level]:
        h, k = c.cross_heads[i] * c.head_dim, (c.kv_heads or c.cross_heads[i]) * c.head_dim
        macs = 2 * d * h * n + 2 * source * k * tokens + 2 * n * tokens * h
        yield Part("cross-attention", 2 * d * h + 2 * source * k + 3 * d + norms, macs)
    f = c.mlp[i]
    yield Part("feed-forward", 3 * d * f + 2 * f + 3 * d, 3 * d * f * n)


def parts(c: Config, side: int, tokens: int) -> Iterator[Part]:
    """One after the other, some names more than once."""
    w, grid = c.temb, [(side >> level) ** 2 for level in range(len(c.dims))]
    yield Part("time", (c.features + w + 2) * w, (c.features + w) * w)
    if c.pooled:
        yield Part("pooled", (c.pooled + w + 2) * w, (c.pooled + w) * w)
    if c.context:
        yield Part("text projection", (c.text + 2) * c.context, c.text * c.context * tokens)
    first = c.dims[0]
    yield Part("first and last", *conv(c.channels, first, False, grid[0]))
    yield Part("first and last", *conv(first, c.channels, False, grid[0]))
    yield Part("norms", 2 * first, 0)
    for i, slot in enumerate(slots(c)):
        n, d = grid[slot.level], c.dims[slot.level]
        yield from residual(c, i, slot, n)
        if slot.transformer:
            yield Part("transformers in and out", 2 * d * d + 4 * d, 2 * d * d * n)
        for number in slot.blocks:
            yield from block(c, number, slot.level, n, tokens)
    for level, d in enumerate(c.dims):
        # a separable sampler has a bias at either convolution
        bias = d if c.separable_samplers else 0
        for name, at, there in (("down", level + 1, level < len(c.dims) - 1), ("up", level - 1, level > 0)):
            if there:
                parameters, macs = conv(d, d, c.separable_samplers, grid[at])
                yield Part(name, parameters + bias, macs)


def budget(config: Config, side: int | None = None, tokens: int = 77) -> dict[str, Part]:
    """Totals by name, for one latent of ``side`` (the config's own) and ``tokens`` of text."""
    c = config.resolved()
    found: dict[str, Part] = {}
    for name, parameters, macs in parts(c, side or c.side, tokens):
        old = found.get(name, Part(name, 0, 0))
        found[name] = Part(name, old.parameters + parameters, old.macs + macs)
    return found


def count(config: Config) -> int:
    """Number of parameters, from the config alone."""
    return sum(part.parameters for part in budget(config).values())


def macs(config: Config, side: int | None = None, tokens: int = 77) -> int:
    """Multiply-accumulates of one call, for one latent."""
    return sum(part.macs for part in budget(config, side, tokens).values())
