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
        few = probes[name][:: max(1, len(probes[name]) // LEVELS)]
        inputs = [tuple(probe[key] for key in program.inputs) for probe in few]
        errors = sensitivity(program.module, inputs, choices, partial(seen, name))
        share = uniform(program.module, 16).bytes / whole
        found[name] = choose(program.module, errors, int(budget * share))
    return found


def count(made: Mapping[str, Program]) -> int:
    """Layers that ``plans`` will look at."""
    return sum(len(layers(p.module)) for p in made.values())
