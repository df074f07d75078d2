"""The latents of one picture or video in a file, with whose they are.

Whose: ``pipeline.latents_hash``, which another decoder or storing as fp16 does not change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk import renamed, save_tensors

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
# in ``about``, beside ``still``
NUMBERS: dict[str, tuple[type, ...]] = {"fps": (int, float), "height": (int,), "width": (int,)}


def maker(autoencoder: Any) -> str:
    """The hash of what makes the latents, whatever decoder was put beside it."""
    from ..autoencoders.tiny import Grafted
    from ..pipeline import latents_hash

    return latents_hash(autoencoder.autoencoder if isinstance(autoencoder, Grafted) else autoencoder)


def write(path: Path, z: Tensor, autoencoder: Any, model: str, about: dict[str, Any]) -> None:
    """z (C, T', h, w) at unit variance; ``model``: what the user calls the autoencoder."""
    told = {"autoencoder": maker(autoencoder), "model": model, "about": json.dumps(about)}
    with renamed(path) as temporary:
        save_tensors({"z": z.contiguous()}, temporary, told)


def read(path: Path, autoencoder: Any, model: str) -> tuple[Tensor, dict[str, Any]]:
    """z and ``about``; ValueError if another autoencoder made them, or ``write`` did not write the file."""
    from safetensors import SafetensorError, safe_open

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
    about = described(path, told["about"])
    if told["autoencoder"] != (ours := maker(autoencoder)):
        theirs = f"{told['autoencoder'][:8]} (--model {told.get('model')})"
        raise ValueError(f"{path}: latents of autoencoder {theirs}, --model {model} is {ours[:8]}")
    channels = autoencoder.config.channels
    if z.ndim != 4 or z.shape[0] != channels or not z.numel() or not z.is_floating_point():
        raise ValueError(f"{path}: z is {z.dtype} {tuple(z.shape)}, expected floats ({channels}, T, h, w)")
    if about["still"] and z.shape[1] > 1:
        raise ValueError(f"{path}: z has {z.shape[1]} frames, expected 1 of a picture")
    f = autoencoder.config.factor
    if z.shape[2:] != (-(-about["height"] // f), -(-about["width"] // f)):
        sides = f"{about['height']} x {about['width']} pixels, {f} per position"
        raise ValueError(f"{path}: z is {tuple(z.shape)}, which does not fit {sides}")
    return z.float(), about


def described(path: Path, text: str) -> dict[str, Any]:
    """``about`` with all its keys."""
    try:
        about = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: about is not valid JSON ({error})") from None
    given: dict[str, Any] = about if isinstance(about, dict) else {}
    if not isinstance(given.get("still"), bool):
        raise ValueError(f"{path}: still in about is {given.get('still')!r}, expected true or false")
    for key, kinds in NUMBERS.items():
        found: Any = given.get(key)
        # a switch is a number to Python
        number = isinstance(found, kinds) and not isinstance(found, bool)
        if not (number and found > 0):
            raise ValueError(f"{path}: {key} in about is {found!r}, expected a positive number")
    return given
