"""K-DMD in the scenes world: every width of an elastic model learns four steps.

    pocket train kdmd_scenes --model runs/elastic_scenes/pipeline --few-step-teacher runs/dmd_scenes/pipeline
    pocket train kdmd_scenes --model FOLDER --few-step-teacher FOLDER --widths small
    pocket train kdmd_scenes --model FOLDER --few-step-teacher FOLDER --no-knowledge      # plain DMD2
    pocket train kdmd_scenes --model FOLDER --few-step-teacher FOLDER --rank 0            # all widths at once

One width after the other (OUT/WIDTH), with a LoRA of its own on student and critic, so that all of them still
share one file. Beside the distribution's gradient, which needs the many-step teacher, the few-step teacher
tells what it would predict and its last features (methods/dmd.py). A run that was stopped goes on. Ends with
OUT/WIDTH.safetensors, what each width has for itself, for another copy of the same base (pocket generate
--model FOLDER --width OUT/small.safetensors); and, where all widths were taught, with OUT/pipeline: the
elastic model with its LoRA, sampled at four levels without guidance.

With --rank 0, which is ours, there is no LoRA: all widths learn at once, in the weights that they share, told
by predictions alone (methods/dmd.py, ElasticDMD). So ``elastic`` was made, which ships.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..compress.width import write
from ..methods.dmd import Knowledge
from ..models.supernet import Supernet, key, with_lora
from ..pipeline import Pipeline, same_latents, supernet
from ..train import lora, spread
from . import dmd_scenes
from .dmd_scenes import distilled, few_step_teacher, opened
from .snapgen_claims import like
from .snapgen_scenes_kd import last_features, reads


@dataclass(frozen=True)
class Args:
    model: str  # an elastic pipeline: a shipped name or a folder
    few_step_teacher: str  # a pipeline of few steps: a shipped name or a folder
    out: Path = Path("runs/kdmd_scenes")
    widths: tuple[str, ...] = ()  # default: all
    knowledge: bool = True
    features: bool = True  # of the last blocks, beside the prediction
    teacher: str = "scenes"  # of many steps
    guidance: float | None = None  # of the teacher; None: what its pipeline says
    levels: int = 4  # steps of the result
    shift: float = 2.5  # of those levels and of tau; the paper's is 3, at 1024 pixels
    sampler: str | None = None  # renoise or euler; None: renoise, or what a student of few steps has
    ratio: int = 5  # the critic's steps for each of the student's
    rank: int = 16  # of LoRA on student and critic; the paper's is 64, on 32 times the width. 0: see above
    steps: int = 1500
    batch: int = 16  # per process
    lr: float = 1e-4
    lr_critic: float = 1e-4
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    look: int = 250  # steps between samples: their health, and grids in TensorBoard; 0 = none
    device: str = "cpu"


def knowledge_of(args: Any, few: Pipeline, base: Pipeline, seed: int) -> Knowledge:
    """What a few-step teacher tells; ``args`` names it and says whether its features count.

    Features are normalised: the shipped teacher's have a mean square of 13 to 45 where its velocities have 1
    to 2, and with a weight of one they drown all else (docs/log.md). ``seed``: of the projector.
    """
    torch.manual_seed(seed)
    same_latents(args.few_step_teacher, few.vae, "the student", base.vae)
    features = None
    if args.features:
        found = last_features(base.transformer, base.text_encoder, few, base.schedule.size)
        features = replace(found, normalised=True)
    return Knowledge(few.transformer, reads(few.text_encoder, False), features)


def adopt(net: Supernet, width: str, learned: dict[str, Any]) -> None:
    """Put what a width has learned into the supernet."""
    with torch.no_grad():
        for name, (a, b) in learned.items():
            net.lora_a[key(width, name)].copy_(a)
            net.lora_b[key(width, name)].copy_(b)


def elastic(name: str, flag: str = "--model") -> Supernet:
    network = supernet(name)
    if network.config.rank:
        raise ValueError(f"{flag} {name}: has few steps already (a LoRA of rank {network.config.rank})")
    return network


def at_once(net: Supernet, teacher: Pipeline, few: Pipeline, args: Args) -> None:
    """All widths in their shared weights."""
    base = opened(args.model, args)
    base.transformer = net.to(teacher.device).requires_grad_(False)
    told = replace(args, features=False)
    knowledge = knowledge_of(told, few, base, args.seed) if args.knowledge else None
    pipe = distilled(like(dmd_scenes.Args, args, look=args.look), teacher, base, knowledge)
    if not spread.rank():
        pipe.save_pretrained(args.out / "pipeline", torch.float16)


def main(args: Args) -> None:
    net = elastic(args.model)
    widths = args.widths or net.config.names
    for width in widths:
        net.config.plain(width)
    if args.rank < 0 or (args.rank == 0 and set(widths) != set(net.config.names)):
        raise ValueError(f"--rank {args.rank}: expected 1 or more, or 0 for all widths at once")
    teacher, few = opened(args.teacher, args), few_step_teacher(args.few_step_teacher, args)
    if not args.rank:
        at_once(net, teacher, few, args)
        return
    made = with_lora(net, args.rank, 2.0 * args.rank)
    pipe: Pipeline | None = None
    for width in widths:
        base = Pipeline.from_pretrained(args.model, width=width).to(teacher.device)
        for network in base.components.values():
            network.requires_grad_(False)
        knowledge = knowledge_of(args, few, base, args.seed) if args.knowledge else None
        own = like(dmd_scenes.Args, args, out=args.out / width, look=args.look)
        pipe = distilled(own, teacher, base, knowledge)
        adopt(made, width, lora.learned(pipe.transformer))
    if spread.rank() or pipe is None:
        return
    every = Pipeline(made, pipe.text_encoder, pipe.vae, pipe.schedule, pipe.decoder)
    every.teacher = args.teacher
    for width in widths:
        write(made, width, args.out / f"{width}.safetensors", asdict(pipe.schedule))
    # the others would be sampled at four levels that they never learned
    if set(widths) == set(net.config.names):
        every.save_pretrained(args.out / "pipeline", torch.float16)
