"""A video autoencoder of the scenes world: 4 x 64 x 64 pixels -> 16 x 8 x 8 latents.

    pocket train h3ae_scenes                                             # one core
    torchrun --nproc-per-node 2 -m pocketdiffusion train h3ae_scenes     # both cores
    pocket train h3ae_scenes --preset 4x16x16_c32 --size 256 --batch 16 --device cuda    # the reference

One batch in four is pictures, the others are clips of 1 + 4 k frames. The decoder is told the first frame in
half of the rows (the omni objective), and the latent-consistency loss grows over the first tenth of the
steps; these are our choices where the paper is silent. Not run in full yet. Ends with OUT/vae.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import store
from ..autoencoders.h3ae import H3AE
from ..data.motion import MOVING_WORLD, Clips
from ..data.scenes import Scenes
from ..device import bf16, choose
from ..eval.reconstruction import by_frame, measure
from ..methods.autoencode import Autoencode, Weighed
from ..methods.consistency import latent_kl
from ..pipeline import SHIPPED
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch

# noise backgrounds are left out: their grain is no picture, and would be most of every error
WORLD = replace(MOVING_WORLD, backgrounds=("plain", "gradient"))


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/h3ae_scenes")
    preset: str = "scenes"
    steps: int = 11_000
    still: int = 5000  # steps on pictures alone, at the start
    batch: int = 2  # clips; of pictures, as many as a clip has latent frames times that
    frames: int = 17
    lr: float = 1.5e-3
    beta: float = 1e-6  # weight of the KL term
    told: float = 0.5  # how often the decoder is given the first frame
    consistency: float = 0.0  # weight of the latent-consistency loss
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"
    size: int = 64
    held_out: int = 64  # clips to judge on


def mixed(args: Args, device: torch.device) -> Callable[[int, int], Batch]:
    """Pictures alone for the first ``still`` steps; then clips, and pictures in every fourth step."""
    clips = Clips(WORLD, args.batch, args.size, args.frames, device)
    pictures = Scenes(WORLD, args.batch * (1 + args.frames // 4), args.size, device)

    def batches(seed: int, step: int) -> Batch:
        # every process of a step takes the same kind
        at = step // spread.world()
        return (clips if at >= args.still and at % 4 else pictures)(seed, step)

    return batches


@torch.no_grad()
def measured(vae: H3AE, size: int, count: int, device: torch.device, clips: int = 64) -> dict[str, float]:
    """On clips that no training run sees; ``rest``: PSNR of frames 2 to T, ``rest_told``: given the first.

    ``gain_near``, ``gain_far``: what that is worth in dB in the f_t frames after the first, and in the last.
    """
    drawn = Clips(WORLD, min(clips, 8), size, count, device)
    batches = [drawn(10**6, i).x for i in range(max(1, clips // 8))]
    found = measure(vae, batches, store.load(SHIPPED / "scenes" / "features").to(device))

    def later(told: bool) -> torch.Tensor:
        """PSNR of frames 2 to T."""
        rows = [
            by_frame(x, vae.decode(vae.encode(x), x[:, :, 0] if told else None).clamp(-1, 1)) for x in batches
        ]
        return torch.stack(rows).mean(0)[1:]

    plain, pace = later(False), vae.config.time_factor
    found["rest"] = plain.mean().item()
    if vae.config.omni:
        told = later(True)
        gain = told - plain
        found["rest_told"] = told.mean().item()
        found |= {"gain_near": gain[:pace].mean().item(), "gain_far": gain[-pace:].mean().item()}
    return found


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = H3AE(store.preset("H3AE", args.preset)).to(device)
    terms = {"consistency": Weighed(latent_kl, args.consistency, args.steps // 10)}
    method = Autoencode(vae, args.beta, terms=terms, told=args.told)
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.998,
        save_every=200,
        name="h3ae",
    )
    optimiser = adamw(vae.parameters(), args.lr)
    rate = warmup_cosine(args.steps)
    state = fit(method, mixed(args, device), {"autoencoder": optimiser}, {"vae": vae}, run, rate)
    if spread.rank():
        return
    with state.averaged():
        vae.calibrate(Clips(WORLD, 64, args.size, args.frames, device)(args.seed, 0).x)
        store.save(vae, args.out / "vae", torch.float16)
        found = measured(vae, args.size, args.frames, device, args.held_out)
        print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
