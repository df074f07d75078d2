"""Named weight axes: one table per model, from which pruning and extraction follow.

A model lists, for every parameter, one word per dimension:

    AXES = {"blocks.*.attn.q.weight": "heads*head_dim dim", "blocks.*.mlp.up.weight": "mlp dim", ...}

``*`` in a name stands for a block's number; ``3*heads*head_dim`` is a product, outermost factor first;
``a+b`` a concatenation. A factor is a number, or a field of the model's Config (an int, or a tuple with one
entry per block). ``dims.2`` is entry 2 of a tuple, whatever the block. A word that is no field is fixed and
takes its size from the weight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

# axis -> indices, or one list of indices per entry of a tuple
Keep = Mapping[str, Sequence[int] | Sequence[Sequence[int]]]


def find(axes: Mapping[str, str], name: str) -> tuple[list[str], int | None]:
    """The words of a parameter's dimensions, and the number of the block it is in."""
    if name in axes:
        return axes[name].split(), None
    for pattern, words in axes.items():
        if match := re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)"), name):
            return words.split(), int(match[1]) if match.groups() else None
    raise KeyError(f"no axes for parameter {name!r}")


def entry(factor: str, block: int | None) -> tuple[str, int]:
    """The axis that a factor names, and which entry of it is meant where it is a tuple."""
    axis, _, number = factor.partition(".")
    return axis, int(number) if number else block or 0


def width(config: Any, factor: str, block: int | None) -> int | None:
    """Size of one factor, None when it is no field of the config."""
    if factor.isdigit():
        return int(factor)
    axis, i = entry(factor, block)
    value = getattr(config, axis, None)
    return value[i] if isinstance(value, tuple) else value


def chosen(word: str, config: Any, block: int | None, keep: Keep, size: int) -> Tensor:
    """Which of the ``size`` entries along a dimension remain."""
    parts, offset = [], 0
    for term in word.split("+"):
        factors = term.split("*")
        sizes = [width(config, f, block) or size for f in factors]
        index = torch.arange(torch.Size(sizes).numel()).reshape(sizes)
        for d, factor in enumerate(factors):
            axis, i = entry(factor, block)
            if axis in keep:
                wanted = keep[axis]
                rows = wanted[i] if wanted and not isinstance(wanted[0], int) else wanted
                index = index.index_select(d, torch.as_tensor(rows))
        parts.append(index.flatten() + offset)
        offset += torch.Size(sizes).numel()
    assert offset == size, f"{word!r} says {offset}, the weight has {size}"
    return torch.cat(parts)


def keep_axes(model: nn.Module, keep: Keep) -> nn.Module:
    """A plain, smaller model of the same class that computes with the kept entries only."""
    config: Any = model.config
    axes: Any = model.AXES
    named = {entry(f, None)[0] for words in axes.values() for f in re.split(r"[ *+]", words)}
    for axis in keep:
        if axis not in named or not hasattr(config, axis):
            raise ValueError(f"{type(model).__name__} has no axis {axis!r}")
    state = {}
    for name, weight in model.state_dict().items():
        words, block = find(axes, name)
        for d, word in enumerate(words):
            index = chosen(word, config, block, keep, weight.shape[d])
            weight = weight.index_select(d, index.to(weight.device))
        state[name] = weight
    widths: dict[str, Any] = {
        axis: len(rows) if isinstance(rows[0], int) else tuple(len(r) for r in rows)  # type: ignore[arg-type]
        for axis, rows in keep.items()
    }
    small = type(model)(replace(config, **widths))
    small.load_state_dict(state)
    return small.to(next(model.parameters()).device)
