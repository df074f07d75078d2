"""Loss curves of runs, from the log.jsonl that each of them writes.

    curve(Path("runs/a"), "student/loss") -> [(step, mean), ...]
    drawn({"a": runs_of_a, "b": runs_of_b}, "student/task") -> SVG, a line each: the mean over its runs

Single batches are noisy: points are means over equal parts of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from .plots import lines

PARTS = 40


def curve(folder: Path, key: str, parts: int = PARTS) -> list[tuple[float, float]]:
    """ValueError names the log where it has nothing of that name."""
    path, seen = folder / "log.jsonl", []
    if not path.exists():
        raise ValueError(f"{path}: no such file; a run writes one")
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if key in row:
            seen.append((row["step"], row[key]))
    if not seen:
        raise ValueError(f"{path}: no {key!r} in it")
    # a run that was stopped may have written a step twice: the last counts
    points = sorted(dict(seen).items())
    size = -(-len(points) // parts)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(mean(p[0] for p in group), mean(p[1] for p in group)) for group in groups]


def drawn(runs: Mapping[str, Sequence[Path]], key: str, parts: int = PARTS) -> str:
    """A chart; of several runs of one name the mean, as far as all of them go."""
    series = {}
    for name, folders in runs.items():
        several = [curve(folder, key, parts) for folder in folders]
        series[name] = [(points[0][0], mean(p[1] for p in points)) for points in zip(*several)]
    return lines(series, "step", key, f"{key} over steps")
