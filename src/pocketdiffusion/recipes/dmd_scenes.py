"""DMD2 in the scenes world: the DiT teacher itself learns to draw in four steps.

    pocket train dmd_scenes                                              # the shipped teacher, two CPU cores
    torchrun --nproc-per-node 2 -m pocketdiffusion train dmd_scenes
    pocket train dmd_scenes --rank 64                                    # LoRA on student and critic
    pocket train dmd_scenes --gan                                        # DMD2's discriminator on the critic
    pocket train dmd_scenes --student snapgen_scenes                     # a student of few steps, bettered
    torchrun --nproc-per-node 2 -m pocketdiffusion train dmd_scenes --student FOLDER --batch 24 --ratio 2 \\
        --lr 2e-4 --lr-critic 2e-4                                       # so, of what ships

Student and critic begin as the teacher, or the student as it is given and the critic as the teacher; no
picture is needed but for --gan, whose heads compare with the world's own. Health is watched: what is drawn
must not lose its variety. The DiT takes 18 minutes of one core (--steps 1000 --ratio 2
--lr 2e-4 --lr-critic 2e-4). The second part of ``snapgen_scenes``, shipped,
is the last command (the first 269 of 2,000 steps in one process), of which the averaged weights after 1,750
ship: from 0.498 to 0.687 in SceneEval in 80 minutes. Ends with OUT/pipeline, sampled at a few levels without
guidance: for a DiT, K-DMD's few-step teacher (kdmd_scenes).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.samplers import STEPS
from ..methods.dmd import DMD, ElasticDMD, Gan, Knowledge
from ..models.supernet import Supernet
from ..nn.heads import Heads
from ..nn.projector import as_map
from ..nn.taps import tap
from ..pipeline import Pipeline, Schedule, same_latents
from ..train import lora, spread
from ..train.fit import Data, Hook, Run, State, every, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch
from . import elastic_scenes
from .elastic_scenes import Drawing
from .snapgen_scenes_4step import few, varied
from .snapgen_scenes_kd import blocks, reads, scenes, shown

# every projection of a block, and nothing else
ADAPTED = r"blocks\.\d+\.\w+\.(q|k|v|out|up|down)"


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/dmd_scenes")
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    student: str | None = None  # a shipped name or a folder to begin with; None: the teacher
    guidance: float | None = None  # of the teacher; None: what its pipeline says
    levels: int = 4  # steps of the result; a student of few steps keeps its own
    shift: float = 2.5  # of those levels and of tau
    sampler: str | None = None  # renoise or euler; None: renoise, or what a student of few steps has
    ratio: int = 5  # the critic's steps for each of the student's
    rank: int = 0  # of LoRA on student and critic; 0: all weights train
    gan: bool = False
    steps: int = 2000
    batch: int = 16  # per process
    uses: int = 4  # with --gan: steps that a batch of pictures serves
    lr: float = 5e-5
    lr_critic: float = 1e-4
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    look: int = 250  # steps between samples: their health, and grids in TensorBoard; 0 = none
    device: str = "cpu"


class Told:
    """(seed, step) -> captions of the training world, and latents of zero where no picture is needed."""

    def __init__(self, teacher: Pipeline, batch: int):
        self.world = Scenes(TRAIN_WORLD, batch, teacher.schedule.size)
        side = teacher.schedule.size // teacher.vae.config.factor
        self.x = torch.zeros(batch, teacher.vae.config.channels, side, side, device=teacher.device)

    def __call__(self, seed: int, step: int) -> Batch:
        return Batch(self.x, [s.caption for s in self.world.specs(seed, step)])


def owned(network: nn.Module, rank: int) -> list[nn.Parameter]:
    """What trains of a network: LoRA, or everything."""
    if rank:
        return lora.attach(network, rank, 2.0 * rank, ADAPTED)
    return list(network.requires_grad_(True).parameters())


def heads_of(critic: Any, example: tuple[Tensor, Any]) -> Gan:
    """Heads on every block of the critic."""
    x, cond = example
    names = blocks(critic)
    with torch.no_grad():
        found = tap(critic, names)(x, x.new_full((len(x),), 0.5), cond)[1]
    channels = {name: as_map(feature, x).shape[1] for name, feature in found.items()}
    return Gan(Heads(channels, 32, 0 if cond.pooled is None else cond.pooled.shape[1]).to(x.device), names)


@dataclass
class Trained:
    """A method, the networks that it changes, and the pipeline of few steps that comes out."""

    method: DMD
    networks: dict[str, nn.Module]
    pipe: Pipeline


def sampled(args: Any, base: Pipeline) -> Schedule:
    """How the student is sampled: as it was, if in few steps."""
    own = base.schedule
    if not own.times:
        return replace(few(args.levels, args.shift, base), sampler=args.sampler or "renoise")
    if args.sampler not in (None, own.sampler):
        raise ValueError(f"--sampler {args.sampler}: the student was taught its steps by {own.sampler}")
    return own


def prepared(args: Any, teacher: Pipeline, base: Pipeline, knowledge: Knowledge | None = None) -> Trained:
    """``base``: what student and critic begin as; the critic as the teacher where base has few steps, since
    it has no scores. Of a supernet all widths learn.
    """
    torch.manual_seed(args.seed)
    scores = teacher if base.schedule.times else base
    student, critic = (deepcopy(p.transformer).train() for p in (base, scores))
    trained, judging = owned(student, args.rank), owned(critic, args.rank)
    read, read_teacher = reads(base.text_encoder, False), reads(teacher.text_encoder, False)
    networks: dict[str, nn.Module] = {"transformer": student, "critic": critic}
    gan = None
    if args.gan:
        gan = heads_of(critic, reads(scores.text_encoder, False)(Told(scores, 2)(0, 0)))
        networks["heads"] = gan.heads
    if knowledge and knowledge.features:
        networks["projector"] = knowledge.features.projector
    with torch.no_grad():
        null = teacher.text_encoder.embed([""])
    scale = teacher.schedule.guidance if args.guidance is None else args.guidance
    guided = cfg(teacher.transformer, null, scale, teacher.schedule.interval)
    schedule = sampled(args, base)
    method = (ElasticDMD if isinstance(student, Supernet) else DMD)(
        student,
        critic,
        guided,
        read,
        read_teacher,
        trained,
        judging,
        schedule.times or (),
        args.ratio,
        args.shift,
        knowledge,
        gan,
        STEPS[schedule.sampler],
        read_teacher if scores is teacher else None,
    )
    pipe = Pipeline(student, base.text_encoder, base.vae, schedule, base.decoder)
    pipe.teacher = args.teacher
    return Trained(method, networks, pipe)


def looking(pipe: Pipeline, base: Pipeline, seed: int) -> list[Hook]:
    """Stop when what is drawn loses its variety, of every width of a supernet; and sample grids."""
    net = pipe.transformer
    if not isinstance(net, Supernet):
        return [varied(pipe, base, seed), shown(pipe, seed)]
    watches = [varied(Drawing(pipe, net, name), base, seed, name) for name in net.config.names]
    return [*watches, elastic_scenes.shown(pipe, net, seed)]


def train(made: Trained, data: Data, args: Any, hooks: list[Hook]) -> State:
    run = Run(
        args.steps,
        args.out,
        args.seed,
        clip=10.0,  # DMD2
        bf16=bf16(made.pipe.device, args.bf16),
        ema=0.99,
        save_every=250,
        log_every=25,
        name="student",
    )
    rates = {"student": args.lr, "critic": args.lr_critic}
    players = made.method.players
    optimisers = {who: adamw(p, rates[who], betas=(0.0, 0.99)) for who, p in players.items()}
    rate = warmup_cosine(args.steps, 50, 0.2)
    return fit(made.method, data, optimisers, made.networks, run, rate, hooks)


def distilled(args: Any, teacher: Pipeline, base: Pipeline, knowledge: Knowledge | None = None) -> Pipeline:
    """Few steps for ``base``: the averaged student, plain. Also used by kdmd_scenes and the claims."""
    if args.sampler not in (None, "euler", "renoise"):
        raise ValueError(f"--sampler {args.sampler}: expected euler or renoise")
    if teacher.schedule.times:
        raise ValueError(f"--teacher {args.teacher}: has few steps and so no scores, expected one of many")
    made = prepared(args, teacher, base, knowledge)
    data: Data = scenes(args, teacher, teacher.schedule.size) if args.gan else Told(base, args.batch)
    hooks: list[Hook] = []
    if args.look:
        hooks = [every(args.look, hook) for hook in looking(made.pipe, base, args.seed)]
    state = train(made, data, args, hooks)
    student: Any = made.pipe.transformer
    with state.averaged():
        kept = {name: value.clone() for name, value in student.state_dict().items()}
    student.load_state_dict(kept)
    return made.pipe


def opened(name: str, args: Any, width: str | None = None) -> Pipeline:
    """A pipeline, frozen; ``width``: of an elastic one."""
    pipe = Pipeline.from_pretrained(name, width=width).to(choose(args.device))
    for network in pipe.components.values():
        network.requires_grad_(False)
    return pipe


def few_step_teacher(name: str, args: Any) -> Pipeline:
    """One that is asked as it is, frozen. ValueError for any other."""
    pipe = opened(name, args)
    if not pipe.schedule.times:
        raise ValueError(f"--few-step-teacher {name}: has many steps, expected one of few")
    if pipe.schedule.guidance != 1:
        raise ValueError(f"--few-step-teacher {name}: is guided, expected one that is sampled without")
    return pipe


def main(args: Args) -> None:
    teacher = opened(args.teacher, args)
    base = opened(args.student, args) if args.student else teacher
    same_latents(str(args.student), base.vae, args.teacher, teacher.vae)
    pipe = distilled(args, teacher, base)
    if spread.rank():
        return
    pipe.transformer = lora.merge(pipe.transformer)
    pipe.save_pretrained(args.out / "pipeline", torch.float16)
