"""LazyDiT's claims, over seeds: lazy sampling against fewer steps at equal calls.

    pocket train lazy_claims                                             # 10, 20 and 50 steps, 3 seeds
    pocket train lazy_claims --sampled 20 --laziness 0.3 --arms gates searched cache first fewer
    pocket train lazy_claims --sampled 20 --laziness 0.2 --arms gates attn mlp fewer        # one kind alone
    pocket train lazy_claims --sampled 20 --rhos 1e-5 3e-5 1e-4 --arms own      # laziness against the price
    pocket train lazy_claims --model runs/dmd_scenes/pipeline --laziness 0.5 --arms full searched first fewer
    pocket train lazy_claims --sampled 20 --laziness 0.3 --arms gates searched cache first

Arms, for every number of steps N and laziness L:

    full          the pipeline as it is
    alternating   everything rests at every second step (laziness 1/2), which needs no training
    gates         a plan read off learned gates
    own           gates that decide for themselves, for every price rho
    searched      the branches and steps whose rest alone changes --searched pictures least
    attn, mlp     plans of one kind alone
    cache, first  by how far the input has moved, and diffusers' First Block Cache, for every threshold
    fewer         the full pipeline with the fewest steps that make no fewer calls than the plan of the gates,
                  of a laziness of 1/2 than ``alternating``, of a few-step pipeline than ``searched``

``calls`` is the share of branch calls of the full pipeline that ran, guided ones counting twice; ``distance``
the mean absolute difference of --near pictures to the full pipeline's from the same noise. Every run is kept
(OUT/ARM-SEED.json) and not repeated; a seed is that of the gates' training and of the sampling noise.
Numbers: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..bench.table import text
from ..compress.lazy import ByChange, ByGates, Calls, Lazy, Plan, alternating, ranked, searched
from ..data.scenes import EVAL_WORLD, Scenes
from ..device import choose
from ..eval.seeds import against, collect, settings, table
from ..nn.gate import Gates, branches
from ..pipeline import Pipeline, Schedule
from ..teachers.first_block import FirstBlock
from ..train import spread
from . import lazy_scenes
from .snapgen_claims import like
from .snapgen_kd_ladder import drawn

MAY_CHANGE = {"arms", "seeds", "sampled", "laziness", "rhos", "thresholds", "control"}
MEASURES = {"scene_eval": 3, "frechet": 2, "distance": 4, "calls": 3}
LEARNED = ("gates", "own", "attn", "mlp")
KINDS = ("full", "gates", "own", "alternating", "searched", "cache", "first", "attn", "mlp", "fewer")


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/lazy_claims")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    sampled: tuple[int, ...] = (10, 20, 50)  # steps of the sampler
    laziness: tuple[float, ...] = (0.5,)
    rhos: tuple[float, ...] = (3e-5,)
    thresholds: tuple[float, ...] = (0.1, 0.2)  # of cache and first
    arms: tuple[str, ...] = ("full", "alternating", "fewer")
    control: str = ""  # default: fewer steps at the first laziness
    seeds: tuple[int, ...] = (0, 1, 2)
    branches: tuple[str, ...] = ("blocks.*.attn", "blocks.*.mlp")
    steps: int = 300  # of the gates' training
    batch: int = 32
    uses: int = 4
    lr: float = 3e-4
    looked: int = 64
    searched: int = 4  # pictures of a search
    near: int = 64  # pictures whose distance is taken
    pictures: int = 512  # for the Frechet distance
    prompts: int = 20  # of each category of SceneEval, one picture each
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


class Kept:
    """Gates by seed, steps and price, trained once."""

    def __init__(self, args: Args):
        self.args, self.found = args, dict[tuple[int, int, float], tuple[Gates, lazy_scenes.Seen]]()

    def __call__(self, pipe: Pipeline, seed: int, rho: float) -> tuple[Gates, lazy_scenes.Seen]:
        steps = len(pipe.schedule.levels()) - 1
        if (seed, steps, rho) not in self.found:
            out = self.args.out / f"gates-{steps}-{rho:g}-{seed}"
            own = like(lazy_scenes.Args, self.args, out=out, steps_sampled=steps, rho=rho, seed=seed)
            torch.manual_seed(seed)
            gates = lazy_scenes.trained(pipe, own)
            self.found[seed, steps, rho] = gates, lazy_scenes.looked(pipe, gates, own)[0]
        return self.found[seed, steps, rho]


class Lazily(Pipeline):
    """A pipeline whose denoiser is lazy in every call of ``sample``: ``made`` is a Lazy or a FirstBlock."""

    def __init__(self, pipe: Pipeline, made: Any, calls: Calls):
        super().__init__(pipe.transformer, pipe.text_encoder, pipe.vae, pipe.schedule, pipe.decoder)
        self.made, self.calls = made, calls

    def sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        network = self.transformer
        self.transformer = Started(self.made.start(self.calls), network)
        try:
            return super().sample(*args, **kwargs)
        finally:
            self.transformer = network


class Started:
    """A lazy denoiser with what a pipeline asks of its network."""

    def __init__(self, denoiser: Any, network: Any):
        self.denoiser, self.config, self.parameters = denoiser, network.config, network.parameters

    def __call__(self, *args: Any) -> Any:
        return self.denoiser(*args)


def names_of(args: Args) -> Iterator[tuple[str, str, int, float, float]]:
    """Arm, kind, steps, laziness (a cache's threshold), rho."""
    for n in args.sampled:
        for kind in args.arms:
            if kind == "full":
                yield f"full-{n}", kind, n, 0.0, 0.0
            elif kind == "alternating":
                yield f"alternating-{n}", kind, n, 0.5, 0.0
            elif kind in ("cache", "first"):
                yield from ((f"{kind}-{n}-{limit:g}", kind, n, limit, 0.0) for limit in args.thresholds)
            elif kind == "own":
                yield from ((f"own-{n}-rho{rho:g}", kind, n, 0.0, rho) for rho in args.rhos)
            else:
                yield from (
                    (f"{kind}-{n}-{share:g}", kind, n, share, args.rhos[0]) for share in args.laziness
                )


def plan_of(kind: str, pipe: Pipeline, share: float, seen: lazy_scenes.Seen | None, args: Args) -> Plan:
    """Read off gates; of one kind of branch alone the others never rest. No gates: every second step."""
    levels, names = pipe.schedule.levels()[:-1].tolist(), branches(pipe.transformer, args.branches)
    if seen is None:
        return alternating(names, levels)
    if kind in ("attn", "mlp"):
        seen = {pair: ks for pair, ks in seen.items() if pair[0].endswith(kind)}
    return ranked(seen, names, levels, share)


def search(pipe: Pipeline, share: float, seed: int, args: Args) -> Plan:
    """The plan of least errors in which every call costs the same, as it does where calls are counted."""
    names, times = branches(pipe.transformer, args.branches), pipe.schedule.levels()[:-1].tolist()
    errors = lazy_scenes.errors(pipe, names, args.searched, seed)
    costs = dict.fromkeys(names, [1.0] * len(times))
    return searched(times, errors, costs, round((1 - share) * len(names) * len(times)))


def shortened(schedule: Schedule, steps: int) -> Schedule:
    """The same with fewer steps; of a few-step pipeline the first level and others of its own, evenly."""
    if not schedule.times:
        return replace(schedule, steps=steps)
    kept = [schedule.times[i * len(schedule.times) // steps] for i in range(steps)]
    return replace(schedule, steps=steps, times=tuple(kept))


def as_many_calls(schedule: Schedule, plan: Plan) -> tuple[Schedule, float]:
    """The same with the fewest steps that make no fewer calls than ``plan``, and its share of all calls."""
    full = lazy_scenes.rows(schedule)
    rests = [sum(row[i] for row in plan.skips.values()) / len(plan.skips) for i in range(len(full))]
    # the step where guidance begins has nothing kept
    wanted = sum(n * (1 - rest * (n <= before)) for n, rest, before in zip(full, rests, [0, *full]))
    for steps in range(1, len(full)):
        fewer = shortened(schedule, steps)
        if sum(lazy_scenes.rows(fewer)) >= wanted - 1e-6:
            return fewer, sum(lazy_scenes.rows(fewer)) / sum(full)
    return schedule, 1.0


def near(pipe: Pipeline, seed: int, args: Args) -> Tensor:
    """Pictures whose distance is taken."""
    captions = [s.caption for s in Scenes(EVAL_WORLD, args.near, pipe.schedule.size).specs(10**6 + 2, 0)]
    return torch.cat([pipe.sample(captions[i : i + 32], seed=seed, first=i) for i in range(0, args.near, 32)])


def measured(
    arm: tuple[str, str, int, float, float], seed: int, pipe: Pipeline, kept: Kept, args: Args
) -> dict[str, float]:
    _, kind, steps, share, rho = arm
    pipe = copy(pipe)  # whose schedule changes
    if not pipe.schedule.times:
        pipe.schedule = replace(pipe.schedule, steps=steps)
    full, calls, drawing = near(pipe, seed, args), Calls(decided={}), pipe
    ran = 1.0
    if kind == "fewer":
        if pipe.schedule.times:
            plan = search(pipe, share, seed, args)
        else:
            plan = plan_of(kind, pipe, share, kept(pipe, seed, rho)[1] if share < 0.5 else None, args)
        pipe.schedule, ran = as_many_calls(pipe.schedule, plan)
    elif kind != "full":
        drawing = Lazily(pipe, decided(kind, seed, pipe, share, rho, kept, args), calls)
    found = {"distance": (near(drawing, seed, args) - full).abs().mean().item()}
    found |= drawn(drawing, args, seed)
    found["calls"] = ran if drawing is pipe else 1 - calls.laziness
    return found | (along(calls) if kind in ("own", "gates", "searched") else {})


def along(calls: Calls) -> dict[str, float]:
    """How much lazier each kind of branch is in the first half of the depth than in the second."""
    shares: dict[str, dict[int, list[float]]] = {}
    for (name, _), rested in (calls.decided or {}).items():
        blocks = [int(word) for word in name.split(".") if word.isdecimal()]
        if blocks:
            shares.setdefault(name.rpartition(".")[2], {}).setdefault(blocks[0], []).append(fmean(rested))
    found = {}
    for kind, by_block in shares.items():
        along = [fmean(by_block[block]) for block in sorted(by_block)]
        half = len(along) // 2
        if half:
            found[f"{kind}_early"] = fmean(along[:half]) - fmean(along[-half:])
    return found


def decided(kind: str, seed: int, pipe: Pipeline, share: float, rho: float, kept: Kept, args: Args) -> Any:
    """What rests, as a Lazy or a FirstBlock."""
    names, levels = branches(pipe.transformer, args.branches), pipe.schedule.levels()[:-1].tolist()
    if kind == "first":
        return FirstBlock(pipe.transformer, share, names)
    by: Any = alternating(names, levels)
    if kind == "own":
        by = ByGates(kept(pipe, seed, rho)[0], levels)
    elif kind == "cache":
        by = ByChange(names, levels, share)
    elif kind == "searched":
        by = search(pipe, share, seed, args)
    elif kind != "alternating":
        by = plan_of(kind, pipe, share, kept(pipe, seed, rho)[1], args)
    return Lazy(pipe.transformer, by)


def refused(arm: tuple[str, str, int, float, float], schedule: Schedule, args: Args) -> None:
    """ValueError for a laziness that an arm cannot have, before anything is trained."""
    name, kind, steps, share, _ = arm
    if kind in ("cache", "first", "full", "alternating"):
        return
    if schedule.times:
        if kind in LEARNED:
            raise ValueError(f"--arms: {name} needs gates; {args.model} has {steps} steps of its own")
        most = (steps - 1) / steps
    else:
        most = lazy_scenes.reachable(replace(schedule, steps=steps))
        if kind in ("attn", "mlp"):
            most /= len(args.branches)
        elif kind == "fewer" and share == 0.5:
            return  # than ``alternating``
    if kind != "own" and not 0 < share <= most + 1e-6:
        raise ValueError(f"--laziness {share:g}: {name} can let {most:.3g} of all calls rest at most")


def main(args: Args) -> None:
    if unknown := [arm for arm in args.arms if arm not in KINDS]:
        raise ValueError(f"--arms {unknown[0]}: expected some of {', '.join(KINDS)}")
    if spread.world() > 1:
        raise ValueError("lazy_claims runs in one process; start several with other --seeds")
    pipe = Pipeline.from_pretrained(args.model).to(choose(args.device))
    if pipe.schedule.times:
        args = replace(args, sampled=(len(pipe.schedule.times),))
    for arm in names_of(args):
        refused(arm, pipe.schedule, args)
    for network in pipe.components.values():
        network.requires_grad_(False)
    arms, kept = {arm[0]: arm for arm in names_of(args)}, Kept(args)
    fewer = [name for name in arms if name.startswith("fewer")]
    control = args.control or (fewer or list(arms))[0]
    if control not in arms:
        raise ValueError(f"--control {control}: expected one of {', '.join(arms)}")
    found = collect(
        args.out,
        arms,
        args.seeds,
        lambda name, seed: measured(arms[name], seed, pipe, kept, args),
        settings(args, MAY_CHANGE),
    )
    measures = {m: d for m, d in MEASURES.items() if args.prompts or m != "scene_eval"}
    print(text(table(found, measures)))
    lazier = {n: r for n, r in found.items() if all(any(k.endswith("_early") for k in s) for s in r.values())}
    if lazier:
        print("lazier in the first half of the depth than in the second, by")
        kinds = sorted({k for r in lazier.values() for s in r.values() for k in s if k.endswith("_early")})
        print(text(table(lazier, dict.fromkeys(kinds, 3))))
    if len(arms) > 1:
        print(text(against(found, control, measures)))
