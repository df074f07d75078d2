"""Web: a static folder that draws pictures in the visitor's browser, with onnxruntime-web.

    DIR/index.html ...        the page (page/), and its service worker
    DIR/weights/NAME.onnx.0   the ONNX graphs of target onnx, in pieces that a phone can hold and cache
    DIR/ort/                  onnxruntime-web, from its npm package: WASM, and with --webgpu its WebGPU build

Any host will do: the service worker itself adds the headers that threads need. Nothing comes from another.
"""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..runtime.manifest import Manifest, sha256
from . import onnx as graphs

PRECISIONS, PLANNED = graphs.PRECISIONS, graphs.PLANNED
SUFFIX, LIBRARY, write, opened, operators = (
    graphs.SUFFIX,
    graphs.LIBRARY,
    graphs.write,
    graphs.opened,
    graphs.operators,
)

SHARD = 8 * 2**20  # bytes
PAGE = Path(__file__).parent / "page"
UNSEALED = "sw.js"  # names the manifest's hash, so the manifest cannot name its own
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIMES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": (
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ),
}


def cache() -> Path:
    """Where the npm package is kept between exports."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "pocketdiffusion" / PACKAGE


def vendored() -> Path:
    """onnxruntime-web's dist folder, fetched with npm the first time."""
    folder = cache()
    if not folder.is_dir():
        if not shutil.which("npm"):
            raise ValueError(f"target web needs npm once, to fetch {PACKAGE}; install Node.js")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            command = ["npm", "pack", "--silent", PACKAGE]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise OSError(None, f"npm could not fetch {PACKAGE} ({reason})")
            with tarfile.open(next(Path(temporary).glob("*.tgz"))) as archive:
                archive.extractall(temporary, filter="data")
            os.replace(Path(temporary) / "package" / "dist", folder)
    return folder


def shard(path: Path, folder: Path) -> list[str]:
    """Cut a file into pieces below ``folder`` and remove it; their names."""
    folder.mkdir(exist_ok=True)
    names: list[str] = []
    with path.open("rb") as stream:
        while part := stream.read(SHARD):
            piece = folder / f"{path.name}.{len(names)}"
            piece.write_bytes(part)
            names.append(f"{folder.name}/{piece.name}")
    path.unlink()
    return names


def furnish(folder: Path, manifest: Manifest, runtimes: Sequence[str] = ("wasm",)) -> Manifest:
    """Turn a folder of ONNX graphs into a site; the manifest learns of the pieces and the runtimes."""
    for described in manifest.components.values():
        path = folder / described.pop("file")
        described["bytes"] = path.stat().st_size
        described["shards"] = shard(path, folder / "weights")
    source = vendored()
    (folder / "ort").mkdir()
    for runtime in runtimes:
        for name in RUNTIMES[runtime]:
            shutil.copy(source / name, folder / "ort" / name)
    for path in sorted(PAGE.iterdir()):
        text = path.read_text(encoding="utf-8")
        if path.name == "index.html":
            text = text.replace("@MODEL@", html.escape(manifest.model))
        (folder / path.name).write_text(text, encoding="utf-8")
    return replace(manifest, runtimes=list(runtimes))


def seal(folder: Path) -> None:
    """Tell the service worker what to keep, and under which name: another one for every other manifest."""
    path = folder / UNSEALED
    pages = sorted(p.name for p in PAGE.iterdir() if p.name != UNSEALED)
    small = ["./", *pages, "manifest.json", "tokenizer.json"]
    version = sha256(folder / "manifest.json")[:16]
    text = path.read_text(encoding="utf-8").replace("@VERSION@", version)
    path.write_text(text.replace('["@FILES@"]', json.dumps(small)), encoding="utf-8")
