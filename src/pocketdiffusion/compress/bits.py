"""How many bits each layer's weights get: a plan under a size budget, from measured errors.

    error(layer, b) = || f_b - f ||^2 / || f ||^2       f_b: the output with that layer alone at b bits

over inputs at several noise levels. Errors of different layers are taken to add up. Starting from everything
at its finest, the step with the least added error per byte saved is taken until the budget is met.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..disk import renamed
from .round import BITS, grid, layers, size

Errors = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Plan:
    """``bits`` by layer, with what they cost: bytes of weights and the predicted relative error (squared)."""

    bits: dict[str, int]
    bytes: int
    error: float

    def save(self, path: Path) -> None:
        with renamed(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        try:
            data = json.loads(path.read_text())
            plan = cls(**data)
            if not all(b in BITS for b in plan.bits.values()):
                raise ValueError(f"bits must be among {BITS}")
        except (OSError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable plan of bits ({error})") from None
        return plan


def uniform(module: nn.Module, bits: int) -> Plan:
    """Every layer at ``bits``."""
    found = layers(module)
    return Plan(dict.fromkeys(found, bits), sum(size(weight(m), bits) for m in found.values()), 0.0)


def fitting(module: nn.Module, bits: Mapping[str, int], name: str) -> dict[str, int]:
    """``bits`` if they name every layer of ``module`` and no other. ValueError otherwise."""
    if odd := sorted(set(bits) ^ set(layers(module))):
        raise ValueError(f"the plan of {name} is of another model: {odd[0]!r} is in one of them only")
    return dict(bits)


def weight(layer: nn.Module) -> Tensor:
    return layer.weight  # type: ignore[return-value]


@torch.no_grad()
def sensitivity(
    module: nn.Module,
    probes: Sequence[tuple[Tensor, ...]],
    choices: Sequence[int] = (8, 4),
    seen: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[int, float]]:
    """Layer -> bits -> relative squared error of ``module``'s first output over all ``probes``.

    The weights are changed and put back; ``seen`` is told each layer as it is done.
    """

    def outputs() -> list[Tensor]:
        found = [module(*probe) for probe in probes]
        return [y[0] if isinstance(y, tuple) else y for y in found]

    reference = outputs()
    power = sum(y.square().sum() for y in reference)
    errors: dict[str, dict[int, float]] = {}
    for name, layer in layers(module).items():
        kept = weight(layer).detach().clone()
        errors[name] = {16: 0.0}
        for bits in choices:
            weight(layer).copy_(grid(kept, bits))
            off = sum((y - r).square().sum() for y, r in zip(outputs(), reference))
            errors[name][bits] = float(off / power)
            weight(layer).copy_(kept)
        seen(name)
    return errors


def choose(module: nn.Module, errors: Errors, budget: int) -> Plan:
    """The plan whose weights fit ``budget`` bytes. ValueError when even the coarsest do not."""
    found = layers(module)
    options = {name: sorted(errors[name], reverse=True) for name in found}
    bits = {name: options[name][0] for name in found}
    total = sum(size(weight(m), bits[name]) for name, m in found.items())

    def price(name: str, lower: int) -> tuple[float, int]:
        """Added error per byte saved, and the bytes."""
        saved = size(weight(found[name]), bits[name]) - size(weight(found[name]), lower)
        added = max(0.0, errors[name][lower] - errors[name][bits[name]])
        return (added / saved if saved > 0 else float("inf")), saved

    while total > budget:
        steps = [(price(n, b), n, b) for n in found for b in options[n] if b < bits[n]]
        steps = [s for s in steps if s[0][1] > 0]
        if not steps:
            raise ValueError(f"a budget of {budget} bytes cannot be met: the coarsest plan takes {total}")
        (_, saved), name, lower = min(steps)
        bits[name] = lower
        total -= saved
    return Plan(bits, total, sum(errors[n][b] for n, b in bits.items()))


def table(module: nn.Module, plan: Plan, errors: Errors | None = None) -> list[dict[str, object]]:
    """Rows to print: layer, weights, bits, bytes and, where measured, the error at each choice."""
    rows: list[dict[str, object]] = []
    for name, layer in layers(module).items():
        w = weight(layer)
        row: dict[str, object] = {"layer": name, "weights": w.numel(), "bits": plan.bits[name]}
        row["bytes"] = size(w, plan.bits[name])
        for b, e in sorted((errors or {}).get(name, {}).items()):
            if b < 16:
                row[f"error at {b}"] = e**0.5
        rows.append(row)
    return rows
