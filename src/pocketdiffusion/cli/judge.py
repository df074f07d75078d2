"""One row of numbers per autoencoder, over a data set.

    pocket reconstruct --data photos --model scenes --model my_autoencoder/
    pocket reconstruct --data clips --model my_autoencoder/ --decoder my_decoder/ -o numbers.json
    pocket reconstruct --data my_videos/ --model my_autoencoder/ --size 256 --max-frames 9

All see the same pictures, or clips of 17 frames. With --decoder there are two rows: the autoencoder with its
own decoder, and with that one. SceneNet is an LPIPS-type distance by features that scenes taught, frechet is
between the same features of input and output, cycle is how far E(D(E(x))) is from E(x), and flicker is of
clips alone: eval/reconstruction.py.
"""

from __future__ import annotations

import json
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device import choose
from ..disk import renamed

if TYPE_CHECKING:
    from .reconstruct import Args

# of single pictures and videos
OTHERS = ("fps", "first", "strict", "gain", "tile", "batch", "latents", "dtype")
COLUMNS = {"pictures": "pictures", "ratio": "ratio", "PSNR": "psnr", "SSIM": "ssim", "SceneNet": "perceptual"}
COLUMNS |= {"frechet": "frechet", "frechet clips": "frechet_clips", "flicker": "flicker", "cycle": "cycle"}


def side(networks: dict[str, Any], size: int | None) -> int:
    """Pixels that every network can take: ``size``, else the least from 64 on."""
    unit = lcm(*(network.config.factor for network in networks.values()))
    if size is None:
        return -(-64 // unit) * unit
    for name, network in networks.items():
        if size % network.config.factor:
            raise ValueError(f"--size {size}: {name} takes multiples of {network.config.factor}")
    return size


def judged(args: Args) -> None:
    """The table, and all numbers as JSON."""
    from .reconstruct import Args as Given

    for name in OTHERS:
        if getattr(args, name) != getattr(Given, name):
            raise ValueError(f"--{name}: has no meaning with --data")
    if args.out and args.out.suffix != ".json":
        raise ValueError(f"-o {args.out}: expected NAME.json with --data")
    models = args.model or ("scenes",)
    if args.decoder and len(models) > 1:
        raise ValueError("--decoder: expected one --model")
    from .. import store
    from ..bench.table import text
    from ..eval.reconstruction import measure
    from ..pipeline import SHIPPED
    from .autoencoder import autoencoder_of, grafted
    from .spectrum import FRAMES, PIXELS, batches, shown, source

    device, frames = choose(args.device), args.max_frames or FRAMES
    networks = {name: autoencoder_of(model) for model, name in shown(models).items()}
    if args.decoder:
        networks[f"+ {args.decoder.name}"] = grafted(autoencoder_of(models[0]), args.decoder)
    size = side(networks, args.size)
    given = source(str(args.data), max(1, min(32, PIXELS // size**2)), size, frames)
    features = store.load(SHIPPED / "scenes" / "features").to(device)
    found = {
        name: measure(network.to(device), batches(given, args.count, 0, device, name), features)
        for name, network in networks.items()
    }
    there = {k: v for k, v in COLUMNS.items() if any(v in numbers for numbers in found.values())}
    print(text([{"model": n, **{k: row.get(v) for k, v in there.items()}} for n, row in found.items()]))
    told = {"data": args.data, "size": size, "models": list(models), "decoder": args.decoder}
    out = args.out or Path("reconstruction.json")
    with renamed(out) as temporary:
        temporary.write_text(json.dumps({**told, "each": found}, indent=2, default=str) + "\n")
    print(out)
