"""Four steps for all widths of an elastic model at once.

    pocket train elastic_scenes_4step --student runs/elastic_scenes/pipeline --few-step-teacher FOLDER
    torchrun --nproc-per-node 2 -m pocketdiffusion train elastic_scenes_4step --student FOLDER \\
        --few-step-teacher FOLDER

The teacher walks from noise to picture as its pipeline says; every step trains the full width and another
one on what it said at the walk's levels (methods/elastic.py, ElasticSteps). That lays pictures out;
kdmd_scenes then sharpens each width, from where its own steps lead. Ends with OUT/pipeline: all widths, of
few steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..device import bf16
from ..diffusion.samplers import STEPS, run
from ..methods.elastic import ElasticSteps
from ..pipeline import Pipeline, same_latents
from ..train import spread
from ..train.fit import Run, every, fit
from ..train.optimisers import adamw, warmup_decay
from .dmd_scenes import few_step_teacher, opened
from .elastic_scenes import shown
from .kdmd_scenes import elastic
from .snapgen_scenes_kd import reads
from .snapgen_scenes_path import Pool, pooled


@dataclass(frozen=True)
class Args:
    student: str  # an elastic pipeline: a shipped name or a folder
    few_step_teacher: str  # a pipeline of few steps: a shipped name or a folder
    out: Path = Path("runs/elastic_scenes_4step")
    inner: float = 0.5  # weight of the distance from the full width
    subs: int = 1  # widths below the full one that train in every step
    steps: int = 4000
    batch: int = 32  # per process
    pool: int = 16  # batches of walks that are there at a time
    uses: int = 8  # steps per batch of the pool
    lr: float = 1e-3
    decay: float = 0.6  # share of the steps, at the end, over which the learning rate falls
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    look: int = 1000  # steps between sample grids in TensorBoard; 0 = none
    device: str = "cpu"


def walks(few: Pipeline, args: Args, half: bool) -> Pool:
    """Where the few-step teacher comes by, and what it says there: (B, K, 2, C, H, W)."""
    times, rule = few.schedule.levels(), STEPS[few.schedule.sampler]

    @torch.no_grad()
    def walk(text: list[str], noise: Tensor, g: torch.Generator) -> Tensor:
        def fresh(_: int) -> Tensor:
            return torch.randn(noise.shape, generator=g).to(noise.device)

        kept, x = [], noise
        with torch.autocast(noise.device.type, torch.bfloat16, enabled=half):
            cond = few.text_encoder.embed(text)
            for step in run(rule, few.transformer, noise, times, cond, fresh):
                # (B, 2, C, H, W); x0 = x - t v
                kept.append(torch.stack([x, (x - step.x0.float()) / step.t[:, None, None, None]], 1))
                x = step.x.float()
        return torch.stack(kept, 1)

    return pooled(few, args, walk)


def main(args: Args) -> None:
    few, base = few_step_teacher(args.few_step_teacher, args), opened(args.student, args)
    if few.schedule.sampler not in ("euler", "renoise"):
        raise ValueError(f"--few-step-teacher {args.few_step_teacher}: expected one by euler or renoise")
    same_latents(args.student, base.vae, args.few_step_teacher, few.vae)
    net, half = elastic(args.student, "--student").to(few.device).train(), bf16(few.device, args.bf16)
    torch.manual_seed(args.seed)
    read, owned = reads(base.text_encoder, False), list(net.parameters())
    levels, told = few.schedule.times or (), {"inner": args.inner, "subs": args.subs}
    method = ElasticSteps(net, net.config.names, read, owned, levels=levels, **told)
    pipe = Pipeline(net, base.text_encoder, base.vae, few.schedule, base.decoder)
    pipe.teacher = few.teacher
    hooks = [every(args.look, shown(pipe, net, args.seed))] if args.look else []
    settings = Run(
        args.steps, args.out, args.seed, bf16=half, ema=0.999, save_every=250, log_every=25, name="elastic"
    )
    optimiser, rate = {"supernet": adamw(owned, args.lr)}, warmup_decay(args.steps, decay=args.decay)
    state = fit(method, walks(few, args, half), optimiser, {"transformer": net}, settings, rate, hooks)
    if spread.rank():
        return
    with state.averaged():
        pipe.save_pretrained(args.out / "pipeline", torch.float16)
