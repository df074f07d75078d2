"""Files of foreign denoisers: what a folder or a file holds, under diffusers' names.

A folder is a component's (config.json, diffusion_pytorch_model*.safetensors, shards with their index) or a
pipeline's, with the component in transformer/ or unet/, beside it scheduler/ and vae/. A single file has the
names of diffusers or of the original release, alone or within a checkpoint. Pickle is never read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoders import FAULTS, line, same
from .families import FAMILIES

STEM = "diffusion_pytorch_model"
PLACES = ("transformer", "unet")
PREFIX = "model.diffusion_model."  # of the denoiser in a checkpoint that holds more
# in the original files, of no use to the network: Sana's table of positions and its empty caption
UNUSED = {"SanaTransformer2DModel": ("pos_embed", "y_embedder.y_embedding")}


def is_hub_id(source: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def snapshot(source: str, *patterns: str) -> Path:
    """The folder of the hub's ``source`` in the local cache, with the files that ``patterns`` name."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=list(patterns)))
    except FAULTS as error:
        raise ValueError(f"{source}: no such folder here, nor from the hub ({line(error)})") from None


def fetched(source: str, subfolder: str | None) -> Path:
    """That of ``source`` with its configs, and the weights of the denoiser."""
    root = snapshot(source, "*.json", "*/*.json")
    within = component(root, subfolder).relative_to(root) / STEM
    whole, shards = f"{within}.safetensors", f"{within}-?????-of-?????.safetensors"
    return snapshot(source, whole, shards, f"vae/{STEM}.safetensors")


def component(root: Path, subfolder: str | None) -> Path:
    """The folder within ``root`` whose config.json describes the denoiser."""
    if subfolder is None and (root / "transformer_2").is_dir():
        raise ValueError(f"{root}: holds two denoisers, transformer and transformer_2; name one as subfolder")
    places = ("", *PLACES) if subfolder is None else (subfolder,)
    for place in places:
        if (root / place / "config.json").is_file():
            return root / place
    raise ValueError(f"{root / places[0] / 'config.json'}: no such file, nor in transformer/ or unet/")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({line(error)})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object, not {type(found).__name__}")
    return found


def files(here: Path) -> list[Path]:
    """The safetensors files of the component in ``here``, all of them there."""
    if (whole := here / f"{STEM}.safetensors").is_file():
        return [whole]
    # the plain index has the shortest name; those of variants such as fp16 are longer
    for index in sorted(here.glob("*.safetensors.index*.json"), key=lambda p: len(p.name))[:1]:
        shards = [here / str(name) for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
        for shard in shards:
            if not shard.is_file():
                raise ValueError(f"{shard}: no such file, but {index.name} names it")
        return shards
    found = sorted(here.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"{here}: {found[0].name} and {found[1].name}, but no index that names both")
    pickled = next((p.name for ext in ("bin", "pt", "pth", "ckpt") for p in here.glob(f"*.{ext}")), None)
    more = f"; {pickled} is a pickle, which is never read: convert it to safetensors first" if pickled else ""
    raise ValueError(f"{whole}: no such file{more}")


def read(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files; of a checkpoint that holds more, only the denoiser's."""
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as f:
                tensors |= {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    inner = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    return inner or tensors


def built(kind: str, config: Mapping[str, Any], source: str) -> Any:
    """A model of diffusers without weights: parameters on the meta device, buffers as they should be."""
    import diffusers
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            return getattr(diffusers, kind).from_config(dict(config))
    except FAULTS as error:
        raise ValueError(f"{source}: no config of a {kind} ({line(error)})") from None


def mapped(model: Any, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """``tensors`` in diffusers' layout or the original one, under the names of ``model``: exactly its own."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    table: Any = SINGLE_FILE_LOADABLE_CLASSES
    kind, expected, state = type(model).__name__, model.state_dict(), dict(tensors)
    count = sum(v.numel() for v in state.values())
    if not set(expected) <= set(state):
        foreign = len(set(expected) & set(state)) * 2 < len(expected)
        if kind in table:
            try:
                convert = table[kind]["checkpoint_mapping_fn"]
                state = convert(checkpoint={PREFIX + k: v for k, v in state.items()}, config=model.config)
                count -= sum(tensors[k].numel() for k in UNUSED.get(kind, ()))
            except FAULTS as error:
                if foreign:
                    raise ValueError(f"{source}: in neither layout of {kind} ({line(error)})") from None
        elif foreign:
            names = ", ".join(k for k in FAMILIES if k in table)
            raise ValueError(
                f"{source}: only {names} are read in the original layout, {kind} in diffusers' alone"
            )
    same(source, set(expected) - set(state), set(state) - set(expected))
    for key, value in state.items():
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            raise ValueError(f"{source}: {key!r} has shape {shapes}")
    # some mappings drop what they do not know
    if spare := count - sum(v.numel() for v in expected.values()):
        raise ValueError(f"{source}: holds {spare} values more than the model")
    return state


def fill(model: Any, state: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """``model`` with the weights ``state`` in ``dtype``; what its class keeps in float32 stays so."""
    kept = set(model._keep_in_fp32_modules or ())

    def cast(name: str, value: Tensor) -> Tensor:
        return value.to(torch.float32 if kept & set(name.split(".")) else dtype)

    model.load_state_dict({k: cast(k, v) for k, v in state.items()}, assign=True)
    return model
