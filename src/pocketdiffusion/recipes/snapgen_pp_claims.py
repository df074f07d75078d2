"""SnapGen++'s claims, over seeds: sparse attention, elastic widths, K-DMD.

    pocket train snapgen_pp_claims attention                             # assa, full, global, local; 3 seeds
    pocket train snapgen_pp_claims ladder                                # from a PixArt-like transformer on
    pocket train snapgen_pp_claims elastic                               # widths together and each alone
    pocket train snapgen_pp_claims distribution --few-step-teacher runs/dmd_scenes/pipeline
    pocket train snapgen_pp_claims distribution --student FOLDER --width small --few-step-teacher FOLDER

attention     ElasticDiT from scratch by flow matching, its outer stages attending each way; of a seed all see
              the same pictures, times and noise
ladder        the paper's ablation, a to d, at this size: flow loss, parameters, operations; for times at 1024
              pixels, snapgen_speed --models ElasticDiT:ladder_a and so on
elastic       the supernet, and each width by itself with as many steps (ARM alone_WIDTH); the rows of the
              supernet (WIDTH) are its widths
distribution  one width, or any pipeline (--student), to four steps by DMD2 (dmd) and K-DMD (kdmd), at every
              rate (ARM@RATE); beside it the teacher and the student (student) as they are, in many steps

``velocity`` is the held-out flow loss. Every run is kept (OUT/CLAIM/ARM-SEED.json) and not repeated. The
paper claims that sparse attention equals full, that elastic widths come within a percent of lone ones, and
that K-DMD depends less on seeds and rates than DMD. What was run: docs/results.md (claims).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev, variance
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from .. import store
from ..bench.cost import cost
from ..bench.table import text
from ..device import bf16
from ..eval.seeds import Found, against, collect, settings, settled, table, told
from ..methods.elastic import Elastic
from ..methods.flow_matching import FlowMatching
from ..models.elastic_dit import ATTENTION, Config, ElasticDiT
from ..models.supernet import Supernet
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import Run, State, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Cond, Method
from . import dmd_scenes
from .dmd_scenes import distilled, few_step_teacher, opened
from .kdmd_scenes import knowledge_of
from .snapgen_claims import like
from .snapgen_kd_ladder import drawn, losses
from .snapgen_scenes_kd import reads, scenes

COMPARED = {"arms", "control", "seeds", "rates"}  # what runs that are compared may differ in
MAY_CHANGE = COMPARED | {
    "claim",
    "student",
    "width",
    "few_step_teacher",
    "features",
    "preset",
    "steps",
    "batch",
}
CLAIMS = ("attention", "ladder", "elastic", "distribution")


@dataclass(frozen=True)
class Args:
    claim: Annotated[str, tyro.conf.Positional]  # attention, ladder, elastic or distribution
    out: Path = Path("runs/snapgen_pp_claims")
    arms: tuple[str, ...] = ()  # default: all of the claim's
    control: str = ""  # default: full, a, the full width alone, dmd at the first rate
    seeds: tuple[int, ...] = (0, 1, 2)
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    preset: str = "scenes"  # of ElasticDiT and Supernet
    student: str = "scenes"  # distribution: the pipeline that learns few steps
    width: str | None = None  # ... where it is elastic; None: the full one
    few_step_teacher: str = ""  # distribution: a pipeline of few steps
    features: bool = True  # distribution: of the last blocks, beside the prediction
    rates: tuple[float, ...] = (1e-4,)  # distribution: learning rates of the student
    steps: int = 1500
    batch: int = 32
    uses: int = 4
    lr: float = 1e-3  # attention and elastic
    shift: float = 2.5
    held_out: int = 256  # pictures for the losses
    pictures: int = 512  # for the Frechet distance; 0: no pictures are drawn
    prompts: int = 20  # of each category of SceneEval, one picture each
    guidance: float | None = None
    levels: int = 4
    sampler: str = "renoise"
    ratio: int = 5
    rank: int = 0  # distribution: of LoRA; 0: all weights train
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def begun(args: Args, where: str) -> None:
    """ValueError where a run that was stopped had other settings."""
    folder = args.out / args.claim / where
    folder.mkdir(parents=True, exist_ok=True)
    settled(folder, settings(args, COMPARED))


def trained(
    method: Method, networks: dict[str, nn.Module], teacher: Pipeline, args: Args, where: str
) -> State:
    name = next(iter(method.players))
    seed = int(where.rpartition("-")[2])
    begun(args, where)
    run = Run(
        args.steps,
        args.out / args.claim / where,
        seed,
        bf16=bf16(teacher.device, args.bf16),
        ema=0.995,
        save_every=250,
        keep=1,
        name=where,
    )
    optimiser = {name: adamw(method.players[name], args.lr)}
    data = scenes(args, teacher, teacher.schedule.size)
    return fit(method, data, optimiser, networks, run, warmup_cosine(args.steps, 50))


def fitted(config: Any, teacher: Pipeline) -> Any:
    return replace(config, channels=teacher.vae.config.channels, text=teacher.text_encoder.config.dim)


def judged(network: nn.Module, teacher: Pipeline, args: Args) -> dict[str, float]:
    pipe = Pipeline(network.eval(), teacher.text_encoder, teacher.vae, teacher.schedule)
    found = {"velocity": losses(pipe, teacher, args)["velocity"]}
    return found | (drawn(pipe, args) if args.pictures else {})


def alone(config: Any, where: str, teacher: Pipeline, args: Args) -> dict[str, float]:
    """One network from scratch by flow matching."""
    torch.manual_seed(int(where.rpartition("-")[2]))
    network, read = ElasticDiT(config).to(teacher.device), reads(teacher.text_encoder, False)

    def null() -> Cond:
        return teacher.text_encoder.embed([""])

    method = FlowMatching(network, read, null, list(network.parameters()), shift=args.shift)
    state = trained(method, {"transformer": network}, teacher, args, where)
    with state.averaged():
        return judged(network, teacher, args)


def attention(arm: str, seed: int, teacher: Pipeline, args: Args) -> dict[str, float]:
    config = fitted(store.preset("ElasticDiT", args.preset), teacher)
    return alone(replace(config, attention=arm), f"{arm}-{seed}", teacher, args)


def rung(base: Config, name: str) -> Config:
    """The paper's ablation at the size of ``base``, its last step (elastic_dit.PRESETS, ladder_a to _d).

    a: a PixArt-like transformer with full attention; b: in three stages, half of the blocks in Middle;
    c: sparse attention; d: blocks moved outwards, grouped queries, wider feed-forwards, skips.
    """
    down, middle, up = base.stages
    moved = min(max(1, sum(base.stages) // 14), down - 1, up - 1)
    a = replace(base, stages=(sum(base.stages),), kv_heads=1, mlp=3 * base.dim, attention="full", skips=False)
    b = replace(a, stages=(down - moved, middle + 2 * moved, up - moved))
    return {"a": a, "b": b, "c": replace(b, attention="assa"), "d": base}[name]


def ladder(arm: str, seed: int, teacher: Pipeline, args: Args) -> dict[str, float]:
    config = rung(fitted(store.preset("ElasticDiT", args.preset), teacher), arm)
    with torch.device("meta"):
        shape = ElasticDiT(config)
    found = cost(shape, shape.example(1, torch.device("meta")))
    counted = {"M parameters": found.parameters / 1e6, "GMACs": found.macs / 1e9}
    return alone(config, f"{arm}-{seed}", teacher, args) | counted


class Together:
    """All widths of one run are measured when the first is asked for."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, dict[str, float]]] = {}

    def __call__(self, arm: str, seed: int, teacher: Pipeline, args: Args) -> dict[str, float]:
        config = fitted(store.preset("Supernet", args.preset), teacher)
        if arm.startswith("alone_"):
            width = arm.removeprefix("alone_")
            return alone(config.plain(width), f"{arm}-{seed}", teacher, args)
        if seed not in self.found:
            torch.manual_seed(seed)
            net = Supernet(config).to(teacher.device)
            read = reads(teacher.text_encoder, False)
            method = Elastic(net, config.names, read, list(net.parameters()), shift=args.shift)
            state = trained(method, {"transformer": net}, teacher, args, f"elastic-{seed}")
            with state.averaged():
                self.found[seed] = {n: judged(net.extract(n), teacher, args) for n in config.names}
        return self.found[seed][arm]


