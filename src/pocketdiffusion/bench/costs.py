"""Fills cost tables: every distinct block and branch of a model, measured alone on a runtime.

    table = fill(model, model.example(1), eager(threads=1))

A block gets the inputs that it really gets within the model. Equal ones are measured once. A runtime is a
name, a precision and a function ``measure(module, inputs) -> Measured``: eager torch is here, exporters are
plugged in by the command line. The sum over blocks is not the model: what lies between them is missing, and a
block alone keeps its weights in the cache. The row of the whole model says how far apart the two are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..compress.costs import Costs, Entry
from ..compress.ops import Call, Shapes, blocks, branches, calls
from ..device import precision
from .latency import Latency, latency


@dataclass(frozen=True)
class Measured:
    ms: float
    bytes: int  # of weights
    spread: tuple[float, float]
    contended: bool


@dataclass(frozen=True)
class Runtime:
    device: str  # the machine, the library and the number of threads: only equal ones compare
    precision: str
    measure: Callable[[nn.Module, Sequence[Any]], Measured]


def measured(timed: Latency, size: int) -> Measured:
    return Measured(timed.median, size, (timed.p10, timed.p90), timed.contended)


def machine(device: torch.device | None = None) -> str:
    """The processor's name."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def eager(
    device: torch.device | None = None, dtype: str = "fp32", threads: int = 1, runs: int = 20
) -> Runtime:
    """torch as it is; bf16 and fp16 by autocast."""
    device, half = device or torch.device("cpu"), precision(dtype)

    def measure(module: nn.Module, inputs: Sequence[Any]) -> Measured:
        with torch.no_grad(), torch.autocast(device.type, half, enabled=half != torch.float32):
            timed = latency(module, inputs, runs, threads=threads)
        return measured(timed, sum(t.nbytes for t in [*module.parameters(), *module.buffers()]))

    where = f"{machine(device)}, torch {torch.__version__}"
    return Runtime(f"{where}, {threads} thr" if device.type == "cpu" else where, dtype, measure)


def fill(
    model: nn.Module,
    inputs: Sequence[Any],
    runtime: Runtime,
    names: Iterable[str] = (),
    seen: Callable[[str], None] = lambda what: None,
) -> Costs:
    """Rows for the submodules ``names``, or the model, its BLOCKS and BRANCHES. ``seen`` is told each."""
    found = distinct(model, inputs, names)
    entries = []
    for (op, shapes), same in found.items():
        seen(same[0].name or op)
        took = runtime.measure(same[0].module, same[0].inputs)
        entries.append(
            Entry(
                op,
                shapes,
                runtime.precision,
                runtime.device,
                took.ms,
                took.bytes,
                took.spread,
                took.contended,
                tuple(call.name for call in same),
            )
        )
    return Costs(tuple(entries))


def distinct(
    model: nn.Module, inputs: Sequence[Any], names: Iterable[str] = ()
) -> dict[tuple[str, Shapes], list[Call]]:
    """(op, shapes) -> the calls that are that op, in the order in which they come."""
    chosen = tuple(names) or ("", *blocks(model), *branches(model))
    found: dict[tuple[str, Shapes], list[Call]] = {}
    for call in calls(model, inputs, chosen):
        found.setdefault((call.op, call.shapes), []).append(call)
    return found


def rows(table: Costs) -> list[dict[str, Any]]:
    """To print."""
    return [
        {
            "part": (e.seen[0] if e.seen else "") or "(the model)",
            "op": e.op,
            "calls": len(e.seen),
            "input": " ".join(e.shapes.inputs[:1]),
            "ms": e.ms,
            "p10-p90": (f"{e.spread[0]:.3g}-{e.spread[1]:.3g}" if e.spread else "-")
            + (" contended" if e.contended else ""),
            "MB": e.bytes / 1e6,
        }
        for e in table.entries
    ]
