"""Config and presets of the U-Net, the order of its parts, SnapGen's ablation as presets.

A slot is one residual block and the transformer that may follow it. Of three levels, two slots per level:

    down  0 0 / 1 1 / 2 2       middle  2 2       up  2 2 2 / 1 1 1 / 0 0 0

Skips are pushed after the first convolution, every slot on the way down and every downsampling (9 here); each
slot on the way up pops one and reads it beside its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..nn.residual import ACTIVATIONS

Width = int | tuple[int, ...]
RULES = ("in", "out", "max")


@dataclass(frozen=True)
class Config:
    """The last four widths follow from the rest while they are (); a model's own config has them in full."""

    channels: int = 16  # of the latent
    dims: tuple[int, ...] = (256, 512, 896)  # per level, finest first
    per_level: int = 2  # slots on a level on the way down; one more on the way up
    depth: tuple[int, ...] = (1, 2, 4)  # blocks per slot of a level; 0 = no transformer there
    self_attention: tuple[bool, ...] = (False, False, True)  # per level
    cross_attention: tuple[bool, ...] = (True, True, True)
    last_up: bool = True  # transformers on the way up at the finest level
    head_dim: int = 64
    kv_heads: int = 1  # multi-query; 0 = as many as heads
    qk_norm: bool = True
    rope: bool = True
    ff: int = 3  # hidden width of the feed-forward, in widths
    separable: bool = True  # convolutions of the residual blocks
    separable_samplers: bool = True
    expansion: int = 2  # of separable residual blocks: their inner width, in
    mid_rule: str = "out"  # widths of their output (out), input (in) or the larger (max)
    activation: str = "silu"
    groups: int = 32  # of the norms
    text: int = 2304  # width of cond.tokens
    context: int = 0  # width that a projection brings the tokens to; 0 = none
    pooled: int = 2048  # width of cond.pooled; 0 = not read
    temb: int = 1024  # width of the time embedding
    features: int = 256  # its sinusoids
    side: int = 128  # of the latent, for example()
    heads: Width = ()  # of self-attention, per block
    cross_heads: Width = ()  # per block
    mlp: Width = ()  # hidden width, per block
    mid: Width = ()  # inner width, per residual block
    without: tuple[int, ...] = ()  # numbers of the blocks that depth pruning took out

    def __post_init__(self) -> None:
        for name in ("depth", "self_attention", "cross_attention"):
            if (n := len(getattr(self, name))) != len(self.dims):
                raise ValueError(f"{name} has {n} entries for {len(self.dims)} levels")
        if self.mid_rule not in RULES:
            raise ValueError(f"mid_rule {self.mid_rule!r}: expected one of {', '.join(RULES)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}: expected one of {', '.join(ACTIVATIONS)}")

    @property
    def patch(self) -> int:
        """What the sides of a latent are multiples of."""
        return 2 ** (len(self.dims) - 1)

    def resolved(self) -> Config:
        """The same with all widths in full, one per block (0: no such branch) or residual block."""
        places = [s.level for s in slots(self) for _ in s.blocks]
        heads = [self.dims[level] // self.head_dim for level in places]
        rules = {
            "heads": [n * self.self_attention[level] for n, level in zip(heads, places)],
            "cross_heads": [n * self.cross_attention[level] for n, level in zip(heads, places)],
            "mlp": [self.ff * self.dims[level] for level in places],
            "mid": [self.inner(slot) for slot in slots(self)],
        }
        found: dict[str, Any] = {k: written(k, getattr(self, k), rule) for k, rule in rules.items()}
        return replace(self, **found)

    def inner(self, slot: Slot) -> int:
        """Inner width of a residual block by the rule."""
        enters, leaves = sum(self.dims[level] for level in slot.enters), self.dims[slot.level]
        if not self.separable:
            return leaves
        return self.expansion * {"in": enters, "out": leaves, "max": max(enters, leaves)}[self.mid_rule]

    def keep(self, kept: Sequence[int]) -> Config:
        """What is left when of the blocks only those with these numbers, ascending, stay."""
        c = self.resolved()
        assert not isinstance(c.mlp, int)
        there = [i for i in range(len(c.mlp) + len(c.without)) if i not in c.without]
        gone = set(there) - {there[i] for i in kept}
        widths: dict[str, Any] = {
            k: tuple(getattr(c, k)[i] for i in kept) for k in ("heads", "cross_heads", "mlp")
        }
        return replace(c, without=tuple(sorted({*c.without, *gone})), **widths)


class Slot(NamedTuple):
    level: int
    enters: tuple[int, ...]  # levels whose widths its input has side by side
    transformer: bool
    blocks: range  # numbers, in the model, of the transformer's blocks


def slots(c: Config) -> list[Slot]:
    """In the order in which they run."""
    found: list[Slot] = []
    first = number = before = 0

    def add(level: int, skip: tuple[int, ...] = (), transformer: bool = True) -> None:
        nonlocal first, number, before
        depth = c.depth[level] if transformer else 0
        stay = sum(i not in c.without for i in range(number, number + depth))
        found.append(Slot(level, (before, *skip), depth > 0, range(first, first + stay)))
        first, number, before = first + stay, number + depth, level

    levels, skips = range(len(c.dims)), [0]
    for level in levels:
        for _ in range(c.per_level):
            add(level)
            skips.append(level)
        if level != levels[-1]:
            skips.append(level)
    add(levels[-1])
    add(levels[-1], transformer=False)
    for level in reversed(levels):
        for _ in range(c.per_level + 1):
            add(level, (skips.pop(),), level > 0 or c.last_up)
    return found


def written(name: str, value: Width, rule: Sequence[int]) -> tuple[int, ...]:
    """A width per place: those given, or those of the rule."""
    if isinstance(value, int):
        return (value,) * len(rule)
    if value and len(value) != len(rule):
        raise ValueError(f"{name} has {len(value)} entries, expected {len(rule)}")
    return tuple(value) or tuple(rule)


def ladder(c: Config) -> dict[str, Config]:
    """SnapGen's design steps, each on top of the one before, on the sizes of ``c``.

    It begins at a thin SDXL (no transformer at the finest level, self-attention elsewhere). The inner widths
    follow the input from ``expanded`` on: only so are the published relative changes met.
    """
    first = replace(
        c,
        depth=(0, *c.depth[1:]),
        self_attention=(False, *[True] * (len(c.dims) - 1)),
        kv_heads=0,
        qk_norm=False,
        rope=False,
        ff=4,
        separable=False,
        separable_samplers=False,
    )
    steps: dict[str, dict[str, Any]] = {
        "thin_sdxl": {},
        "low_attention": {"self_attention": (*[False] * (len(c.dims) - 1), True)},
        "separable": {"separable": True, "separable_samplers": True, "expansion": 1, "mid_rule": "out"},
        "expanded": {"expansion": 2, "mid_rule": "in"},
        "ffn3": {"ff": 3},
        "mqa": {"kv_heads": 1},
        "early_cross": {"depth": c.depth},
        "qk_rope": {"qk_norm": True, "rope": True},
    }
    found: dict[str, Config] = {}
    for name, changes in steps.items():
        first = found[name] = replace(first, **changes)
    return found


SNAPGEN = Config()
# the ablation's own text: CLIP-L tokens and no pooled vector
ABLATION = replace(SNAPGEN, text=768, pooled=0)
PRESETS: dict[str, Config] = {
    "smoke": Config(
        channels=4,
        dims=(16, 24, 32),
        per_level=1,
        depth=(1, 1, 1),
        head_dim=8,
        groups=4,
        text=32,
        pooled=32,
        temb=32,
        features=32,
        side=8,
    ),
    # ours: 0.6 of the parameters of the scenes DiT, two levels, so that attention sees its 8 x 8 positions
    "scenes": Config(
        channels=4,
        dims=(32, 112),
        depth=(1, 2),
        self_attention=(False, True),
        cross_attention=(True, True),
        head_dim=16,
        groups=8,
        text=128,
        pooled=0,
        temb=128,
        features=128,
        side=16,
    ),
    "snapgen": SNAPGEN,
    "snapgen_imagenet": replace(SNAPGEN, text=768, pooled=768, side=32),
    "s_in": replace(SNAPGEN, mid_rule="in"),
    # sizes of public descendants; their details differ (DreamLite's levels without self-attention,
    # Mobile-VTON's layer norms of q and k)
    "dreamlite": replace(SNAPGEN, channels=4, text=2048, context=2304, pooled=0, separable_samplers=False),
    "mobile_vton": replace(SNAPGEN, mid_rule="in", text=4096, activation="hardswish"),
    **{f"ladder_{name}": config for name, config in ladder(ABLATION).items()},
}
