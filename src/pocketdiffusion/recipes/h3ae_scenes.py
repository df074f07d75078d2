"""A video autoencoder of the scenes world: 4 x 64 x 64 pixels -> 16 x 8 x 8 latents.

    pocket train h3ae_scenes                                             # one core
    torchrun --nproc-per-node 2 -m pocketdiffusion train h3ae_scenes     # both cores
    pocket train h3ae_scenes --preset 4x16x16_c32 --size 256 --batch 16 --device cuda    # the reference
    pocket train h3ae_scenes --data VIDEOS --consistency 0.001 --se 0.25   # your own videos, all terms
    pocket train h3ae_scenes --init OUT/vae --still 0 --lr 2e-4          # go on from one

The first ``still`` steps see pictures alone; after them one step in four does, the others clips of 1 + 4 k
frames. The decoder is told the first frame in half of the rows of clips (the omni objective). Latent
consistency (--consistency) and scale equivariance (--se; 0.25 is its paper's weight) are off unless they are
given a weight; the first grows to it over a tenth of the steps. It is off because the spec's weight 0.1 of
its KL form, on the raw latents of a network from scratch, diverged in our run: L1 rose to 1.2 within 800
steps. All of these are our choices where the paper is silent. --data is a folder with train/ and test/ of
videos: test/ is only judged on, and pictures are frames of train/. --init goes on from a saved H3AE as it
is: --preset plays no part then. Ends with OUT/vae in fp16; the numbers printed are of that file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import store
from ..autoencoders.h3ae import H3AE, fits
from ..cli.autoencoder import autoencoder_of
from ..data import clips as videos
from ..data.motion import MOVING_WORLD, Clips
from ..data.scenes import Scenes
from ..device import bf16, choose
from ..eval.reconstruction import by_frame, measure
from ..methods.autoencode import Autoencode, Distance, Weighed, l1
from ..methods.consistency import latent_kl
from ..methods.equivariance import scale_equivariance
from ..pipeline import SHIPPED
from ..train import spread
from ..train.fit import Data, Run, fit
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
    data: str = "scenes"  # drawn clips, or a folder with train/ and test/ of videos
    init: str | None = None  # an H3AE to go on from: a shipped name or a folder
    se: float = 0.0  # weight of scale equivariance
    l2: float = 0.0  # weight of the squared error beside L1, which PSNR is made of


def source(args: Args, split: str, batch: int, frames: int, device: torch.device) -> Data:
    """Clips of --data; of a folder the part that is called ``split``."""
    if args.data == "scenes":
        return Clips(WORLD, batch, args.size, frames, device)
    return videos.Clips(Path(args.data, split), batch, args.size, frames, device=device)


def stills(args: Args, batch: int, device: torch.device) -> Data:
    """Pictures; of videos single frames, wherever they lie."""
    if args.data == "scenes":
        return Scenes(WORLD, batch, args.size, device)
    given = source(args, "train", batch, 1, device)

    def pictures(seed: int, step: int) -> Batch:
        found = given(seed, step)
        return Batch(found.x[:, :, 0], found.text)

    return pictures


def mixed(args: Args, device: torch.device) -> Data:
    """Pictures alone for the first ``still`` steps; then clips, and pictures in every fourth step."""
    clips = source(args, "train", args.batch, args.frames, device)
    pictures = stills(args, args.batch * (1 + args.frames // 4), device)

    def batches(seed: int, step: int) -> Batch:
        # every process of a step takes the same kind
        at = step // spread.world()
        return (clips if at >= args.still and at % 4 else pictures)(seed, step)

    return batches


@torch.no_grad()
def measured(
    vae: H3AE, size: int, count: int, device: torch.device, clips: int = 64, unseen: Data | None = None
) -> dict[str, float]:
    """On clips that no training run sees; ``rest``: PSNR of frames 2 to T, ``rest_told``: given the first.

    ``gain_near``, ``gain_far``: what that is worth in dB in the f_t frames after the first, and in the last.
    ``unseen``: where the clips come from, eight at a time (or all if they are fewer), if not drawn.
    """
    many = min(clips, 8)
    given = unseen or Clips(WORLD, many, size, count, device)
    # the last batch may be smaller
    batches = [given(10**6, i).x[: clips - many * i] for i in range(-(-clips // many))]
    found = measure(vae, batches, store.load(SHIPPED / "scenes" / "features").to(device))
    weights = torch.tensor([len(x) for x in batches], device=device)[:, None]

    def later(told: bool) -> torch.Tensor:
        """PSNR of frames 2 to T."""
        rows = [
            by_frame(x, vae.decode(vae.encode(x), x[:, :, 0] if told else None).clamp(-1, 1)) for x in batches
        ]
        return (weights * torch.stack(rows)).sum(0)[1:] / clips

    plain, pace = later(False), vae.config.time_factor
    found["rest"] = plain.mean().item()
    if vae.config.omni:
        told = later(True)
        gain = told - plain
        found["rest_told"] = told.mean().item()
        found |= {"gain_near": gain[:pace].mean().item(), "gain_far": gain[-pace:].mean().item()}
    return found


def network(args: Args) -> H3AE:
    """From scratch, or what --init names."""
    if args.init is None:
        return H3AE(store.preset("H3AE", args.preset))
    vae = autoencoder_of(args.init)
    if not isinstance(vae, H3AE):
        raise ValueError(f"--init {args.init}: a {type(vae).__name__}, expected an H3AE")
    return vae


def check(args: Args) -> None:
    if args.held_out < 1:
        raise ValueError(f"--held-out {args.held_out}: expected 1 or more")
    for part in () if args.data == "scenes" else ("train", "test"):
        if not Path(args.data, part).is_dir():
            expected = "expected scenes, or a folder with train/ and test/ of videos"
            raise ValueError(f"--data {args.data}: no {part}/ in it; {expected}")


def distance_of(weight: float) -> Distance:
    """L1, and ``weight`` times the mean squared error beside it."""
    return lambda y, x: l1(y, x) + weight * (y - x).square().mean() if weight else l1(y, x)


def main(args: Args) -> None:
    check(args)
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = network(args).to(device)
    # clips that do not fit would be met only after the pictures
    fits(vae.config, torch.empty(1, 3, args.frames, args.size, args.size, device="meta"))
    unseen = source(args, "test", min(args.held_out, 8), args.frames, device)
    terms = {
        "consistency": Weighed(latent_kl, args.consistency, args.steps // 10),
        "se": Weighed(scale_equivariance(vae.config.factor), args.se),
    }
    told = args.told if vae.config.omni else 0.0
    method = Autoencode(vae, args.beta, terms=terms, told=told, distance=distance_of(args.l2))
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
        vae.calibrate(source(args, "train", 64, args.frames, device)(args.seed, 0).x)
        store.save(vae, args.out / "vae", torch.float16)
    saved = store.load(args.out / "vae").to(device)
    found = measured(saved, args.size, args.frames, device, args.held_out, unseen)
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
