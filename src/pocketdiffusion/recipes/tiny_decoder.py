"""A small decoder for an autoencoder, taught by the big one; the encoder stays.

    pocket train tiny_decoder                                            # for the shipped autoencoder
    pocket train tiny_decoder --vae FOLDER --preset snapgen --data FOLDER/pictures --size 256 --device cuda

--vae may be one of ours or of diffusers. The target is the picture, and what the big decoder makes of the
same latent (as TAESD does); --perceptual adds the distance that SceneNet sees, for the scenes world.
Not run in full yet. Ends with OUT/decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import store
from ..autoencoders.tiny import Grafted, TinyDecoder
from ..cli.autoencoder import autoencoder_of
from ..data.photos import Photos
from ..data.scenes import EVAL_WORLD, Scenes
from ..device import bf16, choose
from ..eval.reconstruction import measure, scene_maps
from ..methods.autoencode import Autoencode, Weighed, taught
from ..methods.perceptual import perceptual
from ..pipeline import SHIPPED
from ..train import spread
from ..train.fit import Data, Run, fit
from ..train.optimisers import adamw, warmup_cosine


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/tiny_decoder")
    vae: str = "scenes"  # a shipped pipeline's, or a folder
    preset: str = "scenes"
    data: str = "scenes"  # scenes, photos (in scikit-image) or a folder of pictures
    steps: int = 3000
    batch: int = 16
    lr: float = 3e-3
    teacher: float = 0.5  # weight of the distance from the big decoder's picture
    perceptual: float = 0.0  # weight of the perceptual distance
    noise: float = 0.03  # added to latents, whose standard deviation is 1
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"
    size: int = 64


def source(args: Args, device: torch.device, held_out: bool = False) -> Data:
    if args.data != "scenes":
        folder = None if args.data == "photos" else args.data
        split = "test" if held_out else "train"
        return Photos(args.batch, args.size, split, folder, device=device)
    # a few of everything, as the decoder that teaches was trained
    world = replace(EVAL_WORLD, textured=0.4, textures=("plain", "striped", "striped", "dotted"), tilt=0.03)
    return Scenes(EVAL_WORLD if held_out else world, args.batch, args.size, device)


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = autoencoder_of(args.vae).to(device)
    decoder = TinyDecoder(store.preset("TinyDecoder", args.preset)).to(device)
    both = Grafted(vae, decoder)
    features = store.load(SHIPPED / "scenes" / "features").to(device).requires_grad_(False)
    terms = {
        "teacher": Weighed(taught(vae.decode), args.teacher),
        "perceptual": Weighed(perceptual(scene_maps(features)), args.perceptual),
    }
    method = Autoencode(both, 0.0, args.noise, terms)
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.995,
        save_every=500,
        name="tiny",
    )
    optimiser = adamw(decoder.parameters(), args.lr)
    data = source(args, device)
    state = fit(
        method, data, {"autoencoder": optimiser}, {"decoder": decoder}, run, warmup_cosine(args.steps)
    )
    if spread.rank():
        return
    with state.averaged():
        store.save(decoder, args.out / "decoder", torch.float16)
        held_out = source(args, device, held_out=True)
        for name, network in {"own decoder": vae, "tiny decoder": both}.items():
            found = measure(network, (held_out(10**6, i).x for i in range(16)), features)
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
