"""Wall clock of lazy sampling: what resting saves, and what gates cost.

    pocket train lazy_speed                                  # 20 and 50 steps, batches of 1 and 16, minutes
    pocket train lazy_speed --model runs/lazy_scenes/pipeline --plan 0.3 --sampled 50

Three ways take turns, guided at every step: the pipeline as it is, a plan (everything rests at every second
step, or one that the pipeline has), and gates that are asked and compute everything. ``share`` is the part
of the plain time that the gated branches take; a plan of laziness L should take at most
1 - L share + 0.05 of it. Ratios are medians over rounds of the same round, so that a busy machine does less
to them; milliseconds are of this machine. Ends with OUT/speed.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.latency import stopwatch, threaded
from ..bench.table import text
from ..compress.lazy import ByGates, Lazy, Plan, alternating
from ..device import choose
from ..disk import renamed
from ..nn.gate import Gates, branches, switched, widths
from ..pipeline import Pipeline
from ..train import spread
from .lazy_scenes import walking


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/lazy_speed")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    plan: str = ""  # one of the pipeline's; empty: everything rests at every second step
    sampled: tuple[int, ...] = (20, 50)  # steps of the sampler
    batches: tuple[int, ...] = (1, 16)
    branches: tuple[str, ...] = ("blocks.*.attn", "blocks.*.mlp")  # * for a block's number
    rounds: int = 5
    threads: int | None = None
    device: str = "cpu"


class Timed(nn.Module):
    """A network that adds up the seconds inside its branches."""

    def __init__(self, network: nn.Module, names: list[str]):
        super().__init__()
        self.network, self.hub = switched(network, names)
        self.seconds = 0.0
        self.hub.rule = self.measured

    def wait(self) -> float:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return perf_counter()

    def measured(self, name: str, z: Tensor, compute: Callable[[Tensor | None], Tensor]) -> Tensor:
        start = self.wait()
        y = compute(None)
        self.seconds += self.wait() - start
        return y

    def forward(self, *args: Any) -> Tensor:
        return self.network(*args)


def compared(pipe: Pipeline, plan: Plan, names: list[str], batch: int, args: Args) -> dict[str, Any]:
    """One row of the table."""
    network, levels = pipe.transformer, pipe.schedule.levels()[:-1].tolist()
    side = pipe.schedule.size // pipe.vae.config.factor
    x = torch.randn(batch, pipe.vae.config.channels, side, side, device=pipe.device)
    walk = walking(pipe, x, ["two green stars"] * batch)
    lazy, timed = Lazy(network, plan), Timed(network, names)
    gates = Gates(widths(network, network.example(1, pipe.device), names), len(levels)).to(pipe.device)
    gated = Lazy(network, ByGates(gates, levels))
    ways = {
        "full": stopwatch(lambda: walk(network), pipe.device),
        "lazy": stopwatch(lambda: walk(lazy.start()), pipe.device),
        "gated": stopwatch(lambda: walk(gated.start()), pipe.device),
        "timed": stopwatch(lambda: walk(timed), pipe.device),
    }
    for clock in ways.values():
        clock()
    timed.seconds, rounds = 0.0, []
    for _ in range(args.rounds):
        rounds.append({name: clock() for name, clock in ways.items()})
    share = 1000 * timed.seconds / sum(r["timed"] for r in rounds)
    most = 1 - plan.laziness * share + 0.05
    took = median(r["lazy"] / r["full"] for r in rounds)
    return {
        "steps": len(levels),
        "batch": batch,
        "full_ms": round(median(r["full"] for r in rounds), 1),
        "lazy_ms": round(median(r["lazy"] for r in rounds), 1),
        "laziness": round(plan.laziness, 3),
        "share": round(share, 3),
        "took": round(took, 3),
        "at_most": round(most, 3),
        "holds": took <= most,
        "gates_cost": round(median(r["gated"] / r["full"] for r in rounds) - 1, 4),
    }


def main(args: Args) -> None:
    if spread.world() > 1:
        raise ValueError("lazy_speed runs in one process, as times are of the whole machine")
    pipe = Pipeline.from_pretrained(args.model).to(choose(args.device))
    names, rows = branches(pipe.transformer, args.branches), []
    with threaded(args.threads) as threads:
        for steps in args.sampled:
            pipe.schedule = replace(pipe.schedule, steps=steps, interval=(0.0, 1.0))
            levels = pipe.schedule.levels()
            plan = pipe.lazy(args.plan) if args.plan else alternating(names, levels[:-1].tolist())
            plan.fits(levels.tolist())
            rows += [compared(pipe, plan, names, batch, args) for batch in args.batches]
    print(text(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    with renamed(args.out / "speed.json") as temporary:
        told = {"rows": rows, "threads": threads, "device": str(pipe.device)}
        temporary.write_text(json.dumps(told, indent=2) + "\n")
