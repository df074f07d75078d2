"""Which width of an elastic model to run: the widest that is fast enough by a table of costs.

    name, ms = widest(supernet.shapes, Costs.load("costs.json"), budget=40.0)

``shapes``: name -> plain model, narrowest first, on meta as well as with weights. The table has a row for
each of them as a whole, as `pocket costs elastic` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .costs import Costs
from .ops import calls


def times(shapes: Mapping[str, Any], table: Costs, precision: str, device: str | None) -> dict[str, float]:
    """Milliseconds of one call of every width. ValueError where the table lacks a row."""
    found = {}
    for name, model in shapes.items():
        inputs = model.example(1, next(model.parameters()).device)
        found[name] = table.total(calls(model, inputs, [""]), precision, device)[0]
    return found


def widest(
    shapes: Mapping[str, Any],
    table: Costs,
    budget: float,
    precision: str = "fp32",
    device: str | None = None,
) -> tuple[str, dict[str, float]]:
    """The last width that takes at most ``budget`` ms per call, and what each of them takes."""
    found = times(shapes, table, precision, device)
    fitting = [name for name, ms in found.items() if ms <= budget]
    if not fitting:
        fastest = min(found, key=lambda name: found[name])
        raise ValueError(f"no width takes {budget:g} ms or less; {fastest} takes {found[fastest]:.3g} ms")
    return fitting[-1], found
