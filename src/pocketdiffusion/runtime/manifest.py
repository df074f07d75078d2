"""manifest.json: what a bundle is, and the refusal of one that is not whole or not ours.

target, precision           which exporter wrote it, and how finely
schedule                    the pipeline's own: sampler, steps, shift, times, guidance, interval, size; and
                            lazy, the program that each step calls, if there are several
picture, latent             (H, W) pixels; (C, h, w)
text                        tokenizer file, length, begin and end token; or parts, a list of such
components                  text_encoder, denoiser, decoder: file, inputs and outputs with shape and dtype
files                       name -> SHA-256 of every file of the bundle but the manifest
versions                    of what wrote it
runtimes                    target web: builds of onnxruntime-web that are beside it (wasm, webgpu)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

FORMAT = 1
FILE = "manifest.json"
COMPONENTS = ("text_encoder", "denoiser", "decoder")
SAMPLERS = ("euler", "heun", "renoise")


@dataclass(frozen=True)
class Manifest:
    target: str
    precision: str
    model: str
    schedule: dict[str, Any]
    picture: list[int]
    latent: list[int]
    text: dict[str, Any]
    components: dict[str, dict[str, Any]]
    files: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    runtimes: list[str] = field(default_factory=list)
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def hashes(folder: Path, leave: Iterable[str] = ()) -> dict[str, str]:
    """Name -> SHA-256 of every file below ``folder`` but the manifest and what is to be left out."""
    skip = {FILE, *leave}
    every = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    named = {p.relative_to(folder).as_posix(): p for p in every}
    return {name: sha256(p) for name, p in named.items() if name not in skip}


def read(folder: Path, targets: tuple[str, ...] = ()) -> Manifest:
    """The manifest of a whole bundle. ValueError says why a folder is refused.

    ``targets``: those that the caller can run; any without.
    """
    path = Path(folder) / FILE
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {folder} is no bundle (pocket export makes one)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable manifest ({error})") from None
    if not isinstance(data, dict) or "format" not in data:
        raise ValueError(f"{path}: not the manifest of a bundle")
    if data["format"] != FORMAT:
        raise ValueError(f"{path}: bundle format {data['format']}, expected {FORMAT}; export it again")
    known = {f.name for f in fields(Manifest)}
    if wrong := sorted(known ^ set(data)):
        what = "is missing" if wrong[0] in known else "is unknown"
        raise ValueError(f"{path}: key {wrong[0]!r} {what}; export it again")
    manifest = Manifest(**data)
    if targets and manifest.target not in targets:
        raise ValueError(
            f"{path}: a bundle for {manifest.target}; this runtime runs {' and '.join(targets)} bundles"
        )
    check(manifest, Path(folder), path)
    return manifest


def check(manifest: Manifest, folder: Path, source: Path) -> None:
    """Parts and files; every file by its hash."""
    if missing := [c for c in COMPONENTS if c not in manifest.components]:
        raise ValueError(f"{source}: no component {missing[0]!r}; this bundle holds a part of a pipeline")
    if manifest.schedule.get("sampler") not in SAMPLERS:
        raise ValueError(f"{source}: unknown sampler {manifest.schedule.get('sampler')!r}")
    if manifest.schedule.get("prediction_type") != "flow":
        raise ValueError(f"{source}: prediction_type must be 'flow'")
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: no such file; the bundle is not whole")
        if sha256(path) != digest:
            raise ValueError(f"{path}: does not match the manifest (truncated, swapped or edited)")
