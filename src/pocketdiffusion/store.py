"""Saved networks: one folder each, config.json and safetensors; and the one table from names to classes.

A folder follows diffusers: ``config.json`` with ``_class_name`` and the fields of the class's Config; weights
in ``diffusion_pytorch_model.safetensors`` (``model.safetensors`` for text encoders), or shards with an index.
Pickle is never read. Folders are written under a temporary name and renamed.
"""

from __future__ import annotations

import importlib
import json
import struct
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .disk import replacing, save_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# _class_name -> (module, weights file)
KINDS: dict[str, tuple[str, str]] = {
    "DiT": ("models.dit", "diffusion_pytorch_model"),
    "UNet": ("models.unet", "diffusion_pytorch_model"),
    "ElasticDiT": ("models.elastic_dit", "diffusion_pytorch_model"),
    "Supernet": ("models.supernet", "diffusion_pytorch_model"),
    "AutoencoderKL": ("autoencoders.kl", "diffusion_pytorch_model"),
    "H3AE": ("autoencoders.h3ae", "diffusion_pytorch_model"),
    "TinyDecoder": ("autoencoders.tiny", "diffusion_pytorch_model"),
    "TextTransformer": ("text.encoder", "model"),
    "SceneNet": ("eval.features", "model"),
    "CountNet": ("rewards.regressor", "model"),
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SHARD = 4 * 1024**3  # bytes


def kind(name: str) -> Any:
    """The module in which class ``name`` is defined, beside its Config and PRESETS."""
    if name not in KINDS:
        raise ValueError(f"unknown class {name!r}; known: {', '.join(sorted(KINDS))}")
    return importlib.import_module(f".{KINDS[name][0]}", __package__)


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """One safetensors file; a missing, truncated or foreign one is a ValueError that names it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, struct.error) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def read_weights(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of a component, from a single file or from shards."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        if not names:
            raise ValueError(f"{index}: no weight_map")
        return {k: v for name in names for k, v in read_tensors(folder / name).items()}
    single = folder / f"{stem}.safetensors"
    if not single.exists():
        if pickles := [p for p in sorted(folder.iterdir()) if p.suffix in PICKLES]:
            raise ValueError(
                f"{pickles[0]}: pickled weights are never read; convert them to safetensors first"
            )
        raise ValueError(f"{single}: no such file")
    return read_tensors(single)


def write_weights(tensors: dict[str, Tensor], folder: Path, stem: str, shard: int = SHARD) -> None:
    """One file, or several of at most ``shard`` bytes each with an index."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if parts[-1] and size + value.nbytes > shard:
            parts.append({})
            size = 0
        parts[-1][key] = value.detach().cpu().contiguous()
        size += value.nbytes
    if len(parts) == 1:
        save_tensors(parts[0], folder / f"{stem}.safetensors", {"format": "pt"})
        return
    where: dict[str, str] = {}
    for i, part in enumerate(parts):
        name = f"{stem}-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        save_tensors(part, folder / name, {"format": "pt"})
        where |= dict.fromkeys(part, name)
    total = sum(t.nbytes for t in tensors.values())
    write_json(
        folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where}
    )


def config_of(cls: Any, data: dict[str, Any], source: Path) -> Any:
    """A Config from JSON: lists become tuples, unknown keys are refused, keys with ``_`` are notes."""
    known = {f.name for f in fields(cls)}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if not k.startswith("_")}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{source}: unknown key {unknown[0]!r}; expected {', '.join(sorted(known))}")
    for f in fields(cls):
        default = getattr(cls, f.name, None)
        value = given.get(f.name, default)
        if default is not None and not alike(value, default):
            raise ValueError(f"{source}: {f.name} is {value!r}, expected something like {default!r}")
    try:
        return cls(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None


def alike(value: Any, default: Any) -> bool:
    """Whether both are of a kind: numbers, text or switches, alone or in a tuple."""

    def kinds(x: Any) -> set[type]:
        return {float if type(v) is int else type(v) for v in (x if isinstance(x, tuple) else (x,))}

    if () in (value, default):
        return isinstance(value, tuple) and isinstance(default, tuple)
    return kinds(value) == kinds(default)


def preset(name: str, chosen: str) -> Any:
    """The Config of a class's preset."""
    presets = kind(name).PRESETS
    if chosen not in presets:
        raise ValueError(f"{name} has no preset {chosen!r}; known: {', '.join(presets)}")
    return presets[chosen]


def save(module: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """``config.json`` and weights (as ``dtype`` if given) into ``folder``, replacing what was there."""
    name = type(module).__name__
    with replacing(Path(folder), ("config.json",)) as temporary:
        write(module, name, temporary, dtype)


def write(module: nn.Module, name: str, folder: Path, dtype: torch.dtype | None) -> None:
    state = module.state_dict()
    if dtype:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    config: Any = module.config
    write_json(folder / "config.json", {"_class_name": name, **asdict(config)})
    write_weights(state, folder, KINDS[name][1])


def load(folder: Path) -> Any:
    """The network saved in ``folder``, in fp32 on the CPU, ready for inference."""
    import torch

    folder = Path(folder)
    data = read_json(folder / "config.json")
    name = data.get("_class_name", "")
    if name not in KINDS:
        raise ValueError(
            f"{folder / 'config.json'}: unknown _class_name {name!r}; known: {', '.join(sorted(KINDS))}"
        )
    module = kind(name)
    config = config_of(module.Config, data, folder / "config.json")
    state = read_weights(folder, KINDS[name][1])
    try:
        with torch.device("meta"):
            network = getattr(module, name)(config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / 'config.json'}: no {name} can be built from it ({error})") from None
    expected = network.state_dict()
    if wrong := sorted(set(expected) ^ set(state)):
        side = "is missing" if wrong[0] in expected else "is not part of the model"
        raise ValueError(
            f"{folder}: {wrong[0]!r} {side} ({len(wrong)} such names); the weights are of another model"
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            raise ValueError(f"{folder}: {key!r} has shape {shapes}; the weights are of another model")
    network.load_state_dict({k: v.to(expected[k].dtype) for k, v in state.items()}, assign=True)
    return network.eval()
