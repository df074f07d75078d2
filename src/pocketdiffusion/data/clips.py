"""Video files as clips: read, write, and a folder of them, batch = f(seed, step).

    clip, fps = read_clip("cat.mp4", frames=17, size=256)      (3, T, H, W) in [-1, 1], frames per second
    for x in frames_of("long.mp4"): ...                        the same pictures one by one, (3, H, W)
    write_clip(clip, "cat.mp4", fps)                           a tensor, or any iterable of (3, H, W)

What can be read is told in video.py, what is written in record.py. Sizes are cut and resized as pictures are
(files.read_picture).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..types import Batch
from .files import SHOWN, rows
from .record import CRF, record
from .video import VIDEOS, Film, opened


def tensor(picture: Image.Image, size: int | tuple[int, int] | None) -> Tensor:
    """(3, H, W) in [-1, 1]; with ``size`` the largest centred cut of its proportions, resized."""
    if size is not None:
        h, w = (size, size) if isinstance(size, int) else size
        picture = ImageOps.fit(picture, (w, h), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1


def frames_of(
    path: Path | str | Film, size: int | tuple[int, int] | None = None, start: int = 0, stride: int = 1
) -> Iterator[Tensor]:
    """Pictures ``start``, ``start + stride``, ... as (3, H, W) in [-1, 1], one in memory at a time."""
    film = opened(path) if isinstance(path, Path | str) else path
    return (tensor(picture, size) for picture in film.pictures(start, stride))


def read_clip(
    path: Path | str | Film,
    frames: int | None = None,
    size: int | tuple[int, int] | None = None,
    start: int = 0,
    stride: int = 1,
) -> tuple[Tensor, float]:
    """(3, T, H, W) in [-1, 1], and its frames per second, over ``stride``. ``frames`` None: to the end.

    A video that has fewer frames than are asked for is a ValueError.
    """
    film = opened(path) if isinstance(path, Path | str) else path
    if start < 0 or stride < 1 or (frames is not None and frames < 1):
        asked = f"frames {frames}, start {start}, stride {stride}"
        raise ValueError(f"{film.path}: {asked}; expected 1, 0, 1 or more")
    there = len(range(start, film.count, stride))
    if there < (frames or 1):
        asked = f"{frames or 1} from frame {start}" + (f", stride {stride}" if stride > 1 else "")
        raise ValueError(f"{film.path}: too short, {film.count} frames, expected {asked}")
    x = list(islice(frames_of(film, size, start, stride), frames or there))
    return torch.stack(x, 1), film.fps / stride


def pixels(x: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> 8 bits (H, W, 3)."""
    return np.ascontiguousarray(((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())


def write_clip(clip: Tensor | Iterable[Tensor], path: Path | str, fps: float, crf: int = CRF) -> None:
    """A clip (3, T, H, W), or pictures (3, H, W) as they come, into what the suffix says (record.py).

    ``crf``: quality of H.264 and VP9, lower is better.
    """
    parts = clip.unbind(1) if isinstance(clip, Tensor) else clip
    record(map(pixels, parts), Path(path), fps, crf)


class Clips:
    """``Clips(...)(seed, step) -> Batch`` of (B, 3, T, H, W) and captions; once per epoch, shuffled.

    cat.mp4 has its caption in cat.txt, or none (""). Of a longer video a random part is shown. ``bad`` lists
    what was left out, and why: every video's index, first frame and end are read at the start.
    """

    suffixes = (*VIDEOS, ".gif")

    def __init__(
        self,
        path: Path | str,
        batch: int = 8,
        size: int | tuple[int, int] = 64,
        frames: int = 17,
        stride: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.path, self.batch, self.size, self.device = Path(path), batch, size, device
        self.frames, self.stride = frames, stride
        if min(batch, frames, stride) < 1:
            raise ValueError(f"batch, frames and stride must be at least 1, got {batch}, {frames}, {stride}")
        if not self.path.is_dir():
            found = "not a folder" if self.path.exists() else "no such folder"
            raise ValueError(f"{path}: {found} (of videos)")
        self.bad: list[tuple[Path, str]] = []
        self.items: list[tuple[Film, str]] = list(self._whole())
        if not self.items:
            first = f"; {len(self.bad)} left out, the first: {self.bad[0][1]}" if self.bad else ""
            raise ValueError(f"{path}: no videos ({' '.join(self.suffixes)}){first}")
        if self.bad:
            print(self.report())

    def __len__(self) -> int:
        return len(self.items)

    def __call__(self, seed: int, step: int) -> Batch:
        chosen = [self.items[i] for i in rows(len(self), self.batch, seed, step)]
        rng = Random(f"start/{seed}/{step}")
        starts = [rng.randint(0, film.count - self.needed) for film, _ in chosen]
        with ThreadPoolExecutor() as pool:
            x = torch.stack(list(pool.map(self._clip, [film for film, _ in chosen], starts)))
        return Batch(x.to(self.device), [caption for _, caption in chosen])

    @property
    def needed(self) -> int:
        """Frames that a video must have."""
        return (self.frames - 1) * self.stride + 1

    def report(self) -> str:
        """How many videos are used, and which are not."""
        lines = [f"{self.path}: {len(self)} videos; {len(self.bad)} left out:"]
        lines += [f"  {why}" for _, why in self.bad[:SHOWN]]
        if len(self.bad) > SHOWN:
            lines.append(f"  and {len(self.bad) - SHOWN} more")
        return "\n".join(lines)

    def _clip(self, film: Film, start: int) -> Tensor:
        return read_clip(film, self.frames, self.size, start, self.stride)[0]

    def _whole(self) -> Iterator[tuple[Film, str]]:
        paths = sorted(
            p for p in self.path.rglob("*") if p.suffix.lower() in self.suffixes and p.name[0] != "."
        )
        with ThreadPoolExecutor() as pool:
            progress = tqdm(
                pool.map(self._read, paths), f"reading {self.path}", len(paths), disable=None, delay=2
            )
            for path, (film, told) in zip(paths, progress, strict=True):
                if film is None:
                    self.bad.append((path, told))
                else:
                    yield film, told

    def _read(self, path: Path) -> tuple[Film | None, str]:
        """The film and its caption, or nothing and why."""
        beside = path.with_suffix(".txt")
        try:
            film = opened(path)
            self._clip(film, max(0, film.count - self.needed))
            return film, " ".join(beside.read_text(encoding="utf-8-sig").split()) if beside.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            return None, f"{path}: {beside.name} cannot be read ({error})"
        except ValueError as error:
            return None, str(error)
