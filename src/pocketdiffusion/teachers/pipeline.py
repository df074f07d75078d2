"""Pipelines of diffusers in a folder: their parts as ours, and how they are sampled.

    load(FOLDER) -> Parts(transformer, text_encoder, vae, schedule)      or a hub id
    rows(FOLDER)                    what is in it, read off the headers of its files, for any pipeline

``schedule`` holds fields of pipeline.Schedule: steps and guidance are the defaults of the pipeline's class,
size that of the denoiser's config. Its shift is the scheduler's; of a variance-preserving model it is the
one that puts the middle step where the model's own levels have it (chosen).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from . import autoencoders, diffusers, encoders
from .autoencoders import line
from .checkpoints import component, is_hub_id, read_json, snapshot
from .convert import Flow, Process, process
from .families import known

INDEX = "model_index.json"
# denoisers that were taught guidance: they are told its scale and need no second call
GUIDED = ("FluxPipeline",)
# what is fetched from the hub of a part
KINDS = ("json", "txt", "model", "safetensors")
STUDENT = "SnapGenPipeline"  # a denoiser of ours beside foreign text encoders and autoencoder


@dataclass(frozen=True)
class Parts:
    kind: str  # class of diffusers, or STUDENT
    transformer: Any  # diffusers.Foreign, or of a STUDENT ours
    text_encoder: encoders.ForeignText
    vae: autoencoders.Foreign
    schedule: dict[str, Any]


def is_foreign(folder: Path | str) -> bool:
    """Whether ``folder`` holds a pipeline of diffusers, or one of whose parts most are foreign."""
    path = Path(folder) / INDEX
    told = read_json(path) if path.is_file() else {}
    return "_diffusers_version" in told or told.get("_class_name") == STUDENT


def kind_of(folder: Path) -> str:
    """The class of a pipeline that can be loaded."""
    kind = read_json(folder / INDEX).get("_class_name")
    if kind not in encoders.PIPELINES:
        raise ValueError(f"{folder}: a {kind}; known pipelines: {', '.join(encoders.PIPELINES)}")
    return kind


def local(source: Path | str) -> Path:
    """The folder of a pipeline, or of a text encoder: ``source`` itself, or a hub id's in the local cache."""
    folder = Path(source)
    if folder.exists() or not is_hub_id(str(source)):
        return folder
    root, places = snapshot(str(source), "*.json"), [""]
    if (root / INDEX).is_file():
        told = read_json(root / INDEX)
        places = [f"{k}/" for k, v in told.items() if isinstance(v, list) and v[0] is not None]
    return snapshot(str(source), "*.json", *(f"{place}*.{kind}" for place in places for kind in KINDS))


def load(
    source: Path | str,
    dtype: torch.dtype = torch.float32,
    offload: torch.device | str | None = None,
) -> Parts:
    """The whole pipeline on the CPU, frozen. ValueError in one line for what is missing or does not fit.

    ``source``: a folder or a hub id. ``dtype``: of denoiser and text encoders; the autoencoder is in fp32.
    ``offload``: the device where those two compute, while their weights rest in memory.
    """
    folder = local(source)
    kind = kind_of(folder)
    denoiser = diffusers.load(folder, dtype=dtype, device=offload or "cpu", offload=offload is not None)
    if not denoiser.family.text:
        raise ValueError(f"{folder}: a {type(denoiser.model).__name__} reads no text")
    width, pooled = denoiser.config[denoiser.family.text], denoiser.family.pooled(denoiser.model.config)
    vae = autoencoders.load(folder, "vae")
    try:
        denoiser.expects(vae)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    text = encoders.load(folder, dtype=dtype, width=width, offload=offload)
    told = text.config
    for what, found, wanted in (("tokens", told.dim, width), ("pooled vectors", told.pooled, pooled)):
        if wanted and found != wanted:
            raise ValueError(f"{folder}: the text encoders give {what} of width {found}, expected {wanted}")
    return Parts(kind, denoiser, text, vae, schedule(kind, denoiser.config, denoiser.path, vae.config.factor))


