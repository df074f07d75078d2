"""SnapGen's ladder: task, + output, + features, + timestep-aware scaling, over seeds.

    pocket train snapgen_kd_ladder                                           # the four rungs, 3 seeds
    pocket train snapgen_kd_ladder --arms scaled output_0.3 output_1 output_3 --control output_1
    pocket train snapgen_kd_ladder --arms scaled cautious single --control scaled
    pocket train snapgen_kd_ladder --preset scenes --steps 6000 --device cuda

Arms: ``task``; ``output`` and ``features``, with weights of one; ``scaled`` (L_MD), ``cautious`` (the
other Phi), ``single`` (SnapGen++'s form); and output_W, features_W with a constant weight W, to scan it. Of
a seed all arms begin with the same weights and see the same pictures, times and noise. ``velocity`` is the
held-out flow loss, ``to_teacher`` the distance that distillation itself asks for, so not neutral. Every run
is kept (OUT/ARM-SEED.json) and not repeated; OUT/losses.svg has the training losses. The paper's claim is
task < output < features < scaled; what 500 steps of the smoke U-Net say of it is in docs/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import store
from ..bench.table import text
from ..data.scenes import EVAL_WORLD, Scenes
from ..device import bf16, choose
from ..diffusion.flow import interpolate, velocity
from ..eval import curves
from ..eval.compose import evaluate
from ..eval.frechet import Gaussian, frechet
from ..eval.prompts import CATEGORIES, make
from ..eval.seeds import against, collect, settings, table
from ..methods.kd import Distillation, per_sample
from ..methods.scaling import Constant, MultiLevel, Scaling, SingleLevel, cautious
from ..pipeline import SHIPPED, Pipeline
from ..rewards.scenes import SceneDetector
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from .snapgen_scenes_kd import last_features, reads, scenes, student_of

MAY_CHANGE = {"arms", "control", "seeds"}
MEASURES = {"velocity": 4, "to_teacher": 4, "frechet": 2, "scene_eval": 3}
SCALINGS: dict[str, Scaling] = {
    "task": Constant(),
    "output": Constant({"out": 1.0}),
    "features": Constant({"out": 1.0, "feat": 1.0}),
    "scaled": MultiLevel(),
    "cautious": MultiLevel(cautious),
    "single": SingleLevel(),
}


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/snapgen_kd_ladder")
    arms: tuple[str, ...] = ("task", "output", "features", "scaled")
    control: str = "task"
    seeds: tuple[int, ...] = (0, 1, 2)
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    student: str = "UNet"  # a denoiser's class, a name in store.KINDS
    preset: str = "smoke"
    steps: int = 1500
    batch: int = 32
    uses: int = 4
    lr: float = 2e-3
    shift: float = 2.5
    held_out: int = 256  # pictures for the losses
    pictures: int = 512  # for the Frechet distance
    prompts: int = 20  # of each category of SceneEval, one picture each
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def scaling_of(arm: str) -> Scaling:
    """By name; output_W and features_W have a constant weight W."""
    if arm in SCALINGS:
        return SCALINGS[arm]
    name, _, weight = arm.partition("_")
    try:
        w = float(weight)
    except ValueError:
        raise ValueError(f"--arms {arm}: expected {', '.join(SCALINGS)}, output_W or features_W") from None
    return Constant({"out": w} if name == "output" else {"out": w, "feat": w})


def trained(arm: str, seed: int, teacher: Pipeline, args: Args) -> Pipeline:
    """A student from scratch by one arm; every arm draws the same random numbers."""
    torch.manual_seed(seed)
    student, size = student_of(args.student, args.preset, teacher), teacher.schedule.size
    read, scaling = reads(teacher.text_encoder, False), scaling_of(arm)
    levels = scaling.weights if isinstance(scaling, Constant) else ("out", "feat")
    features = last_features(student, teacher.text_encoder, teacher, size) if "feat" in levels else None
    method = Distillation(
        student,
        teacher.transformer if levels else None,
        read,
        read,
        list(student.parameters()),
        features,
        scaling,
        shift=args.shift,
    )
    networks = {"transformer": student} | ({"projector": features.projector} if features else {})
    run = Run(
        args.steps,
        args.out / f"{arm}-{seed}",
        seed,
        bf16=bf16(teacher.device, args.bf16),
        ema=0.995,
        save_every=250,
        keep=1,
        name=arm,
    )
    optimiser = {"student": adamw(method.players["student"], args.lr)}
    state = fit(method, scenes(args, teacher, size), optimiser, networks, run, warmup_cosine(args.steps, 50))
    with state.averaged():
        weights = {k: v.clone() for k, v in student.state_dict().items()}
    student.load_state_dict(weights)
    return Pipeline(student.eval(), teacher.text_encoder, teacher.vae, teacher.schedule)


@torch.no_grad()
def losses(pipe: Pipeline, teacher: Pipeline, args: Any) -> dict[str, float]:
    """The flow loss and the distance from the teacher, at fixed levels of ``args.held_out`` scenes."""
    world = Scenes(EVAL_WORLD, 32, teacher.schedule.size, teacher.device)
    g, rows = torch.Generator().manual_seed(0), []
    for i in range(max(1, args.held_out // 32)):
        batch = world(10**6, i)
        x0, cond = teacher.vae.encode(batch.x), teacher.text_encoder.embed(batch.text)
        noise = torch.randn(x0.shape, generator=g).to(x0)
        t = ((torch.arange(len(x0)) + 0.5) / len(x0)).to(x0)
        x = interpolate(x0, noise, t)
        v, targets = pipe.transformer(x, t, cond), (velocity(x0, noise), teacher.transformer(x, t, cond))
        rows.append(torch.stack([per_sample(v, target) for target in targets]))
    flow, distance = torch.cat(rows, 1).mean(1).tolist()
    return {"velocity": flow, "to_teacher": distance}


@torch.no_grad()
def drawn(pipe: Pipeline, args: Any, seed: int = 0) -> dict[str, float]:
    """The Frechet distance to the world, and SceneEval on prompts that are not the committed ones.

    ``args.pictures`` and ``args.prompts`` say of how many; ``seed`` is that of the sampling noise.
    """
    features = store.load(SHIPPED / "scenes" / "features").to(pipe.device).features
    world = Scenes(EVAL_WORLD, 32, pipe.schedule.size, pipe.device)
    ours, theirs = Gaussian(), Gaussian()
    for i in range(max(1, args.pictures // 32)):
        batch, captions = world(10**6 + 1, i), [s.caption for s in world.specs(10**6 + 1, i)]
        ours.add(features(pipe.sample(captions, seed=seed, first=32 * i)))
        theirs.add(features(batch.x))
    found = {"frechet": frechet(ours, theirs)}
    if args.prompts:
        every = make(1)
        asked = [p for c in CATEGORIES for p in [q for q in every if q.category == c][: args.prompts]]

        def draw(texts: list[str], seeds: list[int]) -> torch.Tensor:
            return pipe.sample(texts, seed=seed, first=seeds[0]).cpu()

        found["scene_eval"] = evaluate(draw, SceneDetector(), 1, asked).overall
    return found


def main(args: Args) -> None:
    arms = list(dict.fromkeys((args.control, *args.arms)))
    for arm in arms:
        scaling_of(arm)
    if spread.world() > 1:
        raise ValueError("snapgen_kd_ladder runs in one process; start several with other --seeds")
    teacher = Pipeline.from_pretrained(args.teacher).to(choose(args.device))
    for network in teacher.components.values():
        network.requires_grad_(False)

    def run(arm: str, seed: int) -> dict[str, float]:
        pipe = trained(arm, seed, teacher, args)
        return {**losses(pipe, teacher, args), **drawn(pipe, args)}

    found = collect(args.out, arms, args.seeds, run, settings(args, MAY_CHANGE))
    measures = {m: d for m, d in MEASURES.items() if args.prompts or m != "scene_eval"}
    print(text(table(found, measures)))
    if len(arms) > 1:
        print(text(against(found, args.control, measures)))
    runs = {arm: [args.out / f"{arm}-{seed}" for seed in args.seeds] for arm in arms}
    if args.steps >= Run.log_every and all((f / "log.jsonl").exists() for fs in runs.values() for f in fs):
        (args.out / "losses.svg").write_text(curves.drawn(runs, "student/task"))
