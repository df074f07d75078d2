"""pocket reconstruct: a picture or video through an autoencoder, beside the original.

    pocket reconstruct photo.jpg
    pocket reconstruct clip.mp4 --model my_autoencoder/ -o compared.mp4
    pocket reconstruct clip.mp4 --model my_autoencoder/ --latents clip.safetensors
    pocket reconstruct clip.safetensors --model my_autoencoder/ -o decoded.mp4
    pocket reconstruct --data photos --model scenes --model my_autoencoder/       # numbers alone: judge.py

Out come original, reconstruction and amplified difference (black: none) next to each other, small pictures
enlarged without smoothing, and a .json of the numbers (PSNR of every frame too), which are measured before a
video is compressed. Sides
that do not divide by the autoencoder's factor are padded with copies of the last row and column, which are
cut off again. A video autoencoder takes 1 + f_t k frames, a longer tail is cut. A folder holds frames if they
are alike in size and called one name and a number; else pictures. Chunks, tiles, memory: cli/through.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..device import choose, precision
from ..disk import renamed
from . import latents
from .films import films

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.video import Film
    from .compare import Tally
    from .through import Through


@dataclass(frozen=True)
class Args:
    source: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IN")] = None
    """A picture, a video, a folder of frames or of pictures, or latents (.safetensors)."""
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A shipped name (default: scenes), a pipeline's or an autoencoder's folder, ours or of diffusers."""
    decoder: Path | None = None
    """A folder with another decoder of the same latents (pocket train tiny_decoder)."""
    data: str | None = None
    """In place of IN: scenes, clips (both drawn), photos or a folder of pictures or videos, only measured."""
    count: int = 1024
    """Pictures, or frames of clips, of --data."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """NAME.png for a picture; .mp4, .mov, .mkv, .webm, .gif or .png for a video; or a folder of PNGs.
    NAME.json for --data."""
    size: int | None = None
    """Cut to the middle square and resize to this side first."""
    max_frames: int | None = None
    """Frames to use of a video; default: all."""
    fps: float | None = None
    """Frames per second of the output; default: those of the input."""
    first: bool = False
    """Tell the decoder the first frame, which then is not counted in the numbers."""
    strict: bool = False
    """Refuse a video of which the autoencoder cannot take every frame, in place of cutting its tail."""
    gain: float = 4.0
    """Amplification of the difference."""
    tile: int = 1024
    """Pixels per side above which frames go through in tiles; 0: never."""
    batch: int = 4
    """Frames at a time."""
    latents: Path | None = None
    """Write the latents of a picture or video to this .safetensors, too."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "fp32"
    """fp32, bf16 or fp16 (compute)."""


def check(args: Args) -> None:
    """What can be refused before anything is read."""
    if (args.source is None) == (args.data is None):
        raise ValueError("give IN or --data" + (", not both" if args.data else ""))
    for name, low in {"size": 1, "count": 1, "max_frames": 1, "batch": 1, "tile": 0}.items():
        if (value := getattr(args, name)) is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected {low} or more")
    for name in ("gain", "fps"):
        if (value := getattr(args, name)) is not None and not value > 0:
            raise ValueError(f"--{name} {value:g}: expected more than 0")
    if args.latents and args.latents.suffix != latents.SUFFIX:
        raise ValueError(f"--latents {args.latents}: expected NAME{latents.SUFFIX}")
    if args.decoder and args.first:
        raise ValueError("--first: a --decoder by itself takes no first frame")
    if args.data is None and (len(args.model) > 1 or args.count != Args.count):
        raise ValueError(f"{'several --model' if len(args.model) > 1 else '--count'}: is for --data")
    if args.source and args.source.suffix == latents.SUFFIX:
        for name in ("size", "max_frames", "first", "strict", "latents"):
            if getattr(args, name) not in (None, False):
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: {args.source} holds latents, which are decoded as they are")


def target(args: Args, source: Path, kind: str, fps: float = 1.0) -> Path:
    """Where the output of a picture, video or folder of pictures goes; ValueError if it cannot."""
    from ..data.record import check as writable

    suffix = {"picture": ".png", "video": ".mp4", "folder": ""}[kind]
    out = args.out or Path("reconstruction" + suffix)
    if kind != "video" and out.suffix.lower() != suffix:
        raise ValueError(f"-o {out}: expected {'NAME.png' if suffix else 'a folder without a suffix'}")
    if kind == "video":
        writable(out, args.fps or fps)
    if out.resolve() == source.resolve():
        raise ValueError(f"-o {out}: is the input; name another")
    return out


def compared(
    way: Through, film: Film, count: int, args: Args, tally: Tally, kept: list[Tensor]
) -> Iterator[Tensor]:
    """The panels of a film, as they are made; numbers go to ``tally``, latents to ``kept``."""
    from tqdm import tqdm

    from ..data.clips import frames_of
    from .compare import panels

    frames = tqdm(frames_of(film, args.size), "frames", count, disable=None, delay=2)
    for i, x in enumerate(way.chunks(frames, count)):
        if i == 0:
            # the first call of a network takes longer than others
            way.decode(way.encode(x[:1]))
            way.restart()
        z = way.encode(x)
        y = way.decode(z)
        if args.latents:
            kept.append(z.cpu())
        told = 1 if args.first and i == 0 else 0
        if len(x) > told:
            tally.add(x[told:], y[told:])
        yield from panels(x, y, args.gain)