def schedule(kind: str, config: Mapping[str, Any], path: Process, factor: int) -> dict[str, Any]:
    """Fields of pipeline.Schedule, from configs alone."""
    import diffusers as library

    defaults = signature(getattr(library, kind).__call__).parameters
    # their pipelines fall back to 128 where the denoiser names no size
    side = config.get("sample_size") or 128
    guidance = 1.0 if kind in GUIDED else defaults["guidance_scale"].default
    if guidance is None:  # Qwen-Image keeps that name for models that were taught guidance
        guidance = defaults["true_cfg_scale"].default
    found = {"steps": defaults["num_inference_steps"].default, "guidance": float(guidance)}
    return found | {"shift": shift(path, side), "size": int(side) * factor}


def shift(path: Process, side: int) -> float:
    """Of t in t' = shift t / (1 + (shift - 1) t), for latents of ``side`` pixels."""
    if not isinstance(path, Flow):
        middle = float(path.levels[len(path.levels) // 2])
        return middle / (1 - middle)
    if path.shift is not None:
        return float(path.shift)
    # FLUX and Qwen-Image: its logarithm is linear in the number of tokens, which are 2 x 2 pixels
    told = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    told |= {k: v for k, v in path.config.items() if k in told}
    low, high = told["base_image_seq_len"], told["max_image_seq_len"]
    slope = (told["max_shift"] - told["base_shift"]) / (high - low)
    return math.exp(told["base_shift"] + slope * ((side // 2) ** 2 - low))


def rows(folder: Path | str) -> list[dict[str, Any]]:
    """Part, class, parameters and bytes of everything in the folder that has weights; nothing is loaded."""
    folder, found = Path(folder), []
    for name, told in read_json(folder / INDEX).items():
        # of a text encoder alone, weights and tokenizer lie in one folder
        if name.startswith(("_", "tokenizer")) or not isinstance(told, list) or told[0] is None:
            continue
        here = folder / name
        if not here.is_dir():
            raise ValueError(f"{here}: no such folder, but {INDEX} names it")
        if (here / "config.json").is_file():
            files = weights(here)
            count = sum(math.prod(value["shape"]) for path in files for value in header(path).values())
            size = sum(path.stat().st_size for path in files)
            found.append({"part": name, "class": told[1], "parameters": count, "bytes": size})
    if not found:
        raise ValueError(f"{folder / INDEX}: names no part with weights")
    return found


def weights(here: Path) -> list[Path]:
    """The safetensors files of a part: one, or those that its index names, without other variants."""
    every = sorted(here.glob("*.safetensors"))
    if not every:
        raise ValueError(f"{here}: no safetensors; pickled weights are never read, convert them first")
    indices = sorted(here.glob("*.safetensors.index*.json"), key=lambda p: len(p.name))
    if indices:
        return [here / name for name in sorted(set(read_json(indices[0]).get("weight_map", {}).values()))]
    # the plain file has the shortest name; those of variants such as fp16 are longer
    return [min(every, key=lambda p: len(p.name))]


def header(path: Path) -> dict[str, Any]:
    """Name -> dtype and shape of every tensor in a safetensors file."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("a truncated header")
            told = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({line(error)})") from None
    return {name: value for name, value in told.items() if name != "__metadata__"}


def expected(folder: Path | str) -> dict[str, Any]:
    """What a known pipeline wants, from its configs alone: latents, pixels, text, schedule."""
    folder = Path(folder)
    kind = kind_of(folder)
    factor, channels = sizes(folder / "vae")
    told, levels = read_json(folder / "scheduler" / diffusers.SCHEDULER), "flow matching"
    if kind == STUDENT:
        wanted = {k: v for k, v in told.items() if not k.startswith("_")}
    else:
        here = component(folder, None)
        config = read_json(here / "config.json")
        known(f"_class_name in {here}:", config.get("_class_name"))
        path = process(told, str(folder / "scheduler"))
        wanted = schedule(kind, config, path, factor)
        if not isinstance(path, Flow):
            levels = f"{path.prediction}, variance preserving"
    side = wanted["size"] // factor
    rule = encoders.RULES[encoders.PIPELINES[kind]]
    text = {name: part.reading.length for name, part in rule.parts.items()}
    return {"latents": (channels, side, side), "factor": factor, "text": text, "path": levels, **wanted}


def sizes(folder: Path) -> tuple[int, int]:
    """Factor in space and channels of the autoencoder in ``folder``."""
    import diffusers as library

    config = read_json(folder / "config.json")
    autoencoders.known(f"_class_name in {folder}:", config.get("_class_name"))
    with torch.device("meta"):
        model = getattr(library, config["_class_name"]).from_config(config)
    factor, _, channels = autoencoders.sizes(model)
    return factor, channels
