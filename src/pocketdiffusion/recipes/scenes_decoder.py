"""A sharper decoder for the scenes autoencoder, whose encoder stays frozen.

    pocket train scenes_decoder          # about 10 minutes on one core, after scenes_autoencoder

The decoder goes on alone, on the world of the shipped models with many small and striped things, from latents
with a little noise. Latents keep their meaning: a denoiser of the old ones decodes through the new decoder.
Expected: see docs/results.md (scenes autoencoder). Ends with OUT/vae.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import store
from ..data.scenes import EVAL_WORLD, Scenes
from ..device import bf16, choose
from ..methods.autoencode import Autoencode
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from .scenes_autoencoder import measured


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_decoder")
    vae: Path = Path("runs/scenes_autoencoder/vae")
    steps: int = 3000
    batch: int = 16
    lr: float = 1.5e-3
    noise: float = 0.05  # standard deviation, where latents have 1
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"
    size: int = 64


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = store.load(args.vae).to(device)
    vae.encoder.requires_grad_(False)
    # a few of everything, so that the other textures and backgrounds are not forgotten
    world = replace(EVAL_WORLD, textured=0.4, textures=("plain", "striped", "striped", "dotted"), tilt=0.03)
    data = Scenes(world, args.batch, args.size, device)
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.995,
        save_every=200,
        name="decoder",
    )
    optimiser = adamw(vae.decoder.parameters(), args.lr)
    method = Autoencode(vae, 0.0, args.noise)
    state = fit(method, data, {"autoencoder": optimiser}, {"vae": vae}, run, warmup_cosine(args.steps))
    if spread.rank():
        return
    with state.averaged():
        store.save(vae, args.out / "vae")
        print(measured(vae, args.size, device))
