"""Files and folders that are written whole or not at all: a temporary name first, then a rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary file that gets the name ``path`` when the block succeeds; a disk's errors name ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path, ours: tuple[str, ...]) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block succeeds; else nothing changes.

    A folder that is there is replaced only if it is empty or holds one of the files ``ours``.
    """
    if folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise ValueError(f"{folder}: holds other files; name a new folder")
    temporary = folder.parent / f".{folder.name}.writing-{os.getpid()}"
    old = folder.parent / f".{folder.name}.old-{os.getpid()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file. The library's own error for a full disk is no OSError; here it becomes one."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        raise OSError(None, f"cannot be written ({error})", str(path)) from None