def distribution(arm: str, seed: int, teacher: Pipeline, args: Args) -> dict[str, float]:
    base = opened(args.student, args, args.width)
    if arm in ("teacher", "student"):
        return drawn(teacher if arm == "teacher" else base, args, seed)
    kind, _, rate = arm.partition("@")
    where = args.out / args.claim / f"{arm}-{seed}"
    begun(args, f"{arm}-{seed}")
    sampler = None if base.schedule.times else args.sampler
    rates = {"lr": float(rate), "lr_critic": float(rate)}
    own = like(dmd_scenes.Args, args, out=where, seed=seed, sampler=sampler, **rates)
    knowledge = None
    if kind == "kdmd":
        knowledge = knowledge_of(args, few_step_teacher(args.few_step_teacher, args), base, seed)
    return drawn(distilled(own, teacher, base, knowledge), args, seed)


def arms_of(args: Args) -> Iterator[str]:
    if args.claim == "attention":
        yield from ATTENTION
    elif args.claim == "ladder":
        yield from "abcd"
    elif args.claim == "elastic":
        names = store.preset("Supernet", args.preset).names
        yield from (*names, *(f"alone_{name}" for name in names))
    else:
        yield from (f"{kind}@{rate:g}" for rate in args.rates for kind in ("dmd", "kdmd"))
        yield from ("teacher", "student")


