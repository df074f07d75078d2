"""Video files, animations and folders of frames, read one picture at a time.

    film = opened("cat.mp4")            .count frames at .fps per second
    film.pictures(start=10, stride=2)   -> upright RGB pictures 10, 12, ...

Reads mp4, mov, webm, mkv and avi by PyAV, pictures (animated gif, webp and png, too) by Pillow, and folders
of pictures that are called one name and a number. Frames are found by their time stamps: a film that is
entered in the middle shows the same pictures as one that is read from its beginning.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .files import SUFFIXES as PICTURES
from .files import upright

VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
FPS = 24.0  # of folders and pictures that do not tell
# of these every packet is one picture; of others (VP8 has hidden ones) the pictures are counted by decoding
PLAIN = ("h264", "hevc", "vp9", "av1", "mjpeg", "prores", "ffv1")
BT709 = 1


@dataclass(frozen=True)
class Film:
    """``count`` frames, ``fps`` per second."""

    path: Path
    count: int
    fps: float

    @property
    def still(self) -> bool:
        """Whether it is a picture; a video of one frame is none."""
        return False

    def pictures(self, start: int = 0, stride: int = 1) -> Iterator[Image.Image]:
        """Frames ``start``, ``start + stride``, ... in order, upright, RGB."""
        raise NotImplementedError


def opened(path: Path | str) -> Film:
    """What ``path`` is as a film; ValueError names a file that is none, is damaged or has no pictures."""
    path = Path(path)
    if path.is_dir():
        return Numbered.of(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file, expected a video")
    if not path.stat().st_size:
        raise ValueError(f"{path}: zero bytes, expected a video")
    return (Still if path.suffix.lower() in (*PICTURES, ".apng") else Stream).of(path)


@contextmanager
def decoding(path: Path) -> Iterator[tuple[Any, Any]]:
    """The open container and its video stream; what PyAV says against it becomes a ValueError."""
    import av

    try:
        # a playlist under a video's name must not open other places
        with av.open(
            str(path), metadata_errors="ignore", options={"protocol_whitelist": "file"}
        ) as container:
            # the cover of an album is a video stream, too
            cover = av.stream.Disposition.attached_pic
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams:
                raise ValueError(f"{path}: holds no pictures (only sound?), expected a video")
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
    except av.FFmpegError as error:
        told = error.strerror or type(error).__name__
        raise ValueError(f"{path}: cannot be decoded ({told}), expected a video") from None


def rgb(frame: Any) -> Image.Image:
    """An upright RGB picture of a decoded frame."""
    # files of high definition that do not tell their matrix mean BT.709
    untold = frame.colorspace == 2 and frame.height >= 720
    x = frame.to_ndarray(format="rgb24", **({"src_colorspace": BT709} if untold else {}))
    return Image.fromarray(np.ascontiguousarray(np.rot90(x, frame.rotation // 90)))


@dataclass(frozen=True)
class Stream(Film):
    """A file that PyAV decodes."""

    stamps: tuple[int, ...] | None  # when each frame is shown; None: the file does not tell
    keys: tuple[int, ...]  # when those are shown from which decoding can start

    @classmethod
    def of(cls, path: Path) -> Stream:
        with decoding(path) as (container, stream):
            # the packets themselves would hold the whole file
            packets = [(p.pts, p.is_discard, p.is_keyframe) for p in container.demux(stream) if p.size]
            if len(packets) < stream.frames:
                raise ValueError(f"{path}: cut off, {len(packets)} of {stream.frames} frames are there")
            plain = stream.codec_context.name in PLAIN and all(pts is not None for pts, _, _ in packets)
            stamps = tuple(sorted(pts for pts, discard, _ in packets if not discard)) if plain else None
            keys = tuple(sorted(pts for pts, _, key in packets if key)) if plain else ()
            fps = float(stream.average_rate or stream.guessed_rate or FPS)
        whole = cls(path, len(packets), fps, stamps, keys)
        if stamps is None:
            return cls(path, whole._counted(sum(1 for _ in whole._decoded(None))), fps, None, ())
        # what comes before the first picture that stands alone is never shown
        first = next((frame.pts for frame in whole._decoded(None)), None)
        there = stamps[bisect_left(stamps, first) :] if first is not None else ()
        return cls(path, whole._counted(len(there)), fps, there, keys)

    def _counted(self, count: int) -> int:
        if not count:
            raise ValueError(f"{self.path}: no frame can be decoded, expected a video")
        return count

    def _decoded(self, stamp: int | None) -> Iterator[Any]:
        """Frames from the one shown at ``stamp``, or all."""
        with decoding(self.path) as (container, stream):
            if stamp is not None and (before := bisect_right(self.keys, stamp)) > 1:
                container.seek(self.keys[before - 1], stream=stream)
            for frame in container.decode(stream):
                if stamp is not None and frame.pts < stamp:
                    continue
                if frame.is_corrupt:
                    raise ValueError(
                        f"{self.path}: damaged at {frame.time or 0:.2f} s, expected a whole video"
                    )
                yield frame

    def pictures(self, start: int = 0, stride: int = 1) -> Iterator[Image.Image]:
        if start >= self.count:
            return
        done, skip = 0, start if self.stamps is None else 0
        for frame in self._decoded(None if self.stamps is None else self.stamps[start]):
            if done >= skip and (done - skip) % stride == 0:
                yield rgb(frame)
            done += 1
        if (there := done + start - skip) < self.count:
            raise ValueError(f"{self.path}: damaged, only {there} of {self.count} frames can be decoded")


@dataclass(frozen=True)
class Still(Film):
    """A picture file, of one frame or several; transparency is white."""

    @property
    def still(self) -> bool:
        return self.count == 1

    @classmethod
    def of(cls, path: Path) -> Still:
        seconds = 0.0
        with cls._image(path) as image:
            count = getattr(image, "n_frames", 1)
            for i in range(count):
                image.seek(i)
                image.load()
                # viewers show a frame without a duration for a tenth of a second
                seconds += (image.info.get("duration") or (100 if count > 1 else 1000 / FPS)) / 1000
        whole = round(count / seconds)
        # durations are whole hundredths or thousandths of a second: the rate that was meant is near
        near = whole > 0 and abs(count / whole - seconds) <= 0.011
        return cls(path, count, float(whole) if near else count / seconds)

    @staticmethod
    @contextmanager
    def _image(path: Path) -> Iterator[Image.Image]:
        # Pillow raises whatever it meets in a damaged file: OSError, SyntaxError, struct.error, ...
        try:
            with Image.open(path) as image:
                yield image
        except Image.UnidentifiedImageError:
            raise ValueError(f"{path}: not a picture") from None
        except Exception as error:
            raise ValueError(f"{path}: cannot be decoded ({error}), expected a picture") from None

    def pictures(self, start: int = 0, stride: int = 1) -> Iterator[Image.Image]:
        with self._image(self.path) as image:
            # in order: each frame may be what changed since the one before
            for i in range(self.count):
                image.seek(i)
                if i >= start and (i - start) % stride == 0:
                    yield upright(image)


def numbered(folder: Path) -> list[Path]:
    """The pictures in ``folder`` in the order of their numbers; none unless all are one name and a number."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.name[0] != "."]
    parts = {p: re.fullmatch(r"(.*?)(\d+)", p.stem) for p in found}
    if not all(parts.values()) or len({m[1] for m in parts.values() if m}) != 1:
        return []
    return sorted(found, key=lambda p: int(parts[p][2]))  # type: ignore[index]


@dataclass(frozen=True)
class Numbered(Film):
    """A folder of frames; frame-00001.png may carry the rate as the text "fps", as ours do."""

    files: tuple[Path, ...]

    @classmethod
    def of(cls, path: Path) -> Numbered:
        files = tuple(numbered(path))
        if not files:
            raise ValueError(f"{path}: no frames, expected pictures called one name and a number")
        with Still._image(files[0]) as image:
            told = str(image.info.get("fps", FPS))
        return cls(path, len(files), (float(told) if re.fullmatch(r"\d+(\.\d+)?", told) else 0) or FPS, files)

    def pictures(self, start: int = 0, stride: int = 1) -> Iterator[Image.Image]:
        size = None
        for path in self.files[start::stride]:
            with Still._image(path) as image:
                picture = upright(image)
            if picture.size != (size := size or picture.size):
                w, h = picture.size
                raise ValueError(f"{path}: {h} x {w} pixels, expected {size[1]} x {size[0]} as before")
            yield picture
