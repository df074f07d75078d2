"""Several runs with several seeds, kept on the disk: means, intervals, differences.

    found = collect(folder, arms, seeds, run, shared)        run(arm, seed) -> {measure: number}
    mean, half = interval(values)                      of a t distribution, 95 %; half is None for one value
    difference(found, "a", "b", "psnr")           of the same seeds: what a seed does to both drops out

A claim holds or fails when the interval of the paired difference leaves out zero, over at least three seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..disk import renamed

Found = dict[str, dict[int, dict[str, float]]]  # arm -> seed -> measure -> number


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its 95 % interval."""
    if len(values) < 2:
        return mean(values), None
    from scipy.stats import t

    return mean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))


def told(values: Sequence[float], digits: int = 2) -> str:
    """As in "31.20 +- 0.15", or the number alone."""
    middle, half = interval(values)
    return f"{middle:.{digits}f}" + ("" if half is None else f" +- {half:.{digits}f}")


def settings(args: Any, may_change: Set[str]) -> dict[str, Any]:
    """What two runs must share to be compared: all of ``args`` but those, the place and the device."""
    return {k: v for k, v in asdict(args).items() if k not in may_change | {"out", "device", "bf16"}}


def collect(
    folder: Path,
    arms: Iterable[str],
    seeds: Iterable[int],
    run: Callable[[str, int], Mapping[str, float]],
    shared: Mapping[str, Any],
) -> Found:
    """Every arm with every seed, seed by seed; what was measured before is read and not run again.

    ``shared`` settings stand beside the numbers; a run with others is refused, for it compares with nothing.
    """
    arms = list(arms)
    asked = plain(shared)
    found: Found = {arm: {} for arm in arms}
    for seed in seeds:
        for arm in arms:
            path = folder / f"{arm}-{seed}.json"
            if not path.exists():
                measures = dict(run(arm, seed))
                path.parent.mkdir(parents=True, exist_ok=True)
                with renamed(path) as temporary:
                    temporary.write_text(json.dumps(measures | {"settings": asked}, indent=2) + "\n")
            kept = json.loads(path.read_text())
            if (before := kept.pop("settings", None)) != asked:
                raise ValueError(f"{path}: was run with another {differing(before, asked)}")
            found[arm][seed] = kept
    return found


def settled(folder: Path, shared: Mapping[str, Any]) -> None:
    """Note ``shared`` settings in ``folder``; ValueError if what is kept there was made with others."""
    path, asked = folder / "settings.json", plain(shared)
    if path.exists() and (before := json.loads(path.read_text())) != asked:
        raise ValueError(f"{folder}: was run with another {differing(before, asked)}; name another folder")
    with renamed(path) as temporary:
        temporary.write_text(json.dumps(asked, indent=2) + "\n")


def plain(shared: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(dict(shared), default=str))


def differing(before: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> str:
    """What is not the same in two sets of settings."""
    wrong = [k for k in asked if not before or before.get(k) != asked[k]]
    return wrong[0] if wrong else "set of flags"


def difference(found: Found, arm: str, control: str, measure: str) -> tuple[float, float | None]:
    """``arm`` less ``control``, of the seeds that both have: mean and half width."""
    both = sorted(set(found[arm]) & set(found[control]))
    return interval([found[arm][s][measure] - found[control][s][measure] for s in both])


def table(found: Found, measures: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows to print: arms down, measures (with their digits) across; "-" where an arm has none."""
    return [
        {
            "arm": arm,
            "seeds": len(runs),
            **{
                m: told([r[m] for r in runs.values()], d) if all(m in r for r in runs.values()) else "-"
                for m, d in measures.items()
            },
        }
        for arm, runs in found.items()
    ]


def against(found: Found, control: str, measures: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows to print: what every other arm has more than ``control``, seed by seed."""
    rows = []
    for arm in found:
        if arm != control:
            row: dict[str, Any] = {"arm": f"{arm} - {control}"}
            for measure, digits in measures.items():
                if not all(measure in r for name in (arm, control) for r in found[name].values()):
                    row[measure] = "-"
                    continue
                middle, half = difference(found, arm, control, measure)
                row[measure] = f"{middle:+.{digits}f}" + ("" if half is None else f" +- {half:.{digits}f}")
            rows.append(row)
    return rows
