"""Lazy plans for a pipeline: gates are trained, and plans are read off them.

    pocket train lazy_scenes                                             # the shipped pipeline, 50 steps
    pocket train lazy_scenes --steps-sampled 20 --laziness 0.2 0.4
    pocket train lazy_scenes --branches "blocks.*.attn" "blocks.*.cross" "blocks.*.mlp"      # ours: all kinds

Only gates train, for a few hundred steps, by LazyDiT's scheme of two adjacent levels (methods/gates.py);
self-attention and feed-forward may rest, as in the paper. Then the gated pipeline draws --looked prompts, and
a plan for every --laziness skips what the gates kept least. Numbers: docs/results.md. Ends with
OUT/gates.safetensors, maps of the plans (SVG) and OUT/pipeline, the pipeline with its plans and
--steps-sampled steps:

    pocket generate "two green stars" --model runs/lazy_scenes/pipeline --lazy 0.4
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..compress.lazy import ByGates, Calls, Lazy, ranked
from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.samplers import STEPS, run
from ..disk import save_tensors
from ..eval.plots import heat
from ..methods.gates import LearnGates
from ..nn.gate import Gates, branches, widths
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import Run, fit
from ..types import Denoiser
from .snapgen_scenes_kd import reads, scenes


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/lazy_scenes")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    branches: tuple[str, ...] = ("blocks.*.attn", "blocks.*.mlp")  # * for a block's number
    steps_sampled: int = 50  # of the sampler; gates are of its levels
    laziness: tuple[float, ...] = (0.2, 0.4)  # a plan for each
    rho: float = 3e-5  # weight of being computed, of every kind of branch; between all rest and none
    looked: int = 64  # prompts that plans are read off
    steps: int = 300
    batch: int = 32  # per process
    uses: int = 4
    lr: float = 3e-4  # ours: at 1e-2 all gates are shut after a few steps and rank nothing
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def trained(pipe: Pipeline, args: Args) -> Gates:
    """Gates for every branch and level."""
    names = branches(pipe.transformer, args.branches)
    gates = Gates(
        widths(pipe.transformer, pipe.transformer.example(1, pipe.device), names), args.steps_sampled
    )
    gates.to(pipe.device)
    times = pipe.schedule.levels()[:-1].tolist()
    rho = {name.rpartition(".")[2]: args.rho for name in names}
    method = LearnGates(pipe.transformer, gates, reads(pipe.text_encoder, False), times, rho)
    settings = Run(
        args.steps, args.out, args.seed, bf16=bf16(pipe.device, args.bf16), save_every=100, name="gates"
    )
    optimiser = torch.optim.AdamW(gates.parameters(), args.lr, weight_decay=0.0)
    fit(method, scenes(args, pipe, pipe.schedule.size), {"gates": optimiser}, {"gates": gates}, settings)
    return gates


def walking(pipe: Pipeline, x: torch.Tensor, captions: list[str]) -> Callable[[Denoiser], torch.Tensor]:
    """Whole trajectories from noise ``x``, guided as the pipeline is, with any denoiser; no decoder."""
    schedule = pipe.schedule
    with torch.no_grad():
        cond, null = pipe.text_encoder.embed(captions), pipe.text_encoder.embed([""])

    @torch.no_grad()
    def walk(denoiser: Denoiser) -> torch.Tensor:
        model, end = cfg(denoiser, null, schedule.guidance, schedule.interval), x
        for step in run(STEPS[schedule.sampler], model, x, schedule.levels(), cond):
            end = step.x
        return end

    return walk


def looked(pipe: Pipeline, gates: Gates, args: Args) -> tuple[ByGates, Calls]:
    """Gates that have seen some trajectories, guided as the pipeline is."""
    by, calls = ByGates(gates, pipe.schedule.levels()[:-1].tolist()), Calls(decided={})
    lazy, world = Lazy(pipe.transformer, by), Scenes(TRAIN_WORLD, 16, pipe.schedule.size)
    side = pipe.schedule.size // pipe.vae.config.factor
    for i in range(max(1, args.looked // 16)):
        captions = [s.caption for s in world.specs(args.seed + 1, i)]
        g = torch.Generator().manual_seed(i)
        x = torch.randn(16, pipe.vae.config.channels, side, side, generator=g).to(pipe.device)
        walking(pipe, x, captions)(lazy.start(calls))
    return by, calls


def main(args: Args) -> None:
    if args.steps_sampled < 2 or args.steps_sampled % 2:
        raise ValueError(
            f"--steps-sampled {args.steps_sampled}: expected an even number, gates work in pairs"
        )
    if any(not 0 < share <= 0.5 for share in args.laziness):
        raise ValueError(f"--laziness {max(args.laziness):g}: expected more than 0 and at most 0.5")
    pipe = Pipeline.from_pretrained(args.model).to(choose(args.device))
    if pipe.schedule.times:
        raise ValueError(
            f"--model {args.model}: has {len(pipe.schedule.times)} steps of its own, none to spare"
        )
    for network in pipe.components.values():
        network.requires_grad_(False)
    torch.manual_seed(args.seed)
    if args.steps_sampled != pipe.schedule.steps:
        pipe.plans = {}  # they are for other times
    pipe.schedule = replace(pipe.schedule, steps=args.steps_sampled)
    gates = trained(pipe, args)
    if spread.rank():
        return
    save_tensors(dict(gates.state_dict()), args.out / "gates.safetensors", {"format": "pt"})
    by, calls = looked(pipe, gates, args)
    print(f"the gates themselves: {calls.laziness:.3f} of {', '.join(args.branches)} rest")
    levels = pipe.schedule.levels()[:-1].tolist()
    for share in args.laziness:
        plan = pipe.plans[f"{share:g}"] = ranked(by.seen, gates.names, levels, share)
        print(f"--lazy {share:g}\n{plan.drawn()}")
        squares = {name: [float(not rests) for rests in row] for name, row in plan.skips.items()}
        told = f"{len(plan.times)} steps, {plan.laziness:.2f} of all calls rest"
        (args.out / f"lazy-{share:g}.svg").write_text(heat(squares, "step; filled: computed", told))
    pipe.save_pretrained(args.out / "pipeline", torch.float16)
