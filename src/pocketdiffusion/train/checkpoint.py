"""Training checkpoints: any nested state as JSON and safetensors; whole or not there.

A checkpoint is a folder ``step-00001000`` with ``state.json`` (the nested state, tensors replaced by their
keys) and ``tensors.safetensors``. It is written under a temporary name and renamed, so a name that exists is
a whole one unless the disk itself lost bytes; sizes are recorded to notice that. Pickle is neither written
nor read. A file ``held.NAME`` in a checkpoint keeps it out of the rotation (``hold``).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "step-"
HELD = "held."


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The JSON form of ``state``; its tensors are put into ``tensors``. Dict keys may be str or int."""
    if isinstance(state, Tensor):
        key = path or "/"
        # {"a/b": x} and {"a": {"b": y}} have the same path
        key = f"{key}#{len(tensors)}" if key in tensors else key
        tensors[key] = state.detach().cpu().contiguous().clone()
        return {"$": "tensor", "key": key}
    if isinstance(state, dict):
        items = [[k, pack(v, tensors, f"{path}/{k}")] for k, v in state.items()]
        return {"$": "dict", "items": items}
    if isinstance(state, (list, tuple)):
        items = [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(state)]
        return {"$": type(state).__name__, "items": items}
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise ValueError(f"cannot save a {type(state).__name__} at {path} in a checkpoint")


def unpack(data: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(data, dict):
        return data
    if data["$"] == "tensor":
        return tensors[data["key"]]
    if data["$"] == "dict":
        return {k: unpack(v, tensors) for k, v in data["items"]}
    items = [unpack(v, tensors) for v in data["items"]]
    return tuple(items) if data["$"] == "tuple" else items


def save(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step-...``, then drop all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"{PREFIX}{step:08d}", folder / f".writing-{step:08d}-{os.getpid()}"
    # what processes that were killed while they wrote left behind
    for stale in folder.glob(".writing-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    try:
        tensors: dict[str, Tensor] = {}
        skeleton = pack(state, tensors)
        save_file(tensors, temporary / "tensors.safetensors")
        size = (temporary / "tensors.safetensors").stat().st_size
        (temporary / "state.json").write_text(json.dumps({"step": step, "bytes": size, "state": skeleton}))
        for name in ("tensors.safetensors", "state.json"):
            with open(temporary / name, "rb") as f:
                os.fsync(f.fileno())
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except SafetensorError as error:
        raise OSError(f"checkpoint {final} cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # Later ones are damaged ones that were passed over; they must not push this one out.
    for old in [p for p in found(folder) if p <= final and not any(p.glob(HELD + "*"))][:-keep]:
        shutil.rmtree(old)
    return final


def found(folder: Path) -> list[Path]:
    """All checkpoints in ``folder``, oldest first."""
    return sorted(p for p in folder.glob(PREFIX + "*") if p.is_dir())


def hold(folder: Path, step: int, who: str) -> None:
    """Keep the newest checkpoint up to ``step`` from being dropped, in place of what ``who`` held before."""
    there = [p for p in found(folder) if p.name <= f"{PREFIX}{step:08d}"]
    for old in there[:-1]:
        (old / (HELD + who)).unlink(missing_ok=True)
    if there:
        (there[-1] / (HELD + who)).touch()


def held(folder: Path, who: str) -> Path | None:
    """The checkpoint that ``who`` holds."""
    return next((p for p in found(folder) if (p / (HELD + who)).exists()), None)


def load(path: Path) -> dict[str, Any]:
    """The state in one checkpoint folder; ValueError names the file that is missing or damaged."""
    try:
        data = json.loads((path / "state.json").read_text())
        size = (path / "tensors.safetensors").stat().st_size
        if size != data["bytes"]:
            raise ValueError(f"tensors.safetensors has {size} bytes, expected {data['bytes']}")
        return unpack(data["state"], load_file(path / "tensors.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from None


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, passing over damaged ones with a notice."""
    for path in reversed(found(folder)):
        try:
            return path, load(path)
        except ValueError as error:
            print(f"passed over: {error}")
    return None


def same(a: Any, b: Any) -> bool:
    """Bit-for-bit equality of two nested states."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b
