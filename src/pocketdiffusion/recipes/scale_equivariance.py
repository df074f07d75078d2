"""Does scale equivariance make latents easier to model? A small DiT tells.

    pocket train scale_equivariance                                     # 3 arms, 3 seeds: an hour of one core
    pocket train scale_equivariance --vae FOLDER --data FOLDER/pictures --size 256 --dit-steps 0 --device cuda
    pocket train scale_equivariance --vae FOLDER --clips                # a video autoencoder; space only

Arms: ``original``; ``control``, fine-tuned as long without the term; ``se``, with it; ``lc_se``, with it and
latent consistency; ``eq``, with EQ-VAE's rule and ``chop``, with chopping instead. Of each: PSNR, the
perceptual distance, the equivariance error, the share of high frequencies in its latents, how far their
spectrum is from that of the pixels (to_pixels: mean absolute difference of log10 A), and the Frechet distance
of a small DiT trained from scratch on them for equal steps (with --clips, on latents of pictures: clips of
one frame). Every run is kept and not repeated, and one that was cut goes on. Claims rest on ``se`` against
``control``; ``original`` is one network whatever the seed. Results: docs/results.md. Ends with
OUT/ARM-SEED/vae and OUT/spectra.svg.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import store
from ..bench.table import text
from ..cli.autoencoder import autoencoder_of
from ..data import motion
from ..data.clips import Clips
from ..data.latents import Encoded
from ..data.photos import Photos
from ..data.scenes import EVAL_WORLD, Scenes
from ..device import bf16, choose
from ..eval.frechet import Gaussian, frechet
from ..eval.plots import lines
from ..eval.reconstruction import measure
from ..eval.seeds import against, collect, settings, table
from ..eval.spectrum import curves, equivariance_error
from ..methods.autoencode import Autoencode, Weighed
from ..methods.chopping import chopping
from ..methods.consistency import latent_kl
from ..methods.equivariance import eq_vae, scale_equivariance
from ..methods.flow_matching import FlowMatching
from ..models import dit
from ..pipeline import SHIPPED, Pipeline, Schedule
from ..teachers.autoencoders import save as save_foreign
from ..text import encoder
from ..train import spread
from ..train.fit import Data, Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond
from .h3ae_scenes import WORLD as CLIPS_WORLD
from .smoke import WORLD

MAY_CHANGE = {"arms", "seeds"}
MEASURES = {
    "psnr": 2,
    "perceptual": 4,
    "se_error": 4,
    "high": 4,
    "slope": 4,
    "to_pixels": 4,
    "frechet_dit": 2,
}
ARMS = ("original", "control", "se", "lc_se", "eq", "chop")


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scale_equivariance")
    vae: str = "scenes"  # a shipped pipeline's, or a folder, ours or of diffusers
    data: str = "scenes"  # scenes, photos (in scikit-image) or a folder of pictures
    clips: bool = False  # for an autoencoder of clips; --data: scenes, or a folder with train/ and test/
    frames: int = 17  # of a clip
    arms: tuple[str, ...] = ("original", "control", "se")
    seeds: tuple[int, ...] = (0, 1, 2)
    alpha: float = 0.25  # weight of the term, as in the paper
    consistency: float = 0.001  # weight of latent consistency in lc_se
    steps: int = 500  # of fine-tuning
    batch: int = 16  # pictures; of clips a quarter as many
    lr: float = 2e-4
    beta: float = 1e-4  # weight of the KL term
    noise: float = 0.03  # added to latents, as the shipped decoder was trained
    dit_steps: int = 900  # 0: no DiT
    pictures: int = 512  # that it draws to be judged
    size: int = 64
    held_out: int = 256  # pictures to judge the autoencoder on
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def source(args: Args, device: torch.device, split: str) -> Data:
    if args.clips:
        count = max(1, args.batch // 4)
        if args.data == "scenes":
            return motion.Clips(CLIPS_WORLD, count, args.size, args.frames, device)
        return Clips(Path(args.data, split), count, args.size, args.frames, device=device)
    if args.data != "scenes":
        path = None if args.data == "photos" else args.data
        return Photos(args.batch, args.size, split, path, device=device)
    return Scenes(EVAL_WORLD, args.batch, args.size, device)


def terms_of(arm: str, factor: int, args: Args) -> dict[str, Weighed]:
    """What an arm adds to L1 and KL. The control computes nothing: the same random numbers and batches."""
    equivariance = Weighed(scale_equivariance(factor), args.alpha)
    return {
        "se": {"se": equivariance},
        "lc_se": {"se": equivariance, "lc": Weighed(latent_kl, args.consistency, args.steps // 10)},
        "chop": {"chop": Weighed(chopping(), args.alpha)},
    }.get(arm, {})


def tuned(arm: str, seed: int, args: Args, device: torch.device) -> Any:
    """The autoencoder of an arm, its latents at unit variance."""
    vae = autoencoder_of(args.vae, args.clips).to(device)
    if args.size < 8 * vae.config.factor:
        raise ValueError(f"--size {args.size}: expected {8 * vae.config.factor} or more, 8 latent positions")
    data, factor = source(args, device, "train"), vae.config.factor
    if arm != "original":
        view = eq_vae(factor) if arm == "eq" else None
        method = Autoencode(vae, args.beta, args.noise, terms_of(arm, factor, args), view=view)
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
        optimiser = adamw(vae.parameters(), args.lr)
        rate = warmup_cosine(args.steps, 50)
        state = fit(method, data, {"autoencoder": optimiser}, {"vae": vae}, run, rate)
        with state.averaged():
            kept = {k: v.clone() for k, v in vae.state_dict().items()}
        vae.load_state_dict(kept)
    with torch.no_grad():
        vae.calibrate(torch.cat([data(10**5, i).x for i in range(8)]))
    if arm != "original":
        write = store.save if type(vae).__name__ in store.KINDS else save_foreign
        write(vae, args.out / f"{arm}-{seed}" / "vae")
    return vae.requires_grad_(False)


def drawn(vae: Any, seed: int, args: Args, device: torch.device, folder: Path) -> float:
    """The Frechet distance of a small DiT's pictures, trained from scratch on ``vae``'s latents."""
    torch.manual_seed(seed)
    words = Pipeline.from_pretrained("scenes").text_encoder.tokenizer
    reader = encoder.TextTransformer(encoder.PRESETS["smoke"], words).to(device)
    model = dit.DiT(replace(dit.PRESETS["smoke"], channels=vae.config.channels)).to(device)
    weights = [*model.parameters(), *reader.parameters()]

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        return batch.x, reader.embed(batch.text)

    method = FlowMatching(model, embed, lambda: reader.embed([""]), weights)
    # drawing and encoding a batch costs more than a step of so small a network
    data = Encoded(Scenes(WORLD, 32, args.size, device), vae.encode, uses=2)
    half = bf16(device, args.bf16)
    run = Run(args.dit_steps, folder, seed, ema=0.995, bf16=half, save_every=200, keep=1, name="dit")
    networks = {"transformer": model, "text_encoder": reader}
    rate = warmup_cosine(args.dit_steps, 50)
    state = fit(method, data, {"denoiser": adamw(weights, 3e-3)}, networks, run, rate)
    features = store.load(SHIPPED / "scenes" / "features").to(device).features
    ours, theirs = Gaussian(), Gaussian()
    with state.averaged():
        pipe = Pipeline(model, reader, vae, Schedule(steps=20, guidance=3.0, size=args.size))
        for i in range(args.pictures // 32):
            world = Scenes(WORLD, 32, args.size, device)
            captions = [s.caption for s in world.specs(10**6, i)]
            with torch.no_grad():
                ours.add(features(pipe.sample(captions, seed=i)))
                theirs.add(features(world(10**6, i).x))
    return frechet(ours, theirs)


def judged(arm: str, seed: int, args: Args, device: torch.device) -> dict[str, float]:
    vae = tuned(arm, seed, args, device)
    held_out = source(args, device, "test")
    pictures = [held_out(10**6, i).x for i in range(max(1, args.held_out // args.batch))]
    network = store.load(SHIPPED / "scenes" / "features").to(device).requires_grad_(False)
    found = measure(vae, pictures, network)
    spectra = curves(vae, pictures)
    h, w = (side // vae.config.factor // 2 for side in pictures[0].shape[-2:])
    # at a half and a quarter of the side
    errors = [equivariance_error(vae, x, (h // n, w // n)) for x in pictures for n in (1, 2)]
    found["se_error"] = sum(errors) / len(errors)
    found |= {"high": spectra["latents"].high, "slope": spectra["latents"].slope}
    found["high_sampled"] = spectra["sampled"].high
    found["high_pixels"], found["slope_pixels"] = spectra["pixels"].high, spectra["pixels"].slope
    found["to_pixels"] = (spectra["latents"].levels - spectra["pixels"].levels)[1:].abs().mean().item()
    if seed == args.seeds[0]:
        folder = args.out / "spectra"
        folder.mkdir(parents=True, exist_ok=True)
        shown = {"pixels": spectra["pixels"], arm: spectra["latents"]}
        store.write_json(folder / f"{arm}.json", {k: s.levels.tolist() for k, s in shown.items()})
    if args.dit_steps:
        found["frechet_dit"] = drawn(vae, seed, args, device, args.out / f"{arm}-{seed}" / "dit")
    return found


def main(args: Args) -> None:
    if unknown := set(args.arms) - set(ARMS):
        raise ValueError(f"--arms {sorted(unknown)[0]}: expected some of {', '.join(ARMS)}")
    if spread.world() > 1:
        raise ValueError("scale_equivariance runs in one process; start several with other --seeds")
    if args.dit_steps and args.pictures < 32:
        raise ValueError(f"--pictures {args.pictures}: expected 32 or more, for a Frechet distance")
    if args.dit_steps and args.data != "scenes" and not args.clips:
        raise ValueError(f"--data {args.data}: the DiT is trained on drawn scenes; give --dit-steps 0")
    device = choose(args.device)
    same = settings(args, MAY_CHANGE)
    found = collect(args.out, args.arms, args.seeds, lambda arm, seed: judged(arm, seed, args, device), same)
    measures = {m: d for m, d in MEASURES.items() if args.dit_steps or m != "frechet_dit"}
    print(text(table(found, measures)))
    if len(args.arms) > 1:
        print(text(against(found, "control" if "control" in args.arms else args.arms[0], measures)))
    levels: dict[str, list[float]] = {}
    for arm in args.arms:
        levels |= store.read_json(args.out / "spectra" / f"{arm}.json")
    series = {name: list(enumerate(values)) for name, values in levels.items()}
    (args.out / "spectra.svg").write_text(lines(series, "zigzag index", "log10 amplitude", "spectra"))
