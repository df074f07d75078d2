"""Pictures into video files and folders of frames, as they come.

    record(pictures, "cat.mp4", fps=24)        pictures: 8 bits (H, W, 3), any iterable

mp4, mov, mkv   H.264, 4:2:0, BT.709; half the colour, so an odd side gets a copy of its last row or column
webm            VP9, the same
gif             up to 255 colours for the whole of it, looping; held in memory until they are chosen
png             animated, looping, without loss
no suffix       a folder of frame-00000.png that carry the rate as text

A file is there whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from ..disk import renamed, replacing
from .video import BT709

# of H.264: 0 is without loss, at 17 the eye sees no difference, 23 takes about half the bytes
CRF = 17
FRAME = "frame-{:05d}.png"


@dataclass(frozen=True)
class Kind:
    """What a suffix stands for: container, codec and layout of pixels; options of codec and container."""

    container: str
    codec: str
    pixels: str
    options: dict[str, str] = field(default_factory=dict)
    muxer: dict[str, str] = field(default_factory=dict)


# a browser can show it before it has all of it
FAST = {"movflags": "+faststart"}
KINDS = {
    ".mp4": Kind("mp4", "libx264", "yuv420p", {}, FAST),
    ".mov": Kind("mov", "libx264", "yuv420p", {}, FAST),
    ".mkv": Kind("matroska", "libx264", "yuv420p"),
    ".webm": Kind("webm", "libvpx-vp9", "yuv420p", {"b": "0", "cpu-used": "4"}),
    ".gif": Kind("gif", "gif", "pal8", {}, {"loop": "0"}),
    ".png": Kind("apng", "apng", "rgb24", {}, {"plays": "0"}),
}


def check(path: Path, fps: float) -> None:
    """What can be refused before there are any frames."""
    suffix = path.suffix.lower()
    if suffix and suffix not in KINDS:
        raise ValueError(f"{path}: expected a name with {' '.join(KINDS)}, or a folder without a suffix")
    if not (isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: expected frames per second above 0, got {fps:g}")
    if suffix == ".gif" and fps > 50:
        raise ValueError(f"{path}: a gif shows at most 50 frames per second, got {fps:g}")


def record(frames: Iterable[np.ndarray], path: Path, fps: float, crf: int = CRF) -> None:
    """Write 8-bit pictures (H, W, 3) of one size to ``path``, by its suffix."""
    check(path, fps)
    parts = iter(frames)
    first = next(parts, None)
    if first is None:
        raise ValueError(f"{path}: no frames to write")
    parts = chain([first], parts)
    if not path.suffix:
        return _folder(parts, path, fps)
    import av

    with renamed(path) as temporary:
        try:
            _encode(parts, temporary, KINDS[path.suffix.lower()], Fraction(fps).limit_denominator(1001), crf)
        except av.FFmpegError as error:
            # the file's name is a temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None


def _folder(frames: Iterator[np.ndarray], path: Path, fps: float) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("fps", f"{fps:.6f}")
    with replacing(path, (FRAME.format(0),)) as temporary:
        for i, x in enumerate(frames):
            Image.fromarray(x).save(temporary / FRAME.format(i), pnginfo=told)


def _encode(frames: Iterator[np.ndarray], path: Path, kind: Kind, rate: Fraction, crf: int) -> None:
    import av

    gif = kind.pixels == "pal8"
    shown = _indexed(frames) if gif else (_converted(x, kind.pixels) for x in frames)
    first = next(shown)
    options = {**kind.options, **({"crf": str(crf)} if kind.pixels == "yuv420p" else {})}
    with av.open(str(path), "w", format=kind.container, options=kind.muxer) as container:
        stream: Any = container.add_stream(kind.codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = first.width, first.height, kind.pixels
        if kind.pixels == "yuv420p":
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = 1  # 16 to 235
        for i, frame in enumerate(chain([first], shown)):
            # a gif counts hundredths of a second: each frame as long as keeps step with the rate
            unit = Fraction(1, 100) if gif else 1 / rate
            frame.time_base, frame.pts = unit, round(i / rate / unit)
            frame.duration = round((i + 1) / rate / unit) - frame.pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _converted(x: np.ndarray, pixels: str) -> Any:
    import av

    if pixels != "yuv420p":
        return av.VideoFrame.from_ndarray(x, pixels)
    even = np.pad(x, [(0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)], mode="edge")
    frame = av.VideoFrame.from_ndarray(even, "rgb24")
    return frame.reformat(format=pixels, dst_colorspace=BT709, dst_color_range=1)


def _indexed(frames: Iterator[np.ndarray]) -> Iterator[Any]:
    """Frames on one palette, made from all of them, with an ordered dither that stands still."""
    import av

    graph, first = av.filter.Graph(), next(frames)
    source = graph.add_buffer(
        width=first.shape[1], height=first.shape[0], format=av.VideoFormat("rgb24"), time_base=Fraction(1)
    )
    both, palette = graph.add("split"), graph.add("palettegen")
    use, sink = graph.add("paletteuse", "dither=bayer:bayer_scale=5"), graph.add("buffersink")
    both.link_to(palette, 0, 0)
    both.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    source.link_to(both)
    use.link_to(sink)
    graph.configure()
    count = 0
    for count, x in enumerate(chain([first], frames), 1):
        frame = av.VideoFrame.from_ndarray(x, "rgb24")
        frame.time_base, frame.pts = Fraction(1), count
        source.push(frame)
    source.push(None)
    for _ in range(count):
        yield sink.pull()
