"""The judge of counts: a regressor of the scenes world, apart from all detectors.

    pocket train count_judge                             # about half an hour on one core

Pictures are the full world's: bent, noisy or blurred, and half of them as the pipeline gives them back: its
autoencoder from noisy latents, or, every other of these, the model itself from a noise that keeps the things.
So it has seen the poor outlines that it judges. It shares no code with what count correction counts by
(rewards/scenes.py). Ends with OUT/judge and how often it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.scenes import EVAL_WORLD, Scenes, World
from ..device import bf16, choose
from ..diffusion.flow import interpolate
from ..diffusion.samplers import STEPS, run
from ..methods.regress import Regress, pairs
from ..pipeline import Pipeline
from ..rewards.regressor import CountNet
from ..store import preset, save
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond
from .scenes_features import worn


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/count_judge")
    preset: str = "scenes"
    pipeline: str = "scenes"  # through which half of the pictures pass; best that whose pictures are judged
    steps: int = 4000
    batch: int = 32
    lr: float = 2e-3
    noise: float = 0.1  # largest standard deviation of the added noise
    blur: float = 0.1  # largest standard deviation of the noise on latents
    redraw: float = 0.4  # largest level from which the model draws pictures again; 0: never
    bend: float = 0.7  # pixels, largest standard deviation of a smooth displacement
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def bent(data: Callable[[int, int], Batch], most: float) -> Callable[[int, int], Batch]:
    """The same data, every picture displaced by a smooth field of some strength."""

    def batches(seed: int, step: int) -> Batch:
        batch = data(seed, step)
        b, _, h, w = batch.x.shape
        g = torch.Generator().manual_seed((seed << 32) + step + 2)
        amount = most * torch.rand(b, 1, 1, 1, generator=g)
        field = F.interpolate(amount * torch.randn(b, 2, 6, 6, generator=g), (h, w), mode="bicubic")
        lines = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
        y, x = torch.meshgrid(*lines, indexing="ij")
        places = torch.stack([x + field[:, 0] * 2 / (w - 1), y + field[:, 1] * 2 / (h - 1)], -1)
        moved = F.grid_sample(batch.x, places.to(batch.x), padding_mode="border", align_corners=True)
        return replace(batch, x=moved)

    return batches


def redrawn(pipe: Pipeline, z: Tensor, noise: Tensor, level: float, text: Sequence[str]) -> Tensor:
    """Latents as the model finishes them in two Euler steps from ``level``."""
    levels = torch.tensor([level, level / 2, 0.0])
    t = torch.full((len(z),), level, device=z.device)
    steps = run(
        STEPS["euler"], pipe.transformer, interpolate(z, noise, t), levels, pipe.text_encoder.embed(text)
    )
    return list(steps)[-1].x


def decoded(
    data: Callable[[int, int], Batch], pipe: Pipeline, blur: float, redraw: float = 0.0
) -> Callable[[int, int], Batch]:
    """The same data, every second picture through the autoencoder, half of these drawn again by the model."""

    def batches(seed: int, step: int) -> Batch:
        batch = data(seed, step)
        assert not isinstance(batch.text, Cond)
        g = torch.Generator().manual_seed((seed << 32) + step + 1)
        with torch.no_grad():
            z = pipe.vae.encode(batch.x[::2])
            amount = blur * torch.rand(len(z), 1, 1, 1, generator=g).to(z)
            noise = torch.randn(z.shape, generator=g).to(z)
            blurred = z + amount * noise
            level = redraw * torch.rand((), generator=g).item()
            if level > 0:
                blurred[::2] = redrawn(pipe, z[::2], noise[::2], level, batch.text[::4])
            given = pipe.decoder.decode(blurred)
        x = batch.x.clone()
        x[::2] = given.float().clamp(-1, 1)
        return replace(batch, x=x)

    return batches


@torch.no_grad()
def accuracy(network: CountNet, batch: Batch) -> dict[str, float]:
    """Share of pictures with every count right, and the mean absolute error of the number of things."""
    assert batch.truth is not None
    c = network.config
    found = torch.cat([network(x) for x in batch.x.split(64)]).cpu()
    truth = pairs(batch.truth, c.shapes, c.colours)
    error = (found.round().sum((1, 2)) - truth.sum((1, 2))).abs().mean()
    return {"right": (found.round() == truth).all(-1).all(-1).float().mean().item(), "error": error.item()}


def main(args: Args) -> None:
    device = choose(args.device)
    pipe = Pipeline.from_pretrained(args.pipeline).to(device)
    torch.manual_seed(args.seed)
    network = CountNet(preset("CountNet", args.preset)).to(device)
    size = pipe.schedule.size
    drawn = bent(Scenes(World(), args.batch, size, device), args.bend)
    data = decoded(worn(drawn, args.noise), pipe, args.blur, args.redraw)
    plan = Run(
        args.steps, args.out, args.seed, bf16=bf16(device, args.bf16), ema=0.995, save_every=500, name="judge"
    )
    method = Regress(network, network.config.shapes, network.config.colours)
    optimiser = {"network": adamw(network.parameters(), args.lr)}
    state = fit(method, data, optimiser, {"judge": network}, plan, warmup_cosine(args.steps))
    if spread.rank():
        return
    with state.averaged():
        for name, world in {"full world": World(), "world of SceneEval": EVAL_WORLD}.items():
            # a seed that training does not use
            held_out = Scenes(world, 512, size, device)
            ways: dict[str, Callable[[int, int], Batch]] = {
                "": held_out,
                ", decoded": decoded(held_out, pipe, 0.0),
                ", drawn again": decoded(held_out, pipe, 0.0, args.redraw),
            }
            for through, of in ways.items():
                scores = accuracy(network, of(args.seed + 1, 0))
                print(f"{name}{through}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
        save(network, args.out / "judge")