def over_everything(found: Found, measures: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows to print: of DMD2 and of K-DMD, mean, standard deviation and worst over all seeds and rates."""
    rows = []
    for kind in ("dmd", "kdmd"):
        runs = [run for arm, own in found.items() if arm.startswith(f"{kind}@") for run in own.values()]
        row: dict[str, Any] = {"method": kind, "runs": len(runs)}
        for measure, digits in measures.items():
            values = [run[measure] for run in runs if measure in run]
            if len(values) > 1:
                worst = max(values) if measure == "frechet" else min(values)
                row[measure] = (
                    f"{mean(values):.{digits}f}, sd {stdev(values):.{digits}f}, worst {worst:.{digits}f}"
                )
        rows.append(row)
    return rows


def steadier(found: Found, rates: Sequence[float], measures: Mapping[str, int]) -> list[dict[str, Any]]:
    """Rows to print: K-DMD less DMD2 (a seed's mean over rates), and an F test of their variances."""
    from scipy.stats import f

    both, rows = [(f"dmd@{rate:g}", f"kdmd@{rate:g}") for rate in rates], []
    for measure, digits in measures.items():
        more = [
            mean(found[b][seed][measure] - found[a][seed][measure] for a, b in both)
            for seed in found[both[0][0]]
        ]
        plain, known = ([run[measure] for pair in both for run in found[pair[i]].values()] for i in (0, 1))
        row: dict[str, Any] = {"measure": measure, "kdmd - dmd": told(more, digits)}
        if len(plain) > 1 and variance(known) > 0:
            ratio, free = variance(plain) / variance(known), len(plain) - 1
            tail = min(f.sf(ratio, free, free), f.cdf(ratio, free, free))
            ends = [ratio / float(f.ppf(share, free, free)) for share in (0.975, 0.025)]
            row |= {"variance, dmd / kdmd": ratio, "95 %": f"{ends[0]:.2g} to {ends[1]:.3g}"}
            row |= {"p (two-sided)": float(2 * tail)}
        rows.append(row)
    return rows


def beside_alone(found: Found) -> list[dict[str, Any]]:
    """Rows to print: by how many percent the loss of each width exceeds that of the same width alone."""
    rows = []
    for width in found:
        if (alone := found.get(f"alone_{width}")) is None:
            continue
        both = sorted(set(alone) & set(found[width]))
        more = [100 * (found[width][s]["velocity"] / alone[s]["velocity"] - 1) for s in both]
        rows.append({"width": width, "velocity, percent more than alone": told(more)})
    return rows


def main(args: Args) -> None:
    if args.claim not in CLAIMS:
        raise ValueError(f"{args.claim}: expected {', '.join(CLAIMS)}")
    known = list(arms_of(args))
    arms = list(args.arms or known)
    control = args.control or {"attention": "full", "elastic": known[-1]}.get(args.claim, known[0])
    if unknown := [arm for arm in (*arms, control) if arm not in known]:
        raise ValueError(f"--arms {unknown[0]}: expected some of {', '.join(known)}")
    if args.claim == "distribution" and any("kdmd" in arm for arm in arms) and not args.few_step_teacher:
        raise ValueError("--few-step-teacher: K-DMD needs one, as dmd_scenes makes it")
    if spread.world() > 1:
        raise ValueError("snapgen_pp_claims runs in one process; start several with other --seeds")
    teacher = opened(args.teacher, args)
    runs: dict[str, Any] = {
        "attention": attention,
        "ladder": ladder,
        "elastic": Together(),
        "distribution": distribution,
    }
    run = runs[args.claim]
    arms = list(dict.fromkeys((control, *arms)))
    found = collect(
        args.out / args.claim,
        arms,
        args.seeds,
        lambda arm, seed: run(arm, seed, teacher, args),
        settings(args, COMPARED),
    )
    measures = {"velocity": 4, "scene_eval": 3, "frechet": 2}
    if args.claim == "distribution":
        del measures["velocity"]
    elif not args.pictures:
        measures = {"velocity": 4}
    if args.claim == "ladder":
        measures |= {"M parameters": 2, "GMACs": 3}
    print(text(table(found, measures)))
    if len(arms) > 1:
        print(text(against(found, control, measures)))
    if args.claim == "distribution" and any("dmd" in arm for arm in arms):
        print(text(over_everything(found, measures)))
        if all(f"{kind}@{rate:g}" in found for kind in ("dmd", "kdmd") for rate in args.rates):
            print(text(steadier(found, args.rates, measures)))
    if args.claim == "elastic" and (rows := beside_alone(found)):
        print(text(rows))
