"""Lazy sampling: branches that rest at some steps, by a plan or by gates, on any model.

    Plan(times, {"blocks.0.attn": (False, True, ...)})      what to skip at each of the sampler's levels
    denoiser = Lazy(model, plan).start()                    for one trajectory; the step is found by t

A plan is data: written by hand (``alternating``), searched (``searched``), or read off learned gates
(``planned``); it is printed, edited and saved as JSON. Gates decide for every row of a batch by itself, a
cache (``ByChange``) by how far the input has moved. What a branch gave when it was last computed stands in,
before the residual gate. The first step is computed in full, and so is one with more rows than the step
before (with guidance, after one without), since those have nothing kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..disk import renamed
from ..nn.gate import Compute, Gates, switched
from ..types import Cond, Denoiser

FORMAT = "pocketdiffusion lazy plan 1"
NEAR = 1e-4  # levels that are the same


@dataclass(frozen=True)
class Plan:
    times: tuple[float, ...]  # levels at which the denoiser is called, decreasing
    skips: Mapping[str, tuple[bool, ...]]  # of every branch, at each of them

    def __post_init__(self) -> None:
        if not self.times or any(a <= b for a, b in zip(self.times, self.times[1:])):
            raise ValueError("times of a plan must decrease, and there must be one at least")
        for name, row in self.skips.items():
            if len(row) != len(self.times):
                raise ValueError(f"{name}: {len(row)} steps in a plan of {len(self.times)} times")
            if row[0]:
                raise ValueError(f"{name}: rests at the first step, when there is nothing to use again")

    @property
    def laziness(self) -> float:
        """The share of all calls that is skipped."""
        total = len(self.skips) * len(self.times)
        return sum(sum(row) for row in self.skips.values()) / total if total else 0.0

    def step(self, t: float) -> int:
        """Which of the times ``t`` is; ValueError where it is none."""
        i = min(range(len(self.times)), key=lambda i: abs(self.times[i] - t))
        if abs(self.times[i] - t) > NEAR:
            raise ValueError(f"the plan has no step at t = {t:.4f}; the nearest is {self.times[i]:.4f}")
        return i

    def fits(self, levels: Sequence[float]) -> None:
        """ValueError unless the sampler's ``levels`` (with the final 0) are the plan's."""
        own = list(levels[:-1])
        if len(own) != len(self.times) or any(abs(a - b) > NEAR for a, b in zip(own, self.times)):
            raise ValueError(
                f"the plan is for {len(self.times)} steps from {self.times[0]:.3f} to {self.times[-1]:.3f}, "
                f"the sampler takes {len(own)} from {own[0]:.3f} to {own[-1]:.3f}"
            )

    def drawn(self) -> str:
        """Steps across, branches down; # is computed, . rests."""
        wide = max(map(len, self.skips), default=0)
        rows = (f"{n:{wide}}  {''.join('.' if s else '#' for s in row)}" for n, row in self.skips.items())
        return "\n".join(rows)

    def save(self, path: Path) -> None:
        told = {"format": FORMAT, "times": self.times, "skips": {n: list(r) for n, r in self.skips.items()}}
        with renamed(path) as temporary:
            temporary.write_text(json.dumps(told, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """ValueError names the file."""
        try:
            told = json.loads(path.read_text())
            assert told["format"] == FORMAT
            skips = {str(n): tuple(map(bool, row)) for n, row in told["skips"].items()}
            return cls(tuple(map(float, told["times"])), skips)
        except (OSError, KeyError, TypeError, AttributeError, AssertionError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a readable lazy plan ({error})") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


class Decider(Protocol):
    """keep(name, step, z) -> whether the branch is computed, for all rows or each of them (B,)."""

    names: list[str]

    def step(self, t: float) -> int: ...
    def keep(self, name: str, step: int, z: Tensor) -> bool | Tensor: ...


class ByPlan:
    def __init__(self, plan: Plan):
        self.plan, self.names, self.step = plan, list(plan.skips), plan.step

    def keep(self, name: str, step: int, z: Tensor) -> bool:
        return not self.plan.skips[name][step]


class ByGates:
    """``thresholds``: by the last part of a branch's name; 1/2 where there is none.

    ``seen``: where to note the mean k of every call, for ``ranked``; noting takes longer than the gate.
    """

    def __init__(
        self,
        gates: Gates,
        times: Sequence[float],
        thresholds: Mapping[str, float] | None = None,
        seen: dict[tuple[str, int], list[float]] | None = None,
    ):
        self.gates, self.names, self.thresholds, self.seen = gates, gates.names, dict(thresholds or {}), seen
        self.step = Plan(tuple(times), {}).step

    def keep(self, name: str, step: int, z: Tensor) -> Tensor:
        k = self.gates.keep(name, step, z)
        if self.seen is not None:
            self.seen.setdefault((name, step), []).append(float(k.mean()))
        return k >= self.thresholds.get(name.rpartition(".")[2], 0.5)


class ByChange:
    """A cache that needs no training, in the manner of TeaCache: everything rests until the input has moved.

    The input of the first branch is compared with that of the step before; its relative L1 changes add up
    since the last step that was computed, and above ``threshold`` all branches are computed again. One
    decision for the whole batch. TeaCache (arXiv 2411.19108) bends the changes by a polynomial fitted to
    each model; here they are as they are.
    """

    def __init__(self, names: Sequence[str], times: Sequence[float], threshold: float):
        self.names, self.threshold = list(names), threshold
        self.step = Plan(tuple(times), {}).step
        self.last: Tensor | None = None
        self.moved, self.resting = 0.0, False

    def keep(self, name: str, step: int, z: Tensor) -> bool:
        if name == self.names[0]:
            # the first step asks nobody, so what is kept at the second is of another trajectory
            known = step > 1 and self.last is not None and self.last.shape == z.shape
            if known and self.last is not None:
                self.moved += float((z - self.last).abs().mean() / self.last.abs().mean())
            self.resting = known and self.moved < self.threshold
            if not self.resting:
                self.moved = 0.0
            self.last = z.detach()
        return not self.resting


@dataclass
class Calls:
    """Rows of branches that were asked for and that were computed; what each decided, if it is kept."""

    asked: int = 0
    computed: int = 0
    decided: dict[tuple[str, int], list[float]] | None = None  # share of rows that rested

    @property
    def laziness(self) -> float:
        return 1 - self.computed / self.asked if self.asked else 0.0


class Lazy:
    """``by``: a Plan, or what decides. Weights are shared with ``model``; ``start`` for every trajectory."""

    def __init__(self, model: nn.Module, by: Plan | Decider):
        self.by: Decider = ByPlan(by) if isinstance(by, Plan) else by
        known = dict(model.named_modules())
        if unknown := [name for name in self.by.names if name not in known]:
            raise ValueError(f"{type(model).__name__} has no branch {unknown[0]!r}, which the plan names")
        self.network, self.hub = switched(model, self.by.names)

    def start(self, calls: Calls | None = None) -> Denoiser:
        kept: dict[str, Tensor] = {}
        count = calls if calls is not None else Calls()

        def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            step = self.by.step(float(t.flatten()[0]))

            def rule(name: str, z: Tensor, compute: Compute) -> Tensor:
                known = name in kept and len(kept[name]) >= len(z)
                keep = self.by.keep(name, step, z) if known else True
                return settled(name, keep, len(z), compute, kept, count, step)

            self.hub.rule = rule
            try:
                return self.network(x, t, cond)
            finally:
                self.hub.rule = None

        return denoiser


def settled(
    name: str,
    keep: bool | Tensor,
    batch: int,
    compute: Compute,
    kept: dict[str, Tensor],
    count: Calls,
    step: int,
) -> Tensor:
    """The output of a branch of whose rows ``keep`` are computed, all or none, and what is kept of it."""
    found = keep.tolist() if isinstance(keep, Tensor) else [keep] * batch
    computed = sum(found)
    count.asked, count.computed = count.asked + batch, count.computed + computed
    if count.decided is not None:
        count.decided.setdefault((name, step), []).append(1 - computed / batch)
    if computed == batch:
        y = compute(None)
    elif not computed:
        y = kept[name][:batch]
    else:
        some = torch.tensor(found, device=kept[name].device)
        new = compute(some.nonzero()[:, 0])
        y = new.new_empty(batch, *new.shape[1:])
        y[some] = new
        y[~some] = kept[name][:batch][~some].to(new.dtype)
    kept[name] = y
    return y


def alternating(names: Sequence[str], times: Sequence[float]) -> Plan:
    """Everything rests at every second step: what training in pairs can reach at most."""
    row = tuple(i % 2 == 1 for i in range(len(times)))
    return Plan(tuple(times), dict.fromkeys(names, row))


def planned(
    decided: Mapping[tuple[str, int], Sequence[float]], names: Sequence[str], times: Sequence[float]
) -> Plan:
    """What gates have decided for most rows of some trajectories (Calls.decided), as a plan."""

    def rests(name: str, step: int) -> bool:
        shares = decided.get((name, step), (0.0,))
        return step > 0 and sum(shares) / len(shares) > 0.5

    return Plan(tuple(times), {n: tuple(rests(n, i) for i in range(len(times))) for n in names})


def ranked(
    seen: Mapping[tuple[str, int], Sequence[float]],
    names: Sequence[str],
    times: Sequence[float],
    laziness: float,
) -> Plan:
    """A plan as lazy as that, of the branches and steps whose gates had the lowest k (ByGates.seen).

    Those at exactly 1/2 were never trained and stay. ValueError where there are too few of the others: every
    second step has gates, and where guidance begins they are not asked.
    """
    means = {pair: sum(ks) / len(ks) for pair, ks in seen.items() if pair[1] > 0}
    order = sorted((pair for pair, k in means.items() if k != 0.5), key=lambda pair: means[pair])
    wanted = round(laziness * len(names) * len(times))
    if wanted > len(order):
        most = len(order) / len(names) / len(times)
        raise ValueError(
            f"laziness {laziness:g}: of all calls {most:.3g} can rest, by the gates that there are"
        )
    rests = set(order[:wanted])
    return Plan(tuple(times), {n: tuple((n, i) in rests for i in range(len(times))) for n in names})


def searched(
    times: Sequence[float],
    errors: Mapping[tuple[str, int], float],
    costs: Mapping[str, Sequence[float]],
    budget: float,
) -> Plan:
    """Greedy: skip what costs least error per millisecond until all calls together take ``budget`` ms.

    ``errors``: of skipping one branch at one step alone; ``costs``: ms of each branch at every step.
    ValueError where even the laziest plan takes longer.
    """
    total = sum(map(sum, costs.values()))
    slack = 1e-9 * total

    def price(pair: tuple[str, int]) -> float:
        return errors[pair] / costs[pair[0]][pair[1]]

    skips = {name: [False] * len(times) for name in costs}
    for name, step in sorted((pair for pair in errors if pair[1] > 0), key=price):
        if total <= budget + slack:
            break
        skips[name][step] = True
        total -= costs[name][step]
    if total > budget + slack:
        raise ValueError(f"no plan takes {budget:g} ms or less: the laziest takes {total:.6g} ms")
    return Plan(tuple(times), {name: tuple(row) for name, row in skips.items()})


def measured(
    model: nn.Module,
    names: Sequence[str],
    times: Sequence[float],
    walk: Callable[[Denoiser], Tensor],
) -> dict[tuple[str, int], float]:
    """Mean squared change of what ``walk`` ends in when one branch rests at one step, for all of them.

    Without those that cannot rest, as where guidance begins: rows that are new have nothing kept.
    """
    plain = walk(model)  # type: ignore[arg-type]
    found = {}
    for name in names:
        for step in range(1, len(times)):
            row = tuple(i == step for i in range(len(times)))
            calls = Calls()
            changed = walk(Lazy(model, Plan(tuple(times), {name: row})).start(calls))
            if calls.laziness:
                found[name, step] = float((changed - plain).square().mean())
    return found
