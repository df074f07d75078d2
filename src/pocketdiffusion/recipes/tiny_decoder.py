"""A small decoder for an autoencoder, taught by the big one; the encoder stays.

    pocket train tiny_decoder                                            # for the shipped autoencoder
    pocket train tiny_decoder --vae FOLDER --preset snapgen --data FOLDER/pictures --size 256 --device cuda
    pocket train tiny_decoder --vae FOLDER --preset scenes_clips --clips --batch 4   # of a video autoencoder

--vae may be one of ours or of diffusers. The target is the picture or clip, and what the big decoder makes of
the same latent (as TAESD does); --perceptual adds the distance that SceneNet sees, for the scenes world,
--lpips the published one. --gan adds a PatchGAN for the last fifth of the steps, as SnapGen's decoder has one
(its weight is not known to us). The decoder notes whose latents it reads. The shipped pipeline has one of
3,500 steps, half an hour of a core: 36.4 dB where the big one has 39.1. Ends with OUT/decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from .. import store
from ..autoencoders.tiny import Grafted, TinyDecoder
from ..cli.autoencoder import autoencoder_of
from ..data import motion
from ..data.clips import Clips
from ..data.photos import Photos
from ..data.scenes import EVAL_WORLD, Scenes
from ..device import bf16, choose
from ..eval.reconstruction import lpips, measure, scene_maps
from ..methods.autoencode import Autoencode, Weighed, taught
from ..methods.patch_gan import PatchGAN
from ..methods.perceptual import judged, perceptual
from ..nn.heads import PatchHead
from ..pipeline import SHIPPED, latents_hash
from ..train import spread
from ..train.fit import Data, Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Method
from .h3ae_scenes import WORLD


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/tiny_decoder")
    vae: str = "scenes"  # a shipped pipeline's, or a folder
    preset: str = "scenes"
    data: str = "scenes"  # scenes, photos (in scikit-image) or a folder of pictures
    clips: bool = False  # for an autoencoder of clips; --data: scenes, or a folder with train/ and test/
    frames: int = 17  # of a clip
    steps: int = 3000
    batch: int = 16
    lr: float = 3e-3
    teacher: float = 0.5  # weight of the distance from the big decoder's picture
    perceptual: float = 0.0  # weight of the perceptual distance
    lpips: float = 0.0  # weight of LPIPS, which needs torchvision and its weights
    gan: float = 0.0  # weight of the PatchGAN
    gan_from: float = 0.8  # the share of the steps after which it counts
    noise: float = 0.03  # added to latents, whose standard deviation is 1
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"
    size: int = 64


def source(args: Args, device: torch.device, held_out: bool = False) -> Data:
    if args.clips:
        if args.data == "scenes":
            return motion.Clips(WORLD, args.batch, args.size, args.frames, device)
        part = Path(args.data, "test" if held_out else "train")
        return Clips(part, args.batch, args.size, args.frames, device=device)
    if args.data != "scenes":
        folder = None if args.data == "photos" else args.data
        split = "test" if held_out else "train"
        return Photos(args.batch, args.size, split, folder, device=device)
    # a few of everything, as the decoder that teaches was trained
    world = replace(EVAL_WORLD, textured=0.4, textures=("plain", "striped", "striped", "dotted"), tilt=0.03)
    return Scenes(EVAL_WORLD if held_out else world, args.batch, args.size, device)


def check(args: Args) -> None:
    if args.clips and args.data == "photos":
        raise ValueError("--data photos: expected scenes or a folder with --clips")
    if not 0 <= args.gan_from <= 1:
        raise ValueError(f"--gan-from {args.gan_from}: expected 0 to 1")


def main(args: Args) -> None:
    check(args)
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = autoencoder_of(args.vae, args.clips).to(device)
    # by the autoencoder as it is saved, which is the one that a pipeline will compare with
    config = replace(store.preset("TinyDecoder", args.preset), latents=latents_hash(vae))
    decoder = TinyDecoder(config).to(device)
    both = Grafted(vae, decoder)
    features = store.load(SHIPPED / "scenes" / "features").to(device).requires_grad_(False)
    terms = {
        "teacher": Weighed(taught(vae.decode), args.teacher),
        "perceptual": Weighed(perceptual(scene_maps(features)), args.perceptual),
    }
    if args.lpips:
        terms["lpips"] = Weighed(judged(lpips("vgg", device)), args.lpips)
    autoencode = Autoencode(both, 0.0, args.noise, terms)
    method: Method = autoencode
    networks: dict[str, nn.Module] = {"decoder": decoder}
    optimisers = {"autoencoder": adamw(decoder.parameters(), args.lr)}
    if args.gan:
        critic = PatchHead(width=32).to(device)
        # it learns as long before it counts as it counts
        late = round(args.steps * (1 - args.gan_from))
        method = PatchGAN(autoencode, critic, args.gan, args.steps - late, late)
        networks["critic"], optimisers["discriminator"] = critic, adamw(critic.parameters(), 2e-4)
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.995,
        save_every=500,
        name="tiny",
    )
    state = fit(method, source(args, device), optimisers, networks, run, warmup_cosine(args.steps))
    if spread.rank():
        return
    with state.averaged():
        store.save(decoder, args.out / "decoder", torch.float16)
        held_out = source(args, device, held_out=True)
        for name, network in {"own decoder": vae, "tiny decoder": both}.items():
            found = measure(network, (held_out(10**6, i).x for i in range(16)), features)
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
