"""Widths of an elastic model: the widest that is fast enough, and files of one alone.

    name = widest(times(supernet.shapes, Costs.load("costs.json"), "fp32", None), budget=40.0)
    write(supernet, "small", Path("small.safetensors"))         norms, modulation, LoRA of one width
    adopt(supernet, read(Path("small.safetensors")), source)    into another copy of the same base

``shapes``: name -> plain model, narrowest first, on meta as well as with weights. The table has a row for
each of them as a whole, as `pocket costs elastic` writes it. A file of a width carries the hash of the full
network whose leading part it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.latents import rounded_hash
from ..disk import renamed, save_tensors
from .costs import Costs
from .ops import calls

FORMAT = "pocketdiffusion width 1"


@dataclass(frozen=True)
class Extras:
    """``base``: of the full network; ``rank`` and ``alpha`` of the LoRA, rank 0 if there is none;
    ``schedule``: how the width wants to be sampled, as its pipeline saved it.
    """

    name: str
    base: str
    rank: int
    alpha: float
    schedule: dict[str, Any]
    tensors: Mapping[str, Tensor]


def write(net: Any, name: str, path: Path, schedule: Mapping[str, Any]) -> None:
    net.config.plain(name)  # whether there is one
    told = {"format": FORMAT, "name": name, "base": rounded_hash(net.full.state_dict())}
    told |= {"rank": str(net.config.rank), "alpha": str(net.config.alpha)}
    told["schedule"] = json.dumps(dict(schedule))
    tensors = {n: value.detach().half().cpu().contiguous() for n, value in net.extras(name).items()}
    with renamed(path) as temporary:
        save_tensors(tensors, temporary, told)


def read(path: Path) -> Extras:
    """ValueError names a file that is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError(f"{path}: not a file of one width")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rank, alpha, schedule = int(told["rank"]), float(told["alpha"]), json.loads(told["schedule"])
        return Extras(told["name"], told["base"], rank, alpha, schedule, tensors)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a file of one width ({error})") from None


@torch.no_grad()
def adopt(net: Any, given: Extras, source: Any) -> None:
    """In place. ValueError if the file belongs to another base, or another LoRA."""
    own = rounded_hash(net.full.state_dict())
    if given.base != own:
        raise ValueError(
            f"{source}: width {given.name!r} belongs to base {given.base[:8]}, this is {own[:8]}"
        )
    there, lora = net.extras(given.name), (net.config.rank, net.config.alpha)
    if (given.rank, given.alpha) != lora and (given.rank or lora[0]):
        told = f"a LoRA of rank {given.rank}, alpha {given.alpha:g}"
        raise ValueError(f"{source}: {told}; the model has one of rank {lora[0]}, alpha {lora[1]:g}")
    shapes = [{n: tuple(v.shape) for n, v in found.items()} for found in (there, given.tensors)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{source}: does not hold what width {given.name!r} has for itself")
    for name, value in given.tensors.items():
        there[name].copy_(value)


def times(
    shapes: Mapping[str, Any], table: Costs, precision: str, device: str | None, batch: int = 1
) -> dict[str, float]:
    """Milliseconds of one call of every width, of ``batch`` rows. ValueError where the table lacks a row."""
    found = {}
    for name, model in shapes.items():
        inputs = model.example(batch, next(model.parameters()).device)
        found[name] = table.total(calls(model, inputs, [""]), precision, device)[0]
    return found


def widest(found: Mapping[str, float], budget: float) -> str:
    """Of the widths, with what a call of each takes, the last one that takes at most ``budget`` ms."""
    fitting = [name for name, ms in found.items() if ms <= budget]
    if not fitting:
        fastest = min(found, key=lambda name: found[name])
        raise ValueError(f"no width takes {budget:g} ms or less; {fastest} takes {found[fastest]:.3g} ms")
    return fitting[-1]
