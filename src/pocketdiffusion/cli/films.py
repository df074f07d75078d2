"""What a path holds: a picture, a video, or the pictures of a folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.video import Film


def films(source: Path) -> list[Film]:
    """The picture or video, or the pictures of a folder; those that cannot be read are told and left out."""
    from ..data.video import PICTURES, numbered, opened

    if not source.is_dir() or alike(numbered(source)):
        return [opened(source)]
    pictures = []
    for path in sorted(p for p in source.iterdir() if p.suffix.lower() in PICTURES and p.name[0] != "."):
        try:
            pictures.append(opened(path))
        except ValueError as error:
            print(f"left out: {error}")
    if not pictures:
        raise ValueError(f"{source}: no pictures ({' '.join(PICTURES)})")
    return pictures


def alike(files: list[Path]) -> bool:
    """Whether two or more pictures have one size, as frames do. Those that are none are told of later."""
    from PIL import Image

    sizes = set()
    for path in files:
        with suppress(Exception), Image.open(path) as image:
            sizes.add(image.size)
    return len(files) > 1 and len(sizes) <= 1
