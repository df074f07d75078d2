"""The latents of one picture or video in a file, with whose they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk import renamed, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


def write(path: Path, z: Tensor, autoencoder: Any, model: str, about: dict[str, Any]) -> None:
    """z (C, T', h, w) at unit variance; ``model``: what the user calls the autoencoder."""
    from ..data.latents import weights_hash

    told = {"autoencoder": weights_hash(autoencoder), "model": model, "about": json.dumps(about)}
    with renamed(path) as temporary:
        save_tensors({"z": z.contiguous()}, temporary, told)


def read(path: Path, autoencoder: Any, model: str) -> tuple[Tensor, dict[str, Any]]:
    """z and ``about``; ValueError if another autoencoder made them, or ``write`` did not write the file."""
    from safetensors import SafetensorError, safe_open

    from ..data.latents import weights_hash

    if not path.exists():
        raise ValueError(f"{path}: no such file, expected latents")
    try:
        with safe_open(path, "pt") as file:
            told, names = file.metadata() or {}, list(file.keys())
            if names != ["z"] or not {"autoencoder", "about"} <= set(told):
                raise ValueError(f"{path}: no latents, expected what pocket reconstruct --latents writes")
            z = file.get_tensor("z")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    if told["autoencoder"] != (ours := weights_hash(autoencoder)):
        theirs = f"{told['autoencoder'][:8]} (--model {told.get('model')})"
        raise ValueError(f"{path}: latents of autoencoder {theirs}, --model {model} is {ours[:8]}")
    return z, json.loads(told["about"])
