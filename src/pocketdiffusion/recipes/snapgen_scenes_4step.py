"""SnapGen's step distillation: a scenes denoiser learns to draw in four steps.

    pocket train snapgen_scenes_4step --student runs/snapgen_scenes_kd/pipeline
    pocket train snapgen_scenes_4step --student FOLDER --few-step-teacher FOLDER     # a teacher of few steps
    torchrun --nproc-per-node 2 -m pocketdiffusion train snapgen_scenes_4step --student FOLDER

The discriminator is small heads on every block of the frozen base teacher. Beside the adversarial loss the
student is told what a few-step teacher predicts; without one, the base teacher with its guidance takes that
place, as SnapGen's specification of the fallback has it here (methods/adversarial.py). Health is watched, and
a collapse stops the run. Not run in full yet; the default is sized for an hour or two on two cores. Ends with
a pipeline folder, OUT/pipeline, that is sampled by renoise at four levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import store
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.samplers import Step
from ..diffusion.times import grid
from ..methods.adversarial import Adversarial, Guide, Tapped
from ..nn.heads import Heads
from ..nn.projector import as_map
from ..nn.taps import tap
from ..pipeline import SHIPPED, Pipeline, Schedule, same_latents
from ..train import spread
from ..train.fit import Data, Hook, Run, State, every, fit
from ..train.health import Watch, diversity, drift, least, pairwise, ratio
from ..train.optimisers import adamw, warmup_cosine
from ..types import Cond, Denoiser, Method
from .scenes_teacher import LOOK
from .snapgen_scenes_kd import blocks, reads, scenes, shown

PER = 4  # pictures of each prompt that diversity is measured on


@dataclass(frozen=True)
class Args:
    student: str  # a folder with the pipeline to begin with
    out: Path = Path("runs/snapgen_scenes_4step")
    teacher: str = "scenes"  # the discriminator's features, and the guided predictions of the fallback
    few_step_teacher: Path | None = None  # a pipeline folder; sampled without guidance
    levels: int = 4  # steps of the result
    shift: float = 2.5  # of those levels
    objective: str = "hinge"  # or non_saturating, relativistic (methods/adversarial.py)
    weight: float = 1.0  # of the distillation term
    r1: float = 0.0  # weight of the gradient penalty
    width: int = 32  # of the discriminator's heads
    steps: int = 1500
    batch: int = 16  # per process
    uses: int = 4  # steps that a batch serves, with other levels and noise
    lr: float = 2e-5
    lr_heads: float = 1e-4
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    look: int = 250  # steps between samples: their health, and grids in TensorBoard; 0 = none
    device: str = "cpu"


def guide_of(args: Args, teacher: Pipeline) -> Guide:
    """A few-step teacher as it is, or the base teacher with the guidance that its pipeline asks for."""
    if args.few_step_teacher:
        given = Pipeline.from_pretrained(args.few_step_teacher).to(teacher.device)
        same_latents(str(args.few_step_teacher), given.vae, args.teacher, teacher.vae)
        model: Denoiser = given.transformer.requires_grad_(False)
        return Guide(model, reads(given.text_encoder, False), args.weight, args.shift)
    with torch.no_grad():
        null = teacher.text_encoder.embed([""])
    guided = cfg(teacher.transformer, null, teacher.schedule.guidance, teacher.schedule.interval)
    return Guide(guided, reads(teacher.text_encoder, False), args.weight, args.shift)


def judge_of(teacher: Pipeline, example: tuple[Tensor, Cond], width: int) -> tuple[Tapped, Heads]:
    """A tap on every block of the frozen teacher, and a head for each of them."""
    features = tap(teacher.transformer, blocks(teacher.transformer))
    x, cond = example
    with torch.no_grad():
        found = features(x, x.new_full((len(x),), 0.5), cond)[1]
    channels = {name: as_map(feature, x).shape[1] for name, feature in found.items()}
    text = 0 if cond.pooled is None else cond.pooled.shape[1]
    return features, Heads(channels, width, text).to(teacher.device)


def balance() -> list[Hook]:
    """Stop when one of the two has won. The limits are ours: far outside what a run does that goes well."""
    accuracy = least("discriminator/accuracy_real", "discriminator/accuracy_fake")
    return [
        every(10, Watch("accuracy", accuracy, 0.01, 0.99, patience=20)),
        every(10, Watch("ratio", ratio("generator/adversarial", "generator/scaled"), high=10.0, patience=20)),
    ]


def varied(pipe: Any, base: Pipeline, seed: int, name: str = "") -> Hook:
    """Stop when the pictures of a prompt become alike, against what ``base`` draws with all of its steps."""
    prompts = [p for p in LOOK for _ in range(PER)]
    features = store.load(SHIPPED / "scenes" / "features").to(pipe.device).requires_grad_(False).features

    def drawn() -> Tensor:
        return pipe.sample(prompts, seed=seed)

    with torch.no_grad():
        least = 0.3 * pairwise(features(base.sample(prompts, seed=seed)), PER)
    return Watch(f"diversity {name}".strip(), diversity(drawn, features, PER), low=least, patience=2)


def watches(pipe: Pipeline, base: Pipeline, latents: Tensor, args: Args) -> list[Hook]:
    """What stops the run: the balance, and what the pictures look like."""
    hooks = balance()
    if not args.look:
        return hooks

    def drawn_latents() -> Tensor:
        steps: list[Step] = []
        pipe.sample([p for p in LOOK for _ in range(PER)], seed=args.seed, callback=steps.append)
        return steps[-1].x

    near = Watch("drift", drift(drawn_latents, latents), high=1.5, patience=2)
    looks = varied(pipe, base, args.seed), near, shown(pipe, args.seed)
    return [*hooks, *(every(args.look, hook) for hook in looks)]


def opened(args: Args) -> tuple[Pipeline, Pipeline]:
    """The teacher and the student as it is given, both frozen."""
    device = choose(args.device)
    teacher, base = (Pipeline.from_pretrained(name).to(device) for name in (args.teacher, args.student))
    same_latents(args.student, base.vae, args.teacher, teacher.vae)
    for network in (*teacher.components.values(), *base.components.values()):
        network.requires_grad_(False)
    return teacher, base


def few(count: int, shift: float, base: Pipeline) -> Schedule:
    """How the result is sampled: by renoise at its levels, without guidance."""
    levels = tuple(grid(count, shift)[:-1].tolist())
    return replace(base.schedule, sampler="renoise", times=levels, guidance=1.0, steps=len(levels))


def prepared(args: Args, teacher: Pipeline, base: Pipeline) -> tuple[Adversarial, Data, Pipeline]:
    """The method, its data, and the pipeline of few steps whose denoiser it trains."""
    torch.manual_seed(args.seed)
    data, read = scenes(args, teacher, teacher.schedule.size), reads(teacher.text_encoder, False)
    features, heads = judge_of(teacher, read(data(args.seed, 0)), args.width)
    student = Pipeline.from_pretrained(args.student).transformer.to(teacher.device).train()
    schedule = few(args.levels, args.shift, base)
    method = Adversarial(
        student,
        reads(base.text_encoder, False),
        list(student.parameters()),
        features,
        read,
        heads,
        schedule.times or (),
        args.objective,
        guide_of(args, teacher),
        args.r1,
    )
    pipe = Pipeline(student, base.text_encoder, base.vae, schedule)
    pipe.teacher = args.teacher
    return method, data, pipe


def train(method: Method, data: Data, networks: dict[str, nn.Module], args: Args, hooks: list[Hook]) -> State:
    """All players of ``method`` with the settings of this recipe."""
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(choose(args.device), args.bf16),
        ema=0.999,
        save_every=250,
        log_every=25,
        name="student",
    )
    rates = {"generator": args.lr, "discriminator": args.lr_heads}
    optimisers = {who: adamw(owned, rates[who], betas=(0.0, 0.99)) for who, owned in method.players.items()}
    return fit(method, data, optimisers, networks, run, warmup_cosine(args.steps, 100, 0.2), hooks)


def hastened(args: Args, teacher: Pipeline, base: Pipeline) -> tuple[State, Pipeline]:
    """A run, and the pipeline whose denoiser it has trained."""
    method, data, pipe = prepared(args, teacher, base)
    hooks = watches(pipe, base, data(args.seed, 0).x, args)
    networks = {"transformer": pipe.transformer, "heads": method.heads}
    return train(method, data, networks, args, hooks), pipe


def main(args: Args) -> None:
    state, pipe = hastened(args, *opened(args))
    if spread.rank():
        return
    with state.averaged():
        pipe.save_pretrained(args.out / "pipeline", torch.float16)
