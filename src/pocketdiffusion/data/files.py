"""A folder of pictures with captions, as users have: same-name .txt or metadata.jsonl.

    photos/cat.jpg  photos/cat.txt                                   in subfolders, too
    photos/metadata.jsonl  {"file_name": "cat.jpg", "text": "..."}   wins over a .txt (as in Hugging Face)

Every file is read once at the start, so that what cannot be used is known, told and left out before training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..types import Batch

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = "metadata.jsonl"
SHOWN = 20  # bad files named on the terminal; all are in Folder.bad


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> list[int]:
    """The permutation of one epoch."""
    return Random(f"{seed}/{epoch}").sample(range(count), count)


def rows(count: int, batch: int, seed: int, step: int) -> list[int]:
    """What ``step`` reads when every epoch visits each of ``count`` samples once; a batch may span epochs."""
    return [order(count, seed, i // count)[i % count] for i in range(step * batch, (step + 1) * batch)]


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as the camera was held; transparency on white, 16 bits scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in [-1, 1]: the largest centred cut of the right proportions, resized."""
    h, w = size
    with Image.open(path) as image:
        # lets a JPEG decode at the nearest larger fraction, several times faster for photographs
        image.draft(None, (2 * max(h, w), 2 * max(h, w)))
        fitted = ImageOps.fit(upright(image), (w, h), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 127.5 - 1


def problem(path: Path, size: tuple[int, int]) -> str:
    """Why ``path`` cannot be used; empty when it can."""
    if not path.exists():
        return "no such file"
    if not path.stat().st_size:
        return "zero bytes"
    # decoders raise whatever they meet in a damaged file: OSError, SyntaxError, struct.error, ...
    try:
        read_picture(path, size)
    except Image.UnidentifiedImageError:
        return "not a picture"
    except Exception as error:
        return f"cannot be decoded ({error})"
    return ""


class Folder:
    """``Folder(...)(seed, step) -> Batch`` of pixels (B, 3, H, W) and captions, once per epoch, shuffled.

    ``bad`` lists what was left out, and why. ``flip`` mirrors half of the pictures, whatever the captions say
    of left and right.
    """

    def __init__(
        self,
        path: Path | str,
        batch: int = 8,
        size: int | tuple[int, int] = 64,
        device: torch.device | str = "cpu",
        flip: bool = False,
    ):
        self.path, self.batch, self.device, self.flip = Path(path), batch, device, flip
        self.size = (size, size) if isinstance(size, int) else size
        if not self.path.is_dir():
            raise ValueError(
                f"{path}: {'not a folder' if self.path.exists() else 'no such folder'} (of pictures)"
            )
        self.bad: list[tuple[Path, str]] = []
        captioned = list(self._captioned())
        self.items = list(self._whole(captioned))
        if not self.items:
            first = (
                f"; {len(self.bad)} left out, the first: {self.bad[0][0]}: {self.bad[0][1]}"
                if self.bad
                else ""
            )
            raise ValueError(f"{path}: no pictures with captions ({' '.join(SUFFIXES)}){first}")
        if self.bad:
            print(self.report())

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, seed: int, step: int) -> Batch:
        chosen = [self.items[i] for i in rows(len(self), self.batch, seed, step)]
        with ThreadPoolExecutor() as pool:
            x = torch.stack(list(pool.map(lambda item: read_picture(item[0], self.size), chosen)))
        if self.flip:
            rng = Random(f"flip/{seed}/{step}")
            mirrored = torch.tensor([rng.random() < 0.5 for _ in chosen])
            x[mirrored] = x[mirrored].flip(-1)
        return Batch(x.to(self.device), [caption for _, caption in chosen])

    def report(self) -> str:
        """How many files are used, and which are not."""
        lines = [f"{self.path}: {len(self)} pictures; {len(self.bad)} left out:"]
        lines += [f"  {path}: {why}" for path, why in self.bad[:SHOWN]]
        if len(self.bad) > SHOWN:
            lines.append(f"  and {len(self.bad) - SHOWN} more")
        return "\n".join(lines)

    def _captioned(self) -> Iterator[tuple[Path, str]]:
        """Pictures with their captions, in the order of their names."""
        captions = dict(self._metadata())
        found = {p for p in self.path.rglob("*") if p.suffix.lower() in SUFFIXES and p.name[0] != "."}
        for path in sorted(found | set(captions)):
            caption = captions.get(path)
            beside = path.with_suffix(".txt")
            try:
                if caption is None and beside.exists():
                    caption = beside.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                self.bad.append((path, f"caption {beside.name} cannot be read ({error})"))
                continue
            if caption and caption.strip():
                yield path, " ".join(caption.split())
            else:
                self.bad.append((path, "empty caption" if caption is not None else "no caption"))

    def _metadata(self) -> Iterator[tuple[Path, str]]:
        path = self.path / METADATA
        if not path.exists():
            return
        for i, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row["text"], str):
                        raise TypeError
                    yield self.path / row["file_name"], row["text"]
            except (ValueError, KeyError, TypeError):
                self.bad.append((path, f'line {i} is not {{"file_name": ..., "text": ...}}'))

    def _whole(self, items: list[tuple[Path, str]]) -> Iterator[tuple[Path, str]]:
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda item: problem(item[0], self.size), items)
            progress = tqdm(found, f"reading {self.path}", len(items), disable=None, delay=2)
            for item, why in zip(items, progress, strict=True):
                if why:
                    self.bad.append((item[0], why))
                else:
                    yield item


def read_prompts(path: Path | str) -> list[str]:
    """One prompt per line; blank lines are passed over."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as prompts, one per line ({error})") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: no prompts; expected one per line")
    return prompts
