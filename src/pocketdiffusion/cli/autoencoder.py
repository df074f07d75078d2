"""Which autoencoder a flag means: a shipped name, a folder of ours, or a diffusers one.

    autoencoder_of("scenes")              what is shipped under that name: a pipeline's, or one by itself
    autoencoder_of("my_pipeline/")        a pipeline's folder, ours or of diffusers: its vae/
    autoencoder_of("my_autoencoder/")     config.json and weights, of ours (store.KINDS) or of diffusers

All have encode, decode, posterior, and a config with ``channels`` and ``factor``, for video ``time_factor``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def autoencoder_of(model: str | Path, clips: bool | None = None) -> Any:
    """The network in fp32 on the CPU, ready for inference; ValueError for anything that is none.

    ``clips``: whether it must be one of clips, as a recipe's --clips says.
    """
    network = network_of(model)
    if missing := [name for name in ("encode", "decode") if not hasattr(network, name)]:
        raise ValueError(f"{model}: a {type(network).__name__} has no {missing[0]}, expected an autoencoder")
    moves = getattr(network.config, "time_factor", 1) > 1
    if clips is not None and clips != moves:
        kind, advice = ("clips", "give") if moves else ("pictures", "leave out")
        raise ValueError(f"{model}: an autoencoder of {kind}; {advice} --clips")
    return network


def grafted(network: Any, decoder: Path) -> Any:
    """``network`` with a saved decoder of its latents in place of its own; ValueError if it does not fit."""
    from .. import store
    from ..autoencoders.tiny import Grafted
    from ..pipeline import fitting

    part = store.load(decoder)
    fitting(decoder, part, network)
    return Grafted(network, part).eval()


def network_of(model: str | Path) -> Any:
    """The same, of a decoder by itself too."""
    from .. import store
    from ..pipeline import find

    folder = find(model)
    if (folder / "model_index.json").exists():
        folder = folder / "vae"
    told = store.read_json(folder / "config.json")
    # diffusers has an AutoencoderKL too; every config that it writes carries its version
    if told.get("_class_name") in store.KINDS and "_diffusers_version" not in told:
        return store.load(folder)
    from ..teachers.autoencoders import load

    return load(folder).eval()
