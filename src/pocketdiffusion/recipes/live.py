"""A small denoiser from scratch, on the shipped autoencoder's latents, in a minute.

    pocket train live

What `pocket demo` trains before your eyes: one thing per picture, 64 x 64 pixels, 0.2 M parameters.
Expected: colours after a few hundred steps, rough outlines at the end; the demo's report has the loss curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.scenes import Scenes
from ..eval.report import grid
from ..methods.flow_matching import FlowMatching
from ..models import dit
from ..pipeline import Pipeline, Schedule
from ..text import encoder
from ..train.fit import Run, State, every, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond
from .smoke import WORLD

PROMPTS = ("a red circle", "a green star", "a blue square", "a black ring", "a yellow heart", "a pink cross")


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/live")
    model: str = "scenes"  # whose autoencoder and tokenizer
    steps: int = 600
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Seen:
    losses: list[float]  # of every step
    pictures: list[Tensor]  # (6, 3, H, W) after one, two and three thirds
    parameters: int
    seconds: float


def live(base: Pipeline, args: Args) -> Seen:
    torch.manual_seed(args.seed)
    text = encoder.TextTransformer(encoder.PRESETS["smoke"], base.text_encoder.tokenizer)
    model = dit.DiT(dit.PRESETS["smoke"])
    trained = [*model.parameters(), *text.parameters()]
    small = Pipeline(model, text, base.vae, Schedule(steps=16, guidance=4.0))
    losses: list[float] = []
    pictures: list[Tensor] = []

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        with torch.no_grad():
            x0 = base.vae.encode(batch.x)
        return x0, text.embed(batch.text)

    def watch(state: State) -> None:
        losses.append(float(state.seen["denoiser/loss"]))
        bar.update()

    def look(state: State) -> None:
        with state.averaged():
            pictures.append(small.sample(PROMPTS, seed=args.seed))

    method = FlowMatching(model, embed, lambda: text.embed([""]), trained)
    networks = {"transformer": model, "text_encoder": text}
    hooks = [watch, every(max(1, args.steps // 3), look)]
    started = perf_counter()
    with tqdm(total=args.steps, desc="training", disable=None) as bar:
        run = Run(args.steps, seed=args.seed, ema=0.99)
        optimisers = {"denoiser": adamw(trained, 3e-3)}
        schedule = warmup_cosine(args.steps, 30)
        fit(method, Scenes(WORLD, args.batch), optimisers, networks, run, schedule, hooks)
    return Seen(losses, pictures, sum(p.numel() for p in trained), perf_counter() - started)


def main(args: Args) -> None:
    seen = live(Pipeline.from_pretrained(args.model), args)
    args.out.mkdir(parents=True, exist_ok=True)
    grid(torch.cat(seen.pictures), PROMPTS * len(seen.pictures), len(PROMPTS)).save(args.out / "live.png")
    print(f"{args.out / 'live.png'}: loss {seen.losses[0]:.2f} -> {sum(seen.losses[-20:]) / 20:.2f}")
