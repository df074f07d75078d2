"""pocket spectrum: how much fine detail an autoencoder's latents carry, beside pixels.

    pocket spectrum scenes --data scenes
    pocket spectrum before/vae after/vae --data photos -o out/spectrum       # before and after a fine-tune
    pocket spectrum my_pipeline/ --data photos/ --size 128

HF is the share of AC energy in the upper half of the zigzag, the slope is in decades of amplitude per step of
it (0: white noise). SE is the error of decoding latents of half the side against pictures of half the side,
in pixel units of [-1, 1]. The definitions are in eval/spectrum.py; every model sees the same pictures. Frames
of clips, and latent frames, are counted as pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..device import choose
from ..disk import renamed

if TYPE_CHECKING:
    from torch import Tensor

    from ..eval.spectrum import Spectrum

FRAMES = 17  # of a clip: 1 + 4 k and 1 + 8 k
PIXELS = 2**19  # in a batch, about
UNSEEN = 10**6  # added to the seed, so that no training run draws the same scenes


@dataclass(frozen=True)
class Args:
    models: Annotated[tuple[str, ...], tyro.conf.Positional] = ("scenes",)
    """Shipped pipelines' names, pipeline folders or autoencoder folders, ours or of diffusers."""
    data: str = "scenes"
    """scenes, clips (both drawn), photos (held-out parts of scikit-image's) or a folder."""
    count: int = 1024
    """Pictures, or frames of clips."""
    size: int | None = None
    """Pixels per side; default: 64, or 8 times the largest factor where latents would be below 8 x 8."""
    seed: int = 0
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out/spectrum")
    """Folder for spectrum.svg and spectrum.json."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def source(data: str, batch: int, size: int, frames: int = FRAMES) -> Any:
    """(seed, step) -> Batch of about ``batch`` pictures, or frames of clips (of a folder that has videos)."""
    from ..data import clips, photos, scenes
    from ..data.video import VIDEOS

    if data == "scenes":
        return scenes.Scenes(scenes.World(), batch, size)
    if data == "clips":
        from ..data.motion import Clips

        return Clips(batch=max(1, batch // frames), size=size, frames=frames)
    if data == "photos":
        return photos.Photos(batch, size, "test")
    if not Path(data).is_dir():
        raise ValueError(f"--data {data}: expected scenes, clips, photos or a folder of pictures or videos")
    if any(p.suffix.lower() in VIDEOS for p in Path(data).rglob("*")):
        return clips.Clips(data, max(1, batch // frames), size, frames)
    return photos.Photos(batch, size, "all", data)


def batches(given: Any, count: int, seed: int, device: Any, what: str) -> Iterator[Tensor]:
    """Pixels of ``count`` pictures, or of as many whole clips as have at least that many frames."""
    from tqdm import tqdm

    left, step = count, 0
    with tqdm(total=count, desc=what, disable=None, delay=2) as bar:
        while left > 0:
            x = given(seed + UNSEEN, step).x
            frames = x.shape[2] if x.ndim == 5 else 1
            x = x[: -(-left // frames)]
            left, step = left - len(x) * frames, step + 1
            bar.update(len(x) * frames)
            yield x.to(device)


def side(networks: dict[str, Any], size: int | None) -> int:
    """A number of pixels that gives every latent whole 8 x 8 blocks, or at least one."""
    from ..eval.spectrum import BLOCK

    largest = max(networks, key=lambda name: networks[name].config.factor)
    least = BLOCK * networks[largest].config.factor
    size = max(64, least) if size is None else size
    for name, network in networks.items():
        if size < BLOCK * network.config.factor or size % network.config.factor:
            factor = network.config.factor
            told = f"--size {size}: {name} makes {factor} x {factor} pixels one position"
            raise ValueError(f"{told}; expected a multiple of {factor}, at least {BLOCK * factor}")
    return size


def shown(models: tuple[str, ...]) -> dict[str, str]:
    """Short names for the table and the plot: as typed, or the end of a long path."""
    names = {m: m.rstrip("/") if len(m) <= 24 else "..." + m.rstrip("/")[-21:] for m in models}
    if len(set(names.values())) < len(models):
        raise ValueError(f"the same model twice, or two of the same name: {', '.join(models)}")
    return names


def error(network: Any, given: Any, args: Args, device: Any) -> float:
    """SE at half the latent's side, over all pictures."""
    from ..eval.spectrum import equivariance_error

    total = pictures = 0.0
    for x in batches(given, args.count, args.seed, device, "SE"):
        half = x.shape[-1] // network.config.factor // 2
        total += equivariance_error(network, x, half) * len(x)
        pictures += len(x)
    return total / pictures


def row(model: str, curve: str, spectrum: Spectrum, se: float | None) -> dict[str, Any]:
    return {
        "model": model,
        "curve": curve,
        "pictures": spectrum.count,
        "HF": round(spectrum.high, 4),
        "slope": round(spectrum.slope, 4),
        "SE": None if se is None else round(se, 4),
    }


def main(args: Args) -> None:
    if args.count < 1:
        raise ValueError(f"--count {args.count}: expected 1 or more")
    if not args.models:
        raise ValueError("give at least one model: a shipped name or a folder")
    names, device = shown(args.models), choose(args.device)
    from ..bench.table import text
    from ..eval.spectrum import curves
    from .autoencoder import autoencoder_of

    networks = {names[m]: autoencoder_of(m).to(device) for m in args.models}
    size = side(networks, args.size)
    given = source(args.data, max(1, min(32, PIXELS // size**2)), size)
    rows: list[dict[str, Any]] = []
    spectra: dict[tuple[str, str], Spectrum] = {}
    for name, network in networks.items():
        found = curves(network, batches(given, args.count, args.seed, device, name), args.seed)
        se = error(network, given, args, device)
        if not rows:
            spectra["-", "pixels"] = found["pixels"]
            rows.append(row("-", "pixels", found["pixels"], None))
        for curve in ("latents", "sampled"):
            spectra[name, curve] = found[curve]
            rows.append(row(name, curve, found[curve], se if curve == "latents" else None))
    print(text(rows))
    told = {"data": args.data, "size": size, "seed": args.seed, "models": list(args.models)}
    write(args.out, told, rows, spectra)


def write(
    out: Path, told: dict[str, Any], rows: list[dict[str, Any]], spectra: dict[tuple[str, str], Spectrum]
) -> None:
    """spectrum.svg and spectrum.json in ``out``."""
    from ..eval.plots import lines
    from ..eval.spectrum import zigzag

    drawn = {
        curve if model == "-" else f"{model}, {curve}": list(enumerate(s.levels.tolist()))
        for (model, curve), s in spectra.items()
    }
    # sampled latents often lie on their means
    dashed = [name for name in drawn if name.endswith("sampled")]
    plot = lines(drawn, "zigzag index", "log10 amplitude, DC = 0", f"spectra of {told['data']}", dashed)
    curves = [
        r | {"amplitude": s.amplitude.tolist(), "power": s.power.tolist()}
        for r, s in zip(rows, spectra.values())
    ]
    for name, content in (
        ("spectrum.svg", plot),
        ("spectrum.json", json.dumps(told | {"zigzag": zigzag(), "curves": curves}, indent=2)),
    ):
        with renamed(out / name) as temporary:
            temporary.write_text(content + "\n")
        print(out / name)
