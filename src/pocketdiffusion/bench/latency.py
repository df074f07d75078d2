"""How long a call takes: warm-up, median and spread, and whether others were using the cores.

A figure for one machine at one moment: compare only what was measured in the same run, and only when
``contended`` is False. On CUDA the device's own clock is read (events), elsewhere the wall clock.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

LEAST = 0.5  # seconds to measure for; the kernel's CPU accounting has ticks of 10 ms
SLACK = 0.2  # cores of other work that are tolerated; ours


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call. ``others``: cores' worth of CPU used by other processes; nan = unknown."""

    median: float
    p10: float
    p90: float
    runs: int
    threads: int
    device: str
    others: float
    contended: bool


def device_of(inputs: Sequence[Any]) -> torch.device:
    return next(
        (leaf.device for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)), torch.device("cpu")
    )


def cores() -> set[int]:
    """The cores that this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def busy() -> float:
    """Seconds that those cores have worked since boot, whoever for; nan where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    rows = [line.split() for line in stat.read_text().splitlines() if line.startswith("cpu")]
    mine = {f"cpu{i}" for i in cores()}
    # user nice system idle iowait irq softirq steal; what other guests of the host steal counts too
    ticks = sum(int(row[i]) for row in rows if row[0] in mine for i in (1, 2, 3, 6, 7, 8))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def threaded(threads: int | None) -> Iterator[int]:
    """torch with this many threads (None = as it is)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def stopwatch(call: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """Milliseconds of one call."""
    if device.type == "cuda":

        def timed() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)

        return timed

    def waited() -> float:
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return 1000 * (time.perf_counter() - start)

    return waited


@torch.no_grad()
def latency(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    runs: int = 20,
    warmup: int = 3,
    threads: int | None = None,
    seconds: float = 20.0,
) -> Latency:
    """Of ``model(*inputs)``: at least ``runs`` calls and half a second, but at most about ``seconds``."""
    if runs < 2 or warmup < 0:
        raise ValueError(f"runs must be at least 2 and warmup at least 0, got {runs} and {warmup}")
    device = device_of(inputs)
    clock = stopwatch(lambda: model(*inputs), device)
    with threaded(threads) as used:
        for _ in range(warmup):
            clock()
        times: list[float] = []
        start, all_before, own_before = time.perf_counter(), busy(), time.process_time()
        while (wall := time.perf_counter() - start) < seconds or len(times) < 2:
            if len(times) >= runs and wall >= LEAST:
                break
            times.append(clock())
        # in this order, so that nan stays nan
        others = max((busy() - all_before) - (time.process_time() - own_before), 0.0) / wall
    deciles = quantiles(times, n=10, method="inclusive")
    contended = device.type == "cpu" and others + used > len(cores()) + SLACK
    return Latency(median(times), deciles[0], deciles[-1], len(times), used, str(device), others, contended)
