"""A budget in bytes for a whole pipeline -> a plan of bits for each of its programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from ..compress.bits import Plan, choose, sensitivity, uniform
from ..compress.round import layers
from .program import Program

LEVELS = 6  # probes per program: noise levels from all along a trajectory


def plans(
    made: Mapping[str, Program],
    probes: Mapping[str, Sequence[Mapping[str, Tensor]]],
    budget: int,
    choices: Sequence[int] = (8, 4),
    seen: Callable[[str, str], None] = lambda program, layer: None,
) -> dict[str, Plan]:
    """One plan per program; ``budget`` bytes of weights are shared out in proportion to their 16-bit sizes.

    ``seen`` is told each layer as it is done. ValueError when the coarsest choice does not fit.
    """
    whole = sum(uniform(p.module, 16).bytes for p in made.values())
    found = {}
    for name, program in made.items():
        inputs = [tuple(probe[key] for key in program.inputs) for probe in spread(probes[name])]
        errors = sensitivity(program.module, inputs, choices, partial(seen, name))
        share = uniform(program.module, 16).bytes / whole
        try:
            found[name] = choose(program.module, errors, int(budget * share))
        except ValueError as error:
            raise ValueError(f"{name} gets {share:.0%} of the size: {error}") from None
    return found


def spread(probes: Sequence[Mapping[str, Tensor]]) -> list[Mapping[str, Tensor]]:
    """``LEVELS`` of them from the first to the last: pictures follow each other, each through all levels."""
    count = min(LEVELS, len(probes))
    return [probes[round(i * (len(probes) - 1) / max(1, count - 1))] for i in range(count)]


def count(made: Mapping[str, Program]) -> int:
    """Layers that ``plans`` will look at."""
    return sum(len(layers(p.module)) for p in made.values())
