"""SnapGen at full size: SD3.5-Large teaches the 0.38 B U-Net, then four steps.

    pocket train snapgen_full --data photos --teacher stable-diffusion-3.5-large --gemma gemma-2-2b

or, on eight GPUs, torchrun --nproc-per-node 8 -m pocketdiffusion train snapgen_full --device cuda and so on.

``data``: pictures with captions (data/files.py). ``teacher``: a folder of diffusers, whose CLIPs serve
the student too, beside ``gemma``. Under torchrun the weights of student and teacher are split over the
processes (FSDP2). Stages: 256, 512, 1024 pixels, few steps. Every one has a folder of its own in OUT, and a
stopped run goes on where it was.

Lengths, batches, shifts and rates are ours; of the paper, we know 64 GPUs and no duration. Not run; tested
on tiny random stand-ins of every class, three steps per stage, in one process and in two. Ends with
OUT/transformer and, of few steps, OUT/few_step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import store
from ..data.files import Folder
from ..data.latents import Encoded
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.times import grid
from ..methods.adversarial import Adversarial, Guide
from ..methods.kd import Distillation, Embed, Features, features_between
from ..models.unet import UNet
from ..nn.heads import Heads
from ..nn.taps import tap
from ..teachers import encoders, pipeline
from ..teachers.text import ForeignText
from ..train import spread
from ..train.fit import Run, State, fit
from ..train.optimisers import adamw, warmup_cosine
from ..train.shard import shard, whole
from ..types import Batch
from .snapgen_scenes_4step import balance
from .snapgen_scenes_kd import last_block


@dataclass(frozen=True)
class Args:
    data: Path
    teacher: Path  # a pipeline's folder
    gemma: Path  # encoder and tokenizer
    out: Path = Path("runs/snapgen_full")
    preset: str = "snapgen"
    sizes: tuple[int, ...] = (256, 512, 1024)  # pixels
    steps: tuple[int, ...] = (100_000, 40_000, 20_000)  # at each size
    batch: tuple[int, ...] = (32, 8, 2)  # per process
    shifts: tuple[float, ...] = (1.0, 2.0, 3.0)  # of the times; 3 at 1024 pixels is SD3's
    lr: float = 1e-4
    drop_encoder: float = 0.1  # how often each text encoder of the student is absent
    few_steps: int = 10_000  # steps of the step distillation, at the last size; 0 = none
    levels: int = 4  # steps of its result
    taps: int = 8  # blocks of the teacher that the discriminator looks at
    lr_few: float = 1e-5
    lr_heads: float = 1e-4
    seed: int = 0
    bf16: bool | None = None  # None: where the device has it in hardware
    split: bool = True  # weights over processes
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "shifts"):
            if (n := len(getattr(self, name))) != len(self.sizes):
                raise ValueError(f"--{name} has {n} values, --sizes has {len(self.sizes)}")


def reads(text: ForeignText, drop: float = 0.0) -> Embed:
    """Latents as they are and captions as ``text`` reads them, without each of its encoders now and then."""

    def embed(batch: Batch) -> Any:
        cond = text.embed(batch.text)
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
        self.parts = pipeline.load(args.teacher, dtype)
        self.teacher, self.vae = self.parts.transformer.to(device), self.parts.vae.float().to(device)
        self.text_teacher = self.parts.text_encoder.to(device)
        clips = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
        places: dict[str, Any] = {name: (str(args.teacher), *where) for name, where in clips.items()}
        self.text = encoders.load({**places, "gemma": args.gemma}, "snapgen", dtype).to(device)
        torch.manual_seed(args.seed)
        told = {"text": self.text.config.dim, "pooled": self.text.config.pooled}
        config = replace(store.preset("UNet", args.preset), channels=self.teacher.channels, **told)
        self.student, self.device = UNet(config).to(device), device
        self.features = self.last_features()
        if args.split:
            for network in (self.teacher, self.student, self.features.projector):
                shard(network)

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

    def save(self, state: State, name: str) -> None:
        """The averaged student, put together, as OUT/name."""
        with state.averaged():
            found = whole(dict(self.student.state_dict()))
        if spread.rank() == 0:
            plain = UNet(self.student.config)
            plain.load_state_dict(found)
            store.save(plain, self.args.out / name, torch.float16)


def distil(full: Full, stage: int) -> State:
    """Knowledge distillation at one size (methods/kd.py)."""
    args = full.args
    method = Distillation(
        full.student,
        full.teacher,
        reads(full.text, args.drop_encoder),
        reads(full.text_teacher),
        list(full.student.parameters()),
        full.features,
        shift=args.shifts[stage],
    )
    networks = {"transformer": full.student, "projector": full.features.projector}
    run = full.run(f"{args.sizes[stage]}px", args.steps[stage])
    optimiser = {"student": adamw(method.players["student"], args.lr)}
    return fit(method, full.data(stage), optimiser, networks, run, warmup_cosine(run.steps, 1000, 0.1))


def hasten(full: Full) -> State:
    """Step distillation at the last size (methods/adversarial.py), told by the base teacher with guidance."""
    args, teacher, stage = full.args, full.teacher, len(full.args.sizes) - 1
    every = max(1, len(teacher.blocks) // args.taps)
    names = teacher.blocks[every - 1 :: every]
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
        reads(full.text),
        list(full.student.parameters()),
        features,
        reads(full.text_teacher),
        heads,
        tuple(grid(args.levels, args.shifts[stage])[:-1].tolist()),
        guide=Guide(guided, reads(full.text_teacher), shift=args.shifts[stage]),
    )
    optimisers = {
        "generator": adamw(method.players["generator"], args.lr_few, betas=(0.0, 0.99)),
        "discriminator": adamw(method.players["discriminator"], args.lr_heads, betas=(0.0, 0.99)),
    }
    networks, run = {"transformer": full.student, "heads": heads}, full.run("steps", args.few_steps)
    rate = warmup_cosine(run.steps, 500, 0.2)
    return fit(method, full.data(stage), optimisers, networks, run, rate, balance())


def main(args: Args) -> None:
    full = Full(args)
    for stage in range(len(args.sizes)):
        state = distil(full, stage)
    full.save(state, "transformer")
    if args.few_steps:
        full.save(hasten(full), "few_step")
