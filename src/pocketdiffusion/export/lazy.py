"""Lazy plans as static graphs: a program per set of branches that rest.

What is kept between steps goes in and out:

    denoiser      x, t, tokens, mask            -> v, kept_0, kept_1, ...     everything is computed
    denoiser_1    x, t, tokens, mask, kept_1    -> v, kept_0                  branch 1 rests

kept_i is the output of the i-th of all branches that ever rest. A program gives those that it computes and
takes those that rest in it; the runtime holds them between steps (runtime/sample.py), which has the name of
each step's program in the schedule. A plan with many different steps makes many programs, each with its own
weights on the disk: ``fewer`` lets steps share one, by computing what only one of them skips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ..compress.lazy import Plan
from ..nn.gate import Compute, switched
from ..pipeline import Pipeline
from .foreign import exportable
from .program import DenoiserStep, Program

Rests = frozenset[str]


def begins(pipe: Pipeline) -> set[int]:
    """The steps at which guidance begins: there all is computed, since the second row has nothing kept."""
    low, high = pipe.schedule.interval
    acts = [low <= t <= high for t in pipe.schedule.levels()[:-1].tolist()]
    if pipe.schedule.guidance == 1:
        return set()
    return {i for i in range(1, len(acts)) if acts[i] and not acts[i - 1]}


def resting(plan: Plan) -> list[Rests]:
    """The branches that rest, step by step."""
    return [frozenset(n for n, row in plan.skips.items() if row[i]) for i in range(len(plan.times))]


def fewer(plan: Plan, most: int) -> Plan:
    """A plan of at most ``most`` different steps that skips nothing which ``plan`` computes.

    Greedy: of all pairs of sets those are joined, to what both skip, that lose the fewest skips.
    """
    if most < 1:
        raise ValueError(f"--graphs {most}: expected 1 or more")
    steps = resting(plan)
    while len(set(steps)) > most:
        often = {s: steps.count(s) for s in set(steps)}

        def lost(pair: tuple[Rests, Rests], often: Mapping[Rests, int] = often) -> tuple[int, list[str]]:
            return sum(often[s] * len(s - (pair[0] & pair[1])) for s in pair), sorted(pair[0] | pair[1])

        order = sorted(often, key=sorted)
        a, b = min(combinations(order, 2), key=lost)
        steps = [a & b if s in (a, b) else s for s in steps]
    return Plan(plan.times, {n: tuple(n in s for s in steps) for n in plan.skips})


class LazyStep(nn.Module):
    """One call of the denoiser in which ``rests`` take what they are given; ``every``: all that ever rest."""

    def __init__(self, denoiser: nn.Module, extras: tuple[str, ...], every: Sequence[str], rests: Rests):
        super().__init__()
        network, self.hub = switched(denoiser, every)
        self.step = DenoiserStep(network, extras)
        self.given = [n for n in every if n in rests]
        self.kept = [n for n in every if n not in rests]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        cut = len(inputs) - len(self.given)
        given, found = dict(zip(self.given, inputs[cut:])), dict[str, Tensor]()

        def rule(name: str, z: Tensor, compute: Compute) -> Tensor:
            if name in given:
                return given[name]
            found[name] = compute(None)
            return found[name]

        self.hub.rule = rule
        try:
            v = self.step(*inputs[:cut])
        finally:
            self.hub.rule = None
        return (v, *(found[n] for n in self.kept))


def programs(pipe: Pipeline, made: Mapping[str, Program], plan: Plan) -> tuple[dict[str, Program], list[str]]:
    """``made`` with the programs of a plan in place of its denoiser, and the name of each step's program."""
    plan.fits(pipe.schedule.levels().tolist())
    network: Any = exportable(pipe.transformer)
    steps, begin = resting(plan), begins(pipe)
    steps = [frozenset() if i in begin else rests for i, rests in enumerate(steps)]
    every = [n for n in plan.skips if any(n in rests for rests in steps)]
    known = dict(network.named_modules())
    if unknown := [n for n in every if n not in known]:
        raise ValueError(f"{type(network).__name__} has no branch {unknown[0]!r}, which the plan names")
    plain = made["denoiser"]
    extras: Any = plain.module.extras
    key = {n: f"kept_{i}" for i, n in enumerate(every)}
    order = [frozenset[str](), *sorted(set(steps) - {frozenset()}, key=sorted)]
    names = {rests: f"denoiser_{i}" if i else "denoiser" for i, rests in enumerate(order)}
    found: dict[str, Program] = {}
    values: dict[str, Tensor] = {}
    for rests in order:
        module = LazyStep(network, tuple(extras), every, rests)
        inputs = {**plain.inputs, **{key[n]: values[key[n]] for n in module.given}}
        program = Program(names[rests], module, inputs, ("v", *(key[n] for n in module.kept)))
        found[program.name] = program
        if not rests:
            with torch.no_grad():
                values = {k: v.clone() for k, v in program().items() if k != "v"}
    whole = {name: p for name, p in made.items() if name != "denoiser"}
    return {"text_encoder": whole["text_encoder"], **found, "decoder": whole["decoder"]}, [
        names[rests] for rests in steps
    ]
