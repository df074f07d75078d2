"""SnapGen at full size: SD3.5-Large teaches the 0.38 B U-Net, then four steps.

    pocket train snapgen_full --data photos --teacher stable-diffusion-3.5-large --gemma gemma-2-2b

or, on eight GPUs, torchrun --nproc-per-node 8 -m pocketdiffusion train snapgen_full --device cuda and so on.

``data``: pictures with captions (data/files.py). ``teacher``: a folder of diffusers or a hub id, whose CLIPs
serve the student too, beside ``gemma``. Under torchrun the weights of student and teacher are split over the
processes (FSDP2). Stages: 256, 512, 1024 pixels, few steps. Every one has a folder of its own in OUT, and a
stopped run goes on where it was. The few steps are watched: a collapse stops the run.

``--cache FOLDER`` keeps what the text encoders say of every caption, 4 MB each at full size, so that none is
read twice. ``--offload``: the weights of teacher and text encoders rest in memory and visit the device layer
by layer; the teacher is then whole in every process, and while the generator learns in the last stage, its
layers stay until gradients have passed them.

Lengths, batches, shifts and rates are ours; of the paper, we know 64 GPUs and no duration. Not run; tested
on tiny random stand-ins of every class, three steps per stage, in one process and in two. Ends with the
folders OUT/pipeline and, of few steps, OUT/few_step, for pocket info, bench and export: the student beside
links to the teacher's autoencoder and the text encoders (export/foreign.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from .. import store
from ..data.files import Folder
from ..data.latents import Encoded
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.samplers import STEPS
from ..diffusion.samplers import run as walked
from ..diffusion.times import grid
from ..export import foreign
from ..methods.adversarial import Adversarial, Guide
from ..methods.kd import Distillation, Embed, Features, features_between
from ..models.unet import UNet
from ..nn.heads import Heads
from ..nn.taps import tap
from ..noise import normal
from ..pipeline import Schedule
from ..teachers import encoders, pipeline
from ..teachers.kept import Kept
from ..teachers.text import ForeignText
from ..train import spread
from ..train.fit import Hook, Run, State, every, fit
from ..train.health import Watch, diversity, drift, pairwise
from ..train.optimisers import adamw, warmup_cosine
from ..train.shard import shard, whole
from ..types import Batch
from .snapgen_scenes_4step import balance
from .snapgen_scenes_kd import last_block

# of the pipeline's parts, which of the teacher's serve the student
SHARED = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
LOOKS, PER = 2, 4  # captions, and draws of each, that health is measured on


@dataclass(frozen=True)
class Args:
    data: Path
    teacher: str  # a pipeline's folder or hub id
    gemma: str  # encoder and tokenizer, the same
    out: Path = Path("runs/snapgen_full")
    preset: str = "snapgen"
    sizes: tuple[int, ...] = (256, 512, 1024)  # pixels
    steps: tuple[int, ...] = (100_000, 40_000, 20_000)  # at each size
    batch: tuple[int, ...] = (32, 8, 2)  # per process
    shifts: tuple[float, ...] = (1.0, 2.0, 3.0)  # of the times; 3 at 1024 pixels is SD3's
    lr: float = 1e-4
    drop_encoder: float = 0.1  # how often each text encoder of the student is absent
    cache: Path | None = None  # a folder for what the text encoders say
    offload: bool = False  # weights of teacher and text encoders rest in memory
    few_steps: int = 10_000  # steps of the step distillation, at the last size; 0 = none
    levels: int = 4  # steps of its result
    taps: int = 8  # blocks of the teacher that the discriminator looks at
    lr_few: float = 1e-5
    lr_heads: float = 1e-4
    look: int = 500  # steps between looks at what the few-step student draws; 0 = none
    seed: int = 0
    bf16: bool | None = None  # None: where the device has it in hardware
    split: bool = True  # weights over processes
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "shifts"):
            if (n := len(getattr(self, name))) != len(self.sizes):
                raise ValueError(f"--{name} has {n} values, --sizes has {len(self.sizes)}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"--sizes {' '.join(map(str, self.sizes))}: expected pixels, 1 or more")
        for name in ("levels", "taps"):
            if (n := getattr(self, name)) < 1:
                raise ValueError(f"--{name} {n}: expected 1 or more")


def reads(reader: ForeignText | Kept, text: ForeignText, drop: float = 0.0) -> Embed:
    """Latents as they are and captions as ``reader`` has them, without each encoder of ``text`` at times."""

    def embed(batch: Batch) -> Any:
        cond = reader.embed(batch.text)
        if drop:
            cond = text.dropped(cond, dict.fromkeys(text.encoders, drop), torch.default_generator)
        return batch.x, cond

    return embed


class Full:
    """Both networks and what they read, on their device and split."""

    def __init__(self, args: Args):
        self.args, device = args, choose(args.device)
        self.bf16 = bf16(device, args.bf16)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        root, gemma = pipeline.local(args.teacher), pipeline.local(args.gemma)
        offload = device if args.offload else None
        self.parts = pipeline.load(root, dtype, offload)
        self.teacher, self.text_teacher = self.parts.transformer, self.parts.text_encoder
        self.vae = self.parts.vae.to(device)
        clips = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
        places: dict[str, Any] = {name: (str(root), *where) for name, where in clips.items()}
        self.text = encoders.load({**places, "gemma": gemma}, "snapgen", dtype, offload=offload)
        if not offload:
            for network in (self.teacher, self.text_teacher, self.text):
                network.to(device)
        self.places = {name: root / name for name in SHARED}
        self.places |= {"text_encoder_3": gemma, "tokenizer_3": gemma}
        torch.manual_seed(args.seed)
        widths = {"text": self.text.config.dim, "pooled": self.text.config.pooled}
        config = replace(store.preset("UNet", args.preset), channels=self.teacher.channels, **widths)
        self.student, self.device = UNet(config).to(device), device
        self.check()
        told, told_teacher = (
            Kept(text, args.cache) if args.cache else text for text in (self.text, self.text_teacher)
        )
        self.reads, self.drops = (reads(told, self.text, drop) for drop in (0.0, args.drop_encoder))
        self.reads_teacher = reads(told_teacher, self.text_teacher)
        self.features = self.last_features()
        if args.split:
            # layers that come and go cannot be split
            split = (self.student, self.features.projector, *(() if offload else (self.teacher,)))
            for network in split:
                shard(network)

    def check(self) -> None:
        """ValueError for a flag that does not fit the networks."""
        args, patch = self.args, self.teacher.family.patch(self.teacher.model.config)[1]
        unit = self.vae.config.factor * lcm(patch, self.student.config.patch)
        if wrong := [size for size in args.sizes if size % unit]:
            raise ValueError(f"--sizes {wrong[0]}: expected multiples of {unit} pixels")
        if args.few_steps and args.taps > (there := len(self.teacher.blocks)):
            raise ValueError(f"--taps {args.taps}: the teacher has {there} blocks")

    def last_features(self) -> Features:
        side = self.args.sizes[0] // self.vae.config.factor
        x = torch.zeros(1, self.teacher.channels, side, side, device=self.device)
        conds = self.text.embed([""]), self.text_teacher.embed([""])
        example = (x, x.new_full((1,), 0.5), *conds)
        names = last_block(self.student), self.teacher.last
        return features_between(self.student, self.teacher, names, example, self.teacher.map)

    def data(self, stage: int) -> Encoded:
        size = (self.args.sizes[stage],) * 2
        pictures = Folder(self.args.data, self.args.batch[stage], size, self.device)
        return Encoded(pictures, self.vae.encode, 1, spread.world())

    def run(self, name: str, steps: int) -> Run:
        return Run(steps, self.args.out / name, self.args.seed, bf16=self.bf16, ema=0.9999, name=name)

    def average(self, state: State) -> None:
        """The averaged weights of a stage that is over, in place of the last ones."""
        with state.averaged():
            found = {k: v.detach().clone() for k, v in self.student.state_dict().items()}
        self.student.load_state_dict(found)

    def save(self, name: str, schedule: Schedule) -> None:
        """The student, put together, as OUT/name."""
        found = whole(dict(self.student.state_dict()))
        if spread.rank() == 0:
            plain = UNet(self.student.config)
            plain.load_state_dict(found)
            foreign.save(self.args.out / name, plain, schedule, self.places, torch.float16)

    @torch.no_grad()
    def drawn(self, captions: list[str], sampler: str, levels: Tensor, size: int) -> Tensor:
        """Latents that the student draws, PER of each caption, always from the same noise."""
        cond = self.text.embed([caption for caption in captions for _ in range(PER)])
        side = size // self.vae.config.factor
        shape = self.teacher.channels, side, side

        def noise(step: int) -> Tensor:
            rows = [normal(self.args.seed, i, step, shape) for i in range(len(cond.tokens))]
            return torch.from_numpy(np.stack(rows)).to(self.device)

        x, fresh = noise(0), noise if sampler == "renoise" else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            for step in walked(STEPS[sampler], self.student, x, levels, cond, fresh):
                x = step.x
        # without gradients, FSDP2 leaves the outermost part whole
        if isinstance(self.student, FSDPModule):
            self.student.reshard()
        return x.float()


def distil(full: Full, stage: int) -> State:
    """Knowledge distillation at one size (methods/kd.py)."""
    args = full.args
    method = Distillation(
        full.student,
        full.teacher,
        full.drops,
        full.reads_teacher,
        list(full.student.parameters()),
        full.features,
        shift=args.shifts[stage],
    )
    networks = {"transformer": full.student, "projector": full.features.projector}
    run = full.run(f"{args.sizes[stage]}px", args.steps[stage])
    optimiser = {"student": adamw(method.players["student"], args.lr)}
    return fit(method, full.data(stage), optimiser, networks, run, warmup_cosine(run.steps, 1000, 0.1))


def spaced(blocks: tuple[str, ...], count: int) -> tuple[str, ...]:
    """``count`` of them at even distances, the last one among them."""
    return tuple(blocks[round((i + 1) * len(blocks) / count) - 1] for i in range(count))


def watches(full: Full, schedule: Schedule) -> list[Hook]:
    """What stops the step distillation: the balance, and the latents that the student draws.

    Limits are ours: latents of one caption that lie less than 0.3 as far apart as those that the student
    drew before, in 28 steps; channels that are 1.5 standard deviations off the data's.
    """
    args, hooks = full.args, balance()
    if not args.look:
        return hooks
    # the same in every process, which all draw together
    batch = full.data(len(args.sizes) - 1)(args.seed, 0)
    said: Any = batch.text
    captions = [said[i % len(said)] for i in range(LOOKS)]
    before = full.drawn(captions, "euler", grid(28, schedule.shift), schedule.size)
    least, levels = 0.3 * pairwise(before, PER), schedule.levels()

    def drawn() -> Tensor:
        return full.drawn(captions, schedule.sampler, levels, schedule.size)

    varied = Watch("diversity", diversity(drawn, lambda z: z, PER), low=least, patience=2)
    near = Watch("drift", drift(drawn, batch.x), high=1.5, patience=2)
    return [*hooks, every(args.look, varied), every(args.look, near)]


def hasten(full: Full, schedule: Schedule) -> State:
    """Step distillation at the last size (methods/adversarial.py), told by the base teacher with guidance."""
    args, teacher, stage = full.args, full.teacher, len(full.args.sizes) - 1
    names = spaced(teacher.blocks, args.taps)
    x, t, cond = teacher.example(1, full.device)
    features = tap(teacher, names)
    with torch.no_grad():
        found = features(x, t, cond)[1]
    channels = {name: teacher.map(feature, x).shape[1] for name, feature in found.items()}
    pooled = full.text_teacher.config.pooled
    heads = Heads(channels, text=pooled, to_map=teacher.map).to(full.device)
    null = full.text_teacher.embed([""])
    guided = cfg(teacher, null, full.parts.schedule["guidance"], (0.0, 1.0))
    method = Adversarial(
        full.student,
        full.reads,
        list(full.student.parameters()),
        features,
        full.reads_teacher,
        heads,
        schedule.times or (),
        guide=Guide(guided, full.reads_teacher, shift=args.shifts[stage]),
    )
    optimisers = {
        "generator": adamw(method.players["generator"], args.lr_few, betas=(0.0, 0.99)),
        "discriminator": adamw(method.players["discriminator"], args.lr_heads, betas=(0.0, 0.99)),
    }
    networks, run = {"transformer": full.student, "heads": heads}, full.run("steps", args.few_steps)
    rate = warmup_cosine(run.steps, 500, 0.2)
    return fit(method, full.data(stage), optimisers, networks, run, rate, watches(full, schedule))


def main(args: Args) -> None:
    full = Full(args)
    for stage in range(len(args.sizes)):
        state = distil(full, stage)
    full.average(state)
    shift = args.shifts[-1]
    told = Schedule(shift=shift, guidance=full.parts.schedule["guidance"], size=args.sizes[-1])
    full.save("pipeline", told)
    if args.few_steps:
        times = tuple(grid(args.levels, shift)[:-1].tolist())
        told = replace(told, sampler="renoise", steps=len(times), times=times, guidance=1.0)
        full.average(hasten(full, told))
        full.save("few_step", told)
