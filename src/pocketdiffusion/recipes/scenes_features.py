"""The feature network of the scenes world: the default of Frechet distances.

    pocket train scenes_features                    # under 5 minutes on one core

Learns to count shapes and colours in the full world, seen clean, noisy or blurred.
Expected: see docs/results.md (scenes features). Ends with runs/scenes_features/features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.scenes import EVAL_WORLD, Scenes, World
from ..device import bf16, choose
from ..eval.features import SceneNet
from ..methods.classify import Classify, counts
from ..store import preset, save
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_features")
    preset: str = "scenes"
    steps: int = 3500
    batch: int = 32
    lr: float = 4e-3
    noise: float = 0.1  # largest standard deviation of the added noise
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"
    size: int = 64


def worn(data: Callable[[int, int], Batch], noise: float) -> Callable[[int, int], Batch]:
    """The same data, half of it more or less blurred and half of it more or less noisy."""

    def batches(seed: int, step: int) -> Batch:
        batch = data(seed, step)
        g = torch.Generator().manual_seed((seed << 32) + step)
        amount = (2 * torch.rand(2, len(batch.x), 1, 1, 1, generator=g) - 1).clamp(min=0).to(batch.x)
        grain = torch.randn(batch.x.shape, generator=g).to(batch.x)
        soft = F.avg_pool2d(F.pad(batch.x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return replace(batch, x=batch.x.lerp(soft, amount[0]) + noise * amount[1] * grain)

    return batches


@torch.no_grad()
def accuracy(network: SceneNet, batch: Batch) -> dict[str, float]:
    """Shares: labels counted right, labels rightly called present or absent, pictures with no mistake."""
    assert batch.truth is not None
    seen: Tensor = torch.cat([network(x).argmax(-1) for x in batch.x.split(64)]).cpu()
    truth = counts(batch.truth, network.config.labels, network.config.most)
    right, present = seen == truth, (seen > 0) == (truth > 0)
    parts = {"counts": right, "presence": present, "whole pictures": right.all(1)}
    return {name: part.float().mean().item() for name, part in parts.items()}


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    network = SceneNet(preset("SceneNet", args.preset)).to(device)
    data = worn(Scenes(World(), args.batch, args.size, device), args.noise)
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.995,
        save_every=400,
        name="features",
    )
    method = Classify(network, network.config.labels, network.config.most)
    schedule = warmup_cosine(args.steps)
    state = fit(
        method, data, {"network": adamw(network.parameters(), args.lr)}, {"features": network}, run, schedule
    )
    if spread.rank():
        return
    with state.averaged():
        for name, world in {"full world": World(), "world of SceneEval": EVAL_WORLD}.items():
            # a seed that training does not use
            held_out = Scenes(world, 512, args.size, device)(args.seed + 1, 0)
            scores = accuracy(network, held_out)
            print(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        save(network, args.out / "features")