def one(way: Through, film: Film, args: Args, out: Path) -> dict[str, Any]:
    """A picture or video: writes what is asked for, returns the numbers."""
    import torch

    from ..eval.reconstruction import ratio
    from .compare import Tally

    asked = min(film.count, args.max_frames or film.count)
    count = way.usable(asked)
    if count < asked:
        told = f"{film.path}: {asked} frames, {type(way.autoencoder).__name__} takes 1 + {way.period} k"
        if args.strict:
            raise ValueError(f"{told}; give --max-frames {count}, or leave out --strict")
        print(f"{told}: the first {count} are used")
    way.restart()
    tally = Tally()
    kept: list[Tensor] = []
    show(compared(way, film, count, args, tally, kept), out, film.still, args.fps or film.fps)
    h, w = way.size or (0, 0)
    about = {"still": film.still, "fps": film.fps, "height": h, "width": w}
    if args.latents:
        latents.write(args.latents, torch.cat(kept, dim=1), way.autoencoder, named(args), about)
        print(args.latents)
    numbers: dict[str, Any] = {"source": str(film.path), "frames": count, **about, **tally.means()}
    numbers["psnr_by_frame"] = tally.found["psnr"]
    numbers["ratio"] = ratio(way.autoencoder.config)
    return numbers | {f"{k}_ms_per_frame": 1000 * v / count for k, v in way.seconds.items()}


def show(frames: Iterator[Tensor], out: Path, picture: bool, fps: float) -> None:
    """The first of ``frames`` as a PNG, or all as a video."""
    from PIL import Image

    from ..data.clips import pixels, write_clip

    if not picture:
        return write_clip(frames, out, fps)
    with renamed(out) as temporary:
        Image.fromarray(pixels(next(frames))).save(temporary, "PNG")


def decoded(way: Through, source: Path, args: Args) -> None:
    """A file of latents -> a picture or video."""
    z, about = latents.read(source, way.autoencoder, named(args))
    out = target(args, source, "picture" if about["still"] else "video", about["fps"])
    way.size = about["height"], about["width"]

    def frames() -> Iterator[Tensor]:
        start = 0
        for length in way.lengths(z.shape[1], latent=True):
            yield from way.decode(z[:, start : start + length].to(way.device))
            start += length

    show(frames(), out, about["still"], args.fps or about["fps"])
    print(out)


def row(numbers: dict[str, Any]) -> dict[str, Any]:
    """Numbers as a line of the table."""
    columns = {"PSNR": "psnr", "worst": "psnr_worst", "SSIM": "ssim", "flicker": "flicker", "ratio": "ratio"}
    columns |= {"encode ms/frame": "encode_ms_per_frame", "decode ms/frame": "decode_ms_per_frame"}
    size = f"{numbers['frames']} x {numbers['height']} x {numbers['width']}"
    return {"in": Path(numbers["source"]).name, "size": size, **{k: numbers[v] for k, v in columns.items()}}


def named(args: Args) -> str:
    """What the user calls the one autoencoder."""
    return args.model[0] if args.model else "scenes"


def main(args: Args) -> None:
    check(args)
    if args.source is None:
        from .judge import judged

        return judged(args)
    from ..bench.table import text
    from ..data.latents import weights_hash
    from .autoencoder import autoencoder_of, grafted
    from .through import Through

    source = args.source
    known = [] if source.suffix == latents.SUFFIX else films(source)
    several = len(known) > 1 or (source.is_dir() and known[0].still)
    if several and args.latents:
        raise ValueError(f"--latents: {source} holds several pictures, expected one or a video")
    if args.first and any(film.still for film in known):
        raise ValueError(f"--first: {source} is no video, and a picture has no frame after the first")
    out = None
    if known:
        kind = "folder" if several else "picture" if known[0].still else "video"
        out = target(args, source, kind, known[0].fps)
    network = autoencoder_of(named(args))
    if args.decoder:
        network = grafted(network, args.decoder)
    way = Through(network, args.tile, args.batch, args.first, choose(args.device), precision(args.dtype))
    if out is None:
        return decoded(way, source, args)
    stems = {film.path.stem for film in known}
    names = [film.path.stem if len(stems) == len(known) else film.path.name for film in known]
    targets = [out / f"{name}.png" for name in names] if several else [out]
    found = [one(way, film, args, path) for film, path in zip(known, targets, strict=True)]
    print(text([row(numbers) for numbers in found]))
    means = {}
    for key in ("psnr", "ssim"):
        values = [numbers[key] for numbers in found if numbers[key] is not None]
        means[key] = sum(values) / len(values) if values else None
    if several:
        print(f"mean PSNR {means['psnr']:.2f}")
    record: dict[str, Any] = {"model": named(args), "decoder": args.decoder and str(args.decoder)}
    record |= {"autoencoder": weights_hash(network), "first": args.first, "device": str(way.device)}
    record |= {"dtype": args.dtype, **means, "each": found}
    told = out.with_suffix(".json")
    with renamed(told) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{out}, {told}")
