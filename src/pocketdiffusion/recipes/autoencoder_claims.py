"""What H3AE claims, at small scale: arms that differ in one thing, over paired seeds.

    pocket train autoencoder_claims                                 # the losses, 3 seeds: an hour of one core
    pocket train autoencoder_claims --init runs/h3ae_scenes/vae --still 0 --steps 250 --lr 3e-4   # late
    pocket train autoencoder_claims --arms l1 told --control l1              # the omni objective
    pocket train autoencoder_claims --arms l1 flat_0 nearest wide kl_1e-3    # layers, channels, KL
    pocket train autoencoder_claims --arms l1 consistency se consistency_se  # with scale equivariance, both

The first ``still`` of the steps see pictures alone, without which so few steps on clips stay near a constant
colour; arms that differ in their 3-D layers differ in the rest alone. Every run is kept (OUT/ARM-SEED.json)
and not repeated. Of a seed, all arms see the same clips and noise; the
arms that change a loss begin with the same weights too. ``perceptual`` and ``frechet`` are judged by the
network that the arm of that name learns from, and ``cycle`` is what latent consistency asks for: neither is
neutral; nor is ``frechet_clips``, which is no rFVD (eval/reconstruction.py). The losses were run
from a trained autoencoder: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import store
from ..autoencoders.h3ae import H3AE, Config
from ..bench.cost import cost
from ..bench.table import text
from ..data.motion import Clips
from ..device import bf16, choose
from ..eval.features import SceneNet
from ..eval.reconstruction import lpips, scene_maps
from ..eval.seeds import against, collect, settings, table
from ..eval.spectrum import curves
from ..methods.autoencode import Autoencode, Term, Weighed
from ..methods.consistency import latent_kl, latent_mse
from ..methods.equivariance import scale_equivariance
from ..methods.patch_gan import PatchGAN
from ..methods.perceptual import judged, perceptual
from ..methods.wavelet import wavelet
from ..nn.heads import PatchHead
from ..pipeline import SHIPPED
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Method
from .h3ae_scenes import WORLD, measured, mixed
from .h3ae_scenes import Args as Training

MEASURES = {"psnr": 2, "rest": 2, "rest_told": 2, "gain_near": 2, "gain_far": 2, "ssim": 4}
MEASURES |= {
    "perceptual": 4,
    "frechet": 2,
    "frechet_clips": 2,
    "flicker": 4,
    "cycle": 4,
    "high": 3,
    "high_sampled": 3,
    "kmacs": 1,
}
MAY_CHANGE = {"arms", "control", "seeds"}
# what an arm changes in the network
NETWORKS: dict[str, Callable[[Config], Config]] = {
    "flat_0": lambda c: replace(c, flat=0),
    "nearest": lambda c: replace(c, shuffle=False),
    "wide": lambda c: replace(c, channels=2 * c.channels),
    "told": lambda c: replace(c, omni=True),
}
# what an arm adds to L1 and KL, with the weight that is ours unless --weight is given
LOSSES: dict[str, tuple[Callable[[H3AE, SceneNet], Term], float]] = {
    "consistency": (lambda vae, net: latent_kl, 0.001),
    "consistency_mse": (lambda vae, net: latent_mse, 0.1),
    "perceptual": (lambda vae, net: perceptual(scene_maps(net)), 0.1),
    "lpips": (lambda vae, net: judged(lpips("vgg", next(vae.parameters()).device)), 0.1),
    "wavelet": (lambda vae, net: wavelet, 0.5),
    "se": (lambda vae, net: scale_equivariance(vae.config.factor), 0.25),
}
BOTH = "consistency_se"
ARMS = ("l1", *LOSSES, BOTH, "gan", *NETWORKS, "kl_1e-3")


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/autoencoder_claims")
    arms: tuple[str, ...] = ("l1", "consistency", "consistency_mse", "perceptual", "wavelet", "gan")
    control: str = "l1"
    seeds: tuple[int, ...] = (0, 1, 2)
    init: Path | None = None  # an H3AE from which all arms go on, in place of a fresh one
    weight: float | None = None  # of the arms' terms, to scan it (into another --out)
    preset: str = "ablation"
    steps: int = 1600
    still: int = 1200  # of them on pictures alone, at the start
    batch: int = 2  # clips; three times as many pictures
    frames: int = 9
    lr: float = 3e-3
    size: int = 64
    held_out: int = 64  # clips to judge on
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def method_of(arm: str, vae: H3AE, args: Args, device: torch.device) -> Method:
    features = store.load(SHIPPED / "scenes" / "features").to(device).requires_grad_(False)
    terms = {}
    for name in ("consistency", "se") if arm == BOTH else [arm] if arm in LOSSES else []:
        make, weight = LOSSES[name]
        given = weight if args.weight is None else args.weight
        terms[name] = Weighed(make(vae, features), given, args.steps // 10)
    beta = float(arm.removeprefix("kl_")) if arm.startswith("kl_") else 1e-6
    method = Autoencode(vae, beta, terms=terms, told=0.5 if arm == "told" else 0.0)
    if arm == "gan":
        # listened to after reconstruction has settled, as is usual
        given = 0.1 if args.weight is None else args.weight
        return PatchGAN(method, PatchHead(width=32).to(device), given, args.steps // 2, args.steps // 4)
    return method


def trained(arm: str, seed: int, args: Args, device: torch.device) -> dict[str, float]:
    """One arm with one seed, from scratch, and what is measured of it."""
    torch.manual_seed(seed)
    config = NETWORKS.get(arm, lambda c: c)(replace(store.preset("H3AE", args.preset), omni=False))
    vae = (store.load(args.init) if args.init else H3AE(config)).to(device)
    method = method_of(arm, vae, args, device)
    networks: dict[str, Any] = {"vae": vae}
    optimisers = {"autoencoder": adamw(vae.parameters(), args.lr)}
    if isinstance(method, PatchGAN):
        networks["discriminator"] = method.discriminator
        optimisers["discriminator"] = adamw(method.discriminator.parameters(), 2e-4)
    run = Run(
        args.steps,
        args.out / f"{arm}-{seed}",
        seed,
        bf16=bf16(device, args.bf16),
        ema=0.99,
        save_every=200,
        keep=1,
        name=arm,
    )
    data = mixed(
        Training(batch=args.batch, still=args.still, frames=args.frames, size=args.size),
        device,
    )
    state = fit(method, data, optimisers, networks, run, warmup_cosine(args.steps, 50))
    with state.averaged():
        vae.calibrate(Clips(WORLD, 32, args.size, args.frames, device)(0, 10**5).x)
        found = measured(vae, args.size, args.frames, device, args.held_out)
        spectra = curves(vae, held_out(args, device))
        x = next(iter(held_out(args, device)))
        # operations per pixel, there and back
        found["kmacs"] = cost(vae, (x,)).macs / (x.numel() / 3) / 1e3
        return {**found, "high": spectra["latents"].high, "high_sampled": spectra["sampled"].high}


def held_out(args: Args, device: torch.device) -> Iterable[Tensor]:
    clips = Clips(WORLD, min(args.held_out, 8), args.size, args.frames, device)
    return (clips(10**6 + 1, i).x for i in range(max(1, args.held_out // 8)))


def main(args: Args) -> None:
    if unknown := set((*args.arms, args.control)) - set(ARMS):
        raise ValueError(f"--arms {sorted(unknown)[0]}: expected some of {', '.join(ARMS)}")
    if args.init and (other := set(args.arms) & set(NETWORKS) - {"told"}):
        raise ValueError(f"--arms {sorted(other)[0]}: another network, which cannot go on from --init")
    if spread.world() > 1:
        raise ValueError("autoencoder_claims runs in one process; start several with other --seeds")
    device = choose(args.device)
    arms = dict.fromkeys((args.control, *args.arms))
    found = collect(
        args.out,
        arms,
        args.seeds,
        lambda arm, seed: trained(arm, seed, args, device),
        settings(args, MAY_CHANGE),
    )
    print(text(table(found, MEASURES)))
    if len(arms) > 1:
        print(text(against(found, args.control, MEASURES)))
