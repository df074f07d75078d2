"""The f4 autoencoder of the scenes world: 64 x 64 pixels -> 4 x 16 x 16 latents.

    pocket train scenes_autoencoder                 # about 10 minutes on one core

Expected: see docs/results.md (scenes autoencoder). Ends with runs/scenes_autoencoder/vae.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..autoencoders.kl import AutoencoderKL
from ..data.scenes import EVAL_WORLD, Scenes, World
from ..device import bf16, choose
from ..eval.detection import accuracy
from ..eval.reconstruction import psnr, reconstruct
from ..methods.autoencode import Autoencode
from ..rewards.scenes import SceneDetector
from ..store import preset, save
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_autoencoder")
    preset: str = "scenes"
    steps: int = 2400
    batch: int = 16
    lr: float = 2e-3
    beta: float = 1e-4  # weight of the KL term
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"
    size: int = 64


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    autoencoder = AutoencoderKL(preset("AutoencoderKL", args.preset)).to(device)
    # every texture and background of the full world, but mostly what the shipped models draw
    world = World(backgrounds=("plain", "plain", "gradient", "gradient", "noise"))
    data = Scenes(world, args.batch, args.size, device)
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.995,
        save_every=200,
        name="autoencoder",
    )
    method = Autoencode(autoencoder, args.beta)
    optimiser = adamw(autoencoder.parameters(), args.lr)
    state = fit(
        method, data, {"autoencoder": optimiser}, {"vae": autoencoder}, run, warmup_cosine(args.steps)
    )
    if spread.rank():
        return
    with state.averaged():
        autoencoder.calibrate(Scenes(EVAL_WORLD, 512, args.size, device)(args.seed, 0).x)
        save(autoencoder, args.out / "vae")
        print(measured(autoencoder, args.size, device))


@torch.no_grad()
def measured(autoencoder: AutoencoderKL, size: int, device: torch.device, count: int = 512) -> str:
    """PSNR, and how many whole scenes the detector still sees right, on scenes that no training run uses."""
    x = Scenes(EVAL_WORLD, count // 2, size, device)(10**6, 0).x
    ratio = psnr(x, reconstruct(autoencoder, x)).mean()

    def change(x: Tensor) -> Tensor:
        return reconstruct(autoencoder, x.to(device)).cpu()

    right = accuracy(SceneDetector(), EVAL_WORLD, count, 10**6 + 1, size, change)["scenes"]
    return f"world of SceneEval: PSNR {ratio:.2f} dB, whole scenes seen right through it {right:.4f}"
