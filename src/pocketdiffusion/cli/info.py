"""pocket info: what is in a saved pipeline or network.

    pocket info                  # what is shipped, classes and presets
    pocket info scenes
    pocket info my_pipeline/     # of diffusers too: what its files say, without loading them
    pocket info DiT:pixart_xl    # a preset, built on the meta device

Multiply-accumulates are per sample of the module's own example().
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Args:
    model: Annotated[str | None, tyro.conf.Positional] = None
    """A shipped name, a folder, or CLASS:PRESET."""


def overview() -> None:
    from ..pipeline import shipped
    from ..store import KINDS, kind

    print("shipped:", ", ".join(sorted(shipped())) or "(nothing)")
    print("classes and presets:")
    for name in KINDS:
        print(f"  {name}: {', '.join(kind(name).PRESETS)}")


def row(name: str, network: Any) -> dict[str, Any]:
    from ..bench.cost import cost
    from ..bench.table import short

    found = cost(network, network.example())
    batch = 2  # of example()
    return {
        "part": name,
        "class": type(network).__name__,
        "parameters": short(found.parameters),
        "bytes": short(found.bytes, "B"),
        "MACs per call": short(found.macs / batch),
    }


def preset(model: str) -> None:
    import torch

    from ..bench.table import text
    from ..store import kind

    name, _, chosen = model.partition(":")
    module = kind(name)
    if chosen not in module.PRESETS:
        raise ValueError(f"{name} has no preset {chosen!r}; known: {', '.join(module.PRESETS)}")
    with torch.device("meta"):
        network = getattr(module, name)(module.PRESETS[chosen])
        network.example = lambda f=network.example: f(device="meta")
        print(text([row(chosen, network)]))
    print(network.config)


def foreign(folder: Path) -> None:
    """A pipeline of diffusers: sizes by the headers of its files, the rest by its configs."""
    from ..bench.table import short, text
    from ..store import read_json
    from ..teachers import pipeline

    print(folder, read_json(folder / pipeline.INDEX).get("_class_name"))
    rows = pipeline.rows(folder)
    sizes = {"parameters": short, "bytes": lambda number: short(number, "B")}
    print(text([{k: sizes[k](v) if k in sizes else v for k, v in row.items()} for row in rows]))
    try:
        told = pipeline.expected(folder)
    except ValueError as error:
        print(f"cannot be loaded: {error}")
        return
    side, shape = told["size"], " x ".join(str(n) for n in told["latents"])
    print(f"latents: {shape} for {side} x {side} pixels, {told['factor']} to a side")
    print("text:", ", ".join(f"{name} {length} tokens" for name, length in told["text"].items()))
    schedule = ", ".join(f"{k} {told[k]:.4g}" for k in ("steps", "guidance", "shift"))
    print(f"schedule: {told['path']}, {schedule}")


def main(args: Args) -> None:
    if args.model is None:
        return overview()
    if ":" in args.model and not Path(args.model).exists():
        return preset(args.model)
    from .. import store
    from ..bench.table import text
    from ..data.latents import weights_hash
    from ..pipeline import Pipeline, find
    from ..teachers.pipeline import is_foreign

    folder = find(args.model)
    if is_foreign(folder):
        return foreign(folder)
    if (folder / "config.json").exists() and not (folder / "model_index.json").exists():
        network = store.load(folder)
        print(text([row(folder.name, network)]))
        print(network.config)
        return
    pipe = Pipeline.from_pretrained(folder)
    print(folder)
    print(text([row(name, network) for name, network in pipe.components.items()]))
    print("schedule:", ", ".join(f"{k} {v}" for k, v in asdict(pipe.schedule).items()))
    print("autoencoder hash:", weights_hash(pipe.vae))
