"""LazyDiT's claims, over seeds: lazy sampling against fewer steps at equal calls.

    pocket train lazy_claims                                             # 20 and 50 steps, 3 seeds
    pocket train lazy_claims --sampled 20 --laziness 0.2 0.4 --arms gates fewer
    pocket train lazy_claims --sampled 20 --rhos 1e-4 1e-3 1e-2 --arms own       # laziness against the price

Arms, for every number of steps N and laziness L: ``gates``, a plan read off learned gates; ``own``, the gates
deciding for themselves, for every price rho; ``alternating``, everything rests at every second step (laziness
1/2), which needs no training; ``cache``, by how far the input has moved, for every threshold; ``attn`` and
``mlp``, plans of one kind alone; ``fewer``, the full pipeline with (1 - L) N steps; ``full``. ``calls`` is
the share of branch calls of the full pipeline that ran. Every run is kept (OUT/ARM-SEED.json) and not
repeated; a seed is that of the gates' training and of the sampling noise. Not run in full yet:
docs/results.md (claims).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..bench.table import text
from ..compress.lazy import ByChange, ByGates, Calls, Lazy, Plan, alternating, ranked
from ..device import choose
from ..eval.seeds import against, collect, settings, table
from ..nn.gate import Gates, branches
from ..pipeline import Pipeline
from ..train import spread
from . import lazy_scenes
from .snapgen_claims import like
from .snapgen_kd_ladder import drawn

MAY_CHANGE = {"arms", "seeds", "sampled", "laziness", "rhos", "thresholds", "control"}
MEASURES = {"scene_eval": 3, "frechet": 2, "calls": 3}
KINDS = ("full", "gates", "own", "alternating", "cache", "attn", "mlp", "fewer")


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/lazy_claims")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    sampled: tuple[int, ...] = (20, 50)  # steps of the sampler
    laziness: tuple[float, ...] = (0.2, 0.4)
    rhos: tuple[float, ...] = (1e-3,)
    thresholds: tuple[float, ...] = (0.1, 0.2)  # of cache
    arms: tuple[str, ...] = ("full", "gates", "fewer", "alternating")
    control: str = ""  # default: fewer steps at the first laziness
    seeds: tuple[int, ...] = (0, 1, 2)
    branches: tuple[str, ...] = ("blocks.*.attn", "blocks.*.mlp")
    steps: int = 300  # of the gates' training
    batch: int = 32
    uses: int = 4
    lr: float = 1e-2
    looked: int = 64
    pictures: int = 512  # for the Frechet distance
    prompts: int = 20  # of each category of SceneEval, one picture each
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


class Kept:
    """Gates by seed, steps and price, trained once."""

    def __init__(self, args: Args):
        self.args, self.found = args, dict[tuple[int, int, float], tuple[Gates, ByGates]]()

    def __call__(self, pipe: Pipeline, seed: int, rho: float) -> tuple[Gates, ByGates]:
        steps = len(pipe.schedule.levels()) - 1
        if (seed, steps, rho) not in self.found:
            out = self.args.out / f"gates-{steps}-{rho:g}-{seed}"
            own = like(lazy_scenes.Args, self.args, out=out, steps_sampled=steps, rho=rho, seed=seed)
            torch.manual_seed(seed)
            gates = lazy_scenes.trained(pipe, own)
            self.found[seed, steps, rho] = gates, lazy_scenes.looked(pipe, gates, own)[0]
        return self.found[seed, steps, rho]


class Lazily(Pipeline):
    """A pipeline whose denoiser is lazy in every call of ``sample``."""

    def __init__(self, pipe: Pipeline, by: Any, calls: Calls):
        super().__init__(pipe.transformer, pipe.text_encoder, pipe.vae, pipe.schedule, pipe.decoder)
        self.made, self.calls = Lazy(pipe.transformer, by), calls

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
            elif kind == "cache":
                yield from ((f"cache-{n}-{limit:g}", kind, n, limit, 0.0) for limit in args.thresholds)
            elif kind == "own":
                yield from ((f"own-{n}-rho{rho:g}", kind, n, 0.0, rho) for rho in args.rhos)
            else:
                yield from (
                    (f"{kind}-{n}-{share:g}", kind, n, share, args.rhos[0]) for share in args.laziness
                )


def plan_of(kind: str, pipe: Pipeline, share: float, by: ByGates, args: Args) -> Plan:
    """Read off gates; of one kind of branch alone the others never rest."""
    levels, names = pipe.schedule.levels()[:-1].tolist(), branches(pipe.transformer, args.branches)
    if kind in ("attn", "mlp"):
        seen = {pair: ks for pair, ks in by.seen.items() if pair[0].endswith(kind)}
        return ranked(seen, names, levels, share)
    return ranked(by.seen, names, levels, share)


def measured(
    arm: tuple[str, str, int, float, float], seed: int, pipe: Pipeline, kept: Kept, args: Args
) -> dict[str, float]:
    _, kind, steps, share, rho = arm
    pipe.schedule = replace(pipe.schedule, steps=steps)
    if kind in ("full", "fewer"):
        pipe.schedule = replace(pipe.schedule, steps=round((1 - share) * steps))
        return {**drawn(pipe, args, seed), "calls": 1 - share}
    names, levels = branches(pipe.transformer, args.branches), pipe.schedule.levels()[:-1].tolist()
    by: Any = alternating(names, levels)
    if kind == "own":
        by = ByGates(kept(pipe, seed, rho)[0], levels)
    elif kind == "cache":
        by = ByChange(names, levels, share)
    elif kind != "alternating":
        by = plan_of(kind, pipe, share, kept(pipe, seed, rho)[1], args)
    calls = Calls()
    found = drawn(Lazily(pipe, by, calls), args, seed)
    return {**found, "calls": 1 - calls.laziness}


def main(args: Args) -> None:
    if unknown := [arm for arm in args.arms if arm not in KINDS]:
        raise ValueError(f"--arms {unknown[0]}: expected some of {', '.join(KINDS)}")
    if spread.world() > 1:
        raise ValueError("lazy_claims runs in one process; start several with other --seeds")
    pipe = Pipeline.from_pretrained(args.model).to(choose(args.device))
    if pipe.schedule.times:
        raise ValueError(
            f"--model {args.model}: has {len(pipe.schedule.times)} steps of its own, none to spare"
        )
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
    if len(arms) > 1:
        print(text(against(found, control, measures)))
