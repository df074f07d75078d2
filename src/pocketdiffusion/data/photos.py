"""Natural pictures, of scikit-image or of a folder; a corner of each is held out.

    +---------+---------+
    |       train       |     train: crops of the upper half or of the left half, half of them mirrored
    |         +---------+     test:  crops of the lower right quarter; no pixel of it is ever in train
    |         |  test   |     all:   crops of the whole, for what nobody trains on
    +---------+---------+

A corner and not a strip, so that what is held out still has room for large crops. A crop is ``size`` times a
random scale (log-uniform from 1 to ``scale``, as far as there is room), reduced to ``size``, never enlarged.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..types import Batch
from .files import SHOWN, SUFFIXES, problem, rows, upright

# All lie in the wheel itself. Left out: the other half of the stereo pair, which shows motorcycle_left's held
# out corner once more; hubble_deep_field, black with dots; drawings, and what is no photograph.
COLOUR = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
GREY = ("brick.png", "camera.png", "coins.png", "grass.png", "gravel.png")
SPLITS = ("train", "test", "all")
ORIENTATION = 0x0112  # in EXIF; 5 to 8 are pictures on their side

Box = tuple[int, int, int, int]  # left, upper, right, lower; as PIL has it


def regions(width: int, height: int, split: str) -> list[Box]:
    """From which parts of a picture the crops of ``split`` are cut."""
    x, y = width // 2, height // 2
    parts: dict[str, list[Box]] = {
        "train": [(0, 0, width, y), (0, 0, x, height)],
        "test": [(x, y, width, height)],
        "all": [(0, 0, width, height)],
    }
    return parts[split]


def room(box: Box, size: tuple[int, int]) -> float:
    """The largest scale at which a crop of ``size`` (height, width) fits into ``box``."""
    return min((box[3] - box[1]) / size[0], (box[2] - box[0]) / size[1])


def cut(boxes: list[Box], size: tuple[int, int], scale: float, rng: Random) -> Box:
    """Where one crop lies: inside one of the ``boxes`` that have room for it, drawn by their areas."""
    fits = [b for b in boxes if room(b, size) >= 1]
    box = rng.choices(fits, [(b[2] - b[0]) * (b[3] - b[1]) for b in fits])[0]
    factor = max(1.0, min(scale, room(box, size))) ** rng.random()
    h, w = (int(side * factor) for side in size)
    left, upper = rng.randint(box[0], box[2] - w), rng.randint(box[1], box[3] - h)
    return left, upper, left + w, upper + h


def shipped(grey: bool = False) -> list[Path]:
    """Photographs inside the installed scikit-image. Its own loaders may download, and are not used."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in sorted((*COLOUR, *(GREY if grey else ())))]


def sides(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, without decoding it."""
    with Image.open(path) as image:
        turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


class Photos:
    """``Photos(...)(seed, step) -> Batch`` of pixels (B, 3, H, W) in [-1, 1] with empty captions.

    Every picture comes once per epoch, each time as another crop. ``path``: a folder (with its subfolders) in
    place of the shipped photographs; files without captions are welcome. ``bad`` lists what was left out, and
    why: what cannot be read, and what has no part of ``size`` or more in this split.
    """

    def __init__(
        self,
        batch: int = 32,
        size: int | tuple[int, int] = 64,
        split: str = "train",
        path: Path | str | None = None,
        scale: float = 4.0,
        grey: bool = False,
        device: torch.device | str = "cpu",
    ):
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: expected {', '.join(SPLITS)}")
        if batch < 1 or scale < 1:
            raise ValueError(f"batch {batch} and scale {scale}: expected 1 or more")
        self.batch, self.split, self.scale, self.device = batch, split, scale, device
        self.size = (size, size) if isinstance(size, int) else size
        self.name = "photos" if path is None else str(path)
        if path is not None and not Path(path).is_dir():
            raise ValueError(
                f"{path}: {'not a folder' if Path(path).exists() else 'no such folder'} (of pictures)"
            )
        found = shipped(grey) if path is None else pictures(Path(path))
        self.bad: list[tuple[Path, str]] = []
        self.items = list(self._usable(found))
        # a handful, asked for in every step
        self.kept = {p: opened(p) for p, _ in self.items} if path is None else {}
        if not self.items:
            first = f"; the first: {self.bad[0][0]}: {self.bad[0][1]}" if self.bad else ""
            raise ValueError(f"{self.name}: no pictures ({' '.join(SUFFIXES)}) that can be used{first}")
        if self.bad:
            print(self.report())

    def __len__(self) -> int:
        return len(self.items)

    def crops(self, seed: int, step: int) -> list[tuple[Path, Box, bool]]:
        """What a batch is made of: the file, the part of it, and whether it is mirrored."""
        rng = Random(f"photos/{seed}/{step}")
        chosen = [self.items[i] for i in rows(len(self), self.batch, seed, step)]
        return [
            (path, cut(boxes, self.size, self.scale, rng), rng.random() < 0.5 and self.split == "train")
            for path, boxes in chosen
        ]

    def __call__(self, seed: int, step: int) -> Batch:
        def read(crop: tuple[Path, Box, bool]) -> Tensor:
            path, box, mirrored = crop
            part = (self.kept.get(path) or opened(path)).crop(box)
            part = part.resize(self.size[::-1], Image.Resampling.LANCZOS)
            x = torch.from_numpy(np.array(part)).permute(2, 0, 1) / 127.5 - 1
            return x.flip(-1) if mirrored else x

        with ThreadPoolExecutor() as pool:
            x = torch.stack(list(pool.map(read, self.crops(seed, step))))
        return Batch(x.to(self.device), [""] * self.batch)

    def report(self) -> str:
        """How many files are used, and which are not."""
        lines = [f"{self.name}: {len(self)} pictures; {len(self.bad)} left out:"]
        lines += [f"  {path}: {why}" for path, why in self.bad[:SHOWN]]
        if len(self.bad) > SHOWN:
            lines.append(f"  and {len(self.bad) - SHOWN} more")
        return "\n".join(lines)

    def _usable(self, found: list[Path]) -> Iterator[tuple[Path, list[Box]]]:
        """Files with the parts that crops may come from."""
        with ThreadPoolExecutor() as pool:
            told = pool.map(lambda path: problem(path, self.size), found)
            progress = tqdm(told, f"reading {self.name}", len(found), disable=None, delay=2)
            for path, why in zip(found, progress, strict=True):
                if not why:
                    width, height = sides(path)
                    boxes = regions(width, height, self.split)
                    if max(room(b, self.size) for b in boxes) >= 1:
                        yield path, boxes
                        continue
                    part = "" if self.split == "all" else f" whose {self.split} part is"
                    why = f"{width} x {height} pixels,{part} too small for {self.size[1]} x {self.size[0]}"
                self.bad.append((path, why))


def pictures(folder: Path) -> list[Path]:
    """Every picture file below ``folder``, by name; hidden ones are passed over."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != ".")


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return upright(image)
