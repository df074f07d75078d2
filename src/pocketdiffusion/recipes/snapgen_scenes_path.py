"""Four steps by the teacher's trajectories: guided sampling, taken over by a U-Net.

    pocket train snapgen_scenes_path                                     # from scratch
    pocket train snapgen_scenes_path --student runs/snapgen_scenes_kd/pipeline
    torchrun --nproc-per-node 2 -m pocketdiffusion train snapgen_scenes_path
    pocket train snapgen_scenes_path --device cuda --batch 512 --lr 2e-3

The teacher samples as its pipeline says, guidance included, with ``fine`` steps for each of the student's;
prompts are those of the training world, and no picture is drawn. A pool of trajectories is made, used for a
while, and thrown away. What comes out needs no guidance and is sampled by Euler at four levels; it may be the
pipeline to ship, or the few-step teacher that SnapGen's adversarial stage asks for (snapgen_scenes_4step
--few-step-teacher). Not SnapGen's: the paper's few-step teacher is SD3.5-Large-Turbo. ``snapgen_scenes``,
shipped, began with 5,300 steps of two processes (two hours of two cores): 0.498 of the teacher's 0.759;
dmd_scenes made 0.687 of it. Ends with OUT/pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.samplers import euler, run
from ..diffusion.times import grid
from ..methods.trajectory import Trajectory
from ..pipeline import Pipeline, same_latents
from ..train import spread
from ..train.fit import Run, State, every, fit, seeded
from ..train.optimisers import adamw, warmup_decay
from ..types import Batch, Denoiser
from .snapgen_scenes_4step import few
from .snapgen_scenes_kd import reads, shown, student_of


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/snapgen_scenes_path")
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    student: str | None = None  # a shipped name or a folder to go on from; None: a fresh UNet
    preset: str = "scenes"  # of a fresh one
    levels: int = 4  # steps of the student
    fine: int = 3  # steps of the teacher for each of them
    shift: float = 2.5  # of the levels
    steps: int = 8000
    batch: int = 32  # per process
    pool: int = 16  # batches of trajectories that are there at a time
    uses: int = 16  # steps per batch of the pool: every point of a trajectory is seen uses / levels times
    lr: float = 1.5e-3
    decay: float = 0.7  # share of the steps, at the end, over which the learning rate falls
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    look: int = 1000  # steps between sample grids in TensorBoard; 0 = none
    device: str = "cpu"


class Paths(NamedTuple):
    x: Tensor  # (N, K + 1, C, H, W), or what else a batch has
    text: list[str]


class Pool:
    """(seed, step) -> a batch of the trajectories that ``make(seed, number)`` gives for ``rounds`` steps.

    All of it follows from the two numbers: a run that goes on makes the same pool again.
    """

    def __init__(self, make: Callable[[int, int], Paths], batch: int, rounds: int):
        self.make, self.batch, self.rounds = make, batch, rounds
        self.held: tuple[tuple[int, int], Paths] | None = None

    def __call__(self, seed: int, step: int) -> Batch:
        number, rank = step // spread.world(), spread.rank()
        where = seed, number // self.rounds * spread.world() + rank
        if self.held is None or self.held[0] != where:
            self.held = where, self.make(*where)
        paths = self.held[1]
        g = torch.Generator().manual_seed(seeded(seed, number))
        rows = torch.randperm(len(paths.text), generator=g)[: self.batch]
        return Batch(paths.x[rows.to(paths.x.device)], [paths.text[i] for i in rows.tolist()])


@torch.no_grad()
def path(
    guided: Denoiser, teacher: Pipeline, text: list[str], noise: Tensor, args: Args, half: bool
) -> Tensor:
    """The teacher's trajectories from ``noise``, at the student's levels: (B, K + 1, C, H, W)."""
    fine, kept = grid(args.levels * args.fine, args.shift), [noise]
    with torch.autocast(noise.device.type, torch.bfloat16, enabled=half):
        cond = teacher.text_encoder.embed(text)
        for step in run(euler, guided, noise, fine, cond):
            if (step.index + 1) % args.fine == 0:
                kept.append(step.x.float())
    return torch.stack(kept, 1)


def pooled(pipe: Pipeline, args: Any, walk: Callable[[list[str], Tensor, torch.Generator], Tensor]) -> Pool:
    """What ``walk(captions, noise, generator)`` keeps of a sampler's steps, for captions of training."""
    side, channels = pipe.schedule.size // pipe.vae.config.factor, pipe.vae.config.channels
    world = Scenes(TRAIN_WORLD, args.batch, pipe.schedule.size)

    def make(seed: int, number: int) -> Paths:
        found, told = [], []
        for i in range(args.pool):
            text = [s.caption for s in world.specs(seed, number * args.pool + i)]
            g = torch.Generator().manual_seed((seed * 2**20 + number) * 2**10 + i)
            noise = torch.randn(len(text), channels, side, side, generator=g).to(pipe.device)
            found.append(walk(text, noise, g))
            told += text
        return Paths(torch.cat(found), told)

    return Pool(make, args.batch, args.pool * args.uses)


def trajectories(teacher: Pipeline, args: Args, half: bool) -> Pool:
    with torch.no_grad():
        null = teacher.text_encoder.embed([""])
    guided = cfg(teacher.transformer, null, teacher.schedule.guidance, teacher.schedule.interval)

    def walk(text: list[str], noise: Tensor, g: torch.Generator) -> Tensor:
        return path(guided, teacher, text, noise, args, half)

    return pooled(teacher, args, walk)


def followed(args: Args, teacher: Pipeline, base: Pipeline, student: nn.Module) -> tuple[State, Pipeline]:
    """A run, and the pipeline whose denoiser it has trained; text and autoencoder are those of ``base``."""
    half = bf16(teacher.device, args.bf16)
    schedule = replace(few(args.levels, args.shift, teacher), sampler="euler", interval=(0.0, 1.0))
    owned = list(student.train().parameters())
    method = Trajectory(student, reads(base.text_encoder, False), owned, schedule.times or ())
    pipe = Pipeline(student, base.text_encoder, base.vae, schedule)
    pipe.teacher = args.teacher
    hooks = [every(args.look, shown(pipe, args.seed))] if args.look else []
    run = Run(
        args.steps, args.out, args.seed, bf16=half, ema=0.999, save_every=250, log_every=25, name="student"
    )
    optimiser, rate = {"student": adamw(owned, args.lr)}, warmup_decay(args.steps, decay=args.decay)
    data = trajectories(teacher, args, half)
    return fit(method, data, optimiser, {"transformer": student}, run, rate, hooks), pipe


def main(args: Args) -> None:
    device = choose(args.device)
    teacher = Pipeline.from_pretrained(args.teacher).to(device)
    base = Pipeline.from_pretrained(args.student).to(device) if args.student else teacher
    same_latents(str(args.student), base.vae, args.teacher, teacher.vae)
    for network in (*teacher.components.values(), *base.components.values()):
        network.requires_grad_(False)
    torch.manual_seed(args.seed)
    student = base.transformer if args.student else student_of("UNet", args.preset, teacher)
    state, pipe = followed(args, teacher, base, student)
    if spread.rank():
        return
    with state.averaged():
        pipe.save_pretrained(args.out / "pipeline", torch.float16)
