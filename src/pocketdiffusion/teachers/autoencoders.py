"""Autoencoders of diffusers as ours: unit variance, pictures and clips, one loader.

    posterior(x) = (mean - m) / s,  logvar - 2 log s        x (B, 3, [T,] H, W) in [-1, 1]
    encode(x)    = (mean - m) / s                           (B, C, [1 + (T - 1) / time_factor,] H / f, W / f)
    decode(z)    = model.decode(z s + m)

m and s per channel are what the model's own pipelines use: scaling_factor, shift_factor, latents_mean and
latents_std, wherever its class keeps them. A video autoencoder takes a picture as a clip of one frame, a
picture autoencoder takes a clip as a batch of frames. AutoencoderDC has no posterior: its logvar is SHARP.

AutoencoderKLWan and AutoencoderKLQwenImage clamp what they decode to [-1, 1], so that a pixel outside has no
gradient. LTX-Video from 0.9.1 on denoises while it decodes: it is decoded at time 0, without added noise;
the noise that its blocks inject stays random.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..autoencoders.moments import moments
from ..disk import replacing
from .vaes import PUBLISHED

SHARP = -30.0  # log variance of a latent without spread: a standard deviation of exp(-15) = 3e-7
PICTURES = ("AutoencoderKL", "AutoencoderDC")
CLIPS = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderKLCogVideoX", "AutoencoderKLQwenImage")
# class -> the class by whose mapping diffusers reads its original layout: Qwen-Image's is that of Wan 2.1
ORIGINAL = {k: k for k in (*PICTURES, *CLIPS[:2])} | {"AutoencoderKLQwenImage": "AutoencoderKLWan"}
PREFIXES = ("first_stage_model.", "vae.")  # of the autoencoder in a checkpoint that holds more
# kept in original files for training alone, or statistics that nothing uses
UNUSED = ("loss.", "model_ema.", "per_channel_statistics.channel", "per_channel_statistics.mean-of-stds")

# what diffusers raises for a file or a config that is not what it says
FAULTS = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Config:
    name: str  # class of diffusers
    channels: int  # of the latent
    factor: int  # in space
    time_factor: int  # 1 for picture autoencoders
    period: int  # a clip has 1 + period * k frames
    foreign: dict[str, Any]  # diffusers' own config


class Foreign(nn.Module):
    """An autoencoder of diffusers as a ``types.Autoencoder``; its parameters are those of ``model``."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module):
        super().__init__()
        name = type(model).__name__
        known("class of autoencoder", name)
        self.model: Any = model
        # tiles leave seams
        for switch in ("tiling", "slicing", "framewise_encoding", "framewise_decoding"):
            setattr(model, f"use_{switch}", False)
        mean, std = statistics(model)
        ones = (1, 1) if name in PICTURES else (1, 1, 1)
        self.register_buffer("mean", mean.clone().view(-1, *ones))
        self.register_buffer("std", std.clone().view(-1, *ones))

    @property
    def config(self) -> Config:
        name = type(self.model).__name__
        factor, time_factor, channels = sizes(self.model)
        # CogVideoX decodes latent frames in pairs after the first: an even number of them gives 4 per latent
        period = 2 * time_factor if name == "AutoencoderKLCogVideoX" else time_factor
        # keys with an underscore say where the weights came from
        foreign = {k: v for k, v in self.model.config.items() if not k.startswith("_")}
        return Config(name, channels, factor, time_factor, period, foreign)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the normalised latent; ValueError if ``x`` does not divide."""
        c = self.config
        check("pixels", x, 3, c.factor, c.period)
        mean, logvar = self.fold(self.moments, x).chunk(2, dim=1)
        return mean, logvar

    def encode(self, x: Tensor) -> Tensor:
        return self.posterior(x)[0]

    def decode(self, z: Tensor, first: Tensor | None = None) -> Tensor:
        """``first`` (features of a first frame) is for our own video autoencoders and unused here."""
        c = self.config
        check("latents", z, c.channels, 1, c.period // c.time_factor)
        return self.fold(self.pixels, z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def fold(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``f`` on ``x`` with the axes that the model takes, and back."""
        pictures, batch = self.mean.ndim == 3, x.shape[0]
        if pictures and x.ndim == 5:
            return f(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, -1)).transpose(1, 2)
        if not pictures and x.ndim == 4:
            return f(x[:, :, None])[:, :, 0]
        return f(x)

    def moments(self, x: Tensor) -> Tensor:
        found = self.model.encode(x)
        if "latent" in found:
            mean = (found.latent - self.mean) / self.std
            return torch.cat([mean, torch.full_like(mean, SHARP)], dim=1)
        mean = (found.latent_dist.mean - self.mean) / self.std
        return torch.cat([mean, found.latent_dist.logvar - 2 * self.std.log()], dim=1)

    def pixels(self, z: Tensor) -> Tensor:
        z = z * self.std + self.mean
        if self.model.config.get("timestep_conditioning"):
            return self.model.decode(z, z.new_zeros(z.shape[0])).sample
        return self.model.decode(z).sample

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set m and s so that the latents of ``x`` have zero mean and unit variance per channel.

        They replace the model's own too, so that a saved model is this one; of diffusers' pipelines, those of
        SD1.5, SD3, FLUX and CogVideoX know no per-channel values. AutoencoderDC has room for one scale only:
        its latents get a mean square of 1.
        """
        mean, variance = moments(self.encode, x)
        model = self.model
        if self.config.name == "AutoencoderDC":
            self.std.mul_((variance + mean.square()).mean().sqrt().item())
            model.register_to_config(scaling_factor=1 / self.std.flatten()[0].item())
            return
        self.mean.add_(mean.view(self.mean.shape).to(self.mean) * self.std)
        self.std.mul_(variance.sqrt().view(self.std.shape).to(self.std))
        m, s = self.mean.flatten(), self.std.flatten()
        one = {"scaling_factor": 1.0, "shift_factor": None}
        model.register_to_config(**{k: v for k, v in one.items() if k in model.config})
        if self.config.name == "AutoencoderKLLTXVideo":
            model.latents_mean.copy_(m)
            model.latents_std.copy_(s)
        else:
            model.register_to_config(latents_mean=m.tolist(), latents_std=s.tolist())

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor]:
        """Pictures (B, 3, H, W), or for a video autoencoder clips (B, 3, T, H, W), in [-1, 1]."""
        c = self.config
        frames = () if c.name in PICTURES else (1 + c.period,)
        g = torch.Generator().manual_seed(0)
        x = torch.rand(batch, 3, *frames, 8 * c.factor, 8 * c.factor, generator=g, device="cpu")
        return (x.mul(2).sub(1).to(device),)


def known(what: str, name: Any) -> None:
    if name not in PICTURES + CLIPS:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(PICTURES + CLIPS)}")


def sizes(model: Any) -> tuple[int, int, int]:
    """Factor in space, factor in time, channels of the latent."""
    c = model.config
    if "temperal_downsample" in c:
        patch = c.get("patch_size") or 1
        return patch * 2 ** (len(c.dim_mult) - 1), 2 ** sum(c.temperal_downsample), c.z_dim
    if type(model).__name__ in ("AutoencoderDC", "AutoencoderKLLTXVideo"):
        return model.spatial_compression_ratio, model.temporal_compression_ratio, c.latent_channels
    return 2 ** (len(c.block_out_channels) - 1), c.get("temporal_compression_ratio", 1), c.latent_channels


def statistics(model: Any) -> tuple[Tensor, Tensor]:
    """m and s (C,) of the latents, as the model's own pipelines count them."""
    c, channels = model.config, sizes(model)[2]
    scale = c.get("scaling_factor") or 1.0
    if type(model).__name__ == "AutoencoderKLLTXVideo":
        return model.latents_mean, model.latents_std / scale
    mean, std = c.get("latents_mean"), c.get("latents_std")
    if mean is None or std is None:
        mean, std = [c.get("shift_factor") or 0.0] * channels, [1.0] * channels
    device = next(model.parameters()).device
    return torch.tensor(mean, device=device), torch.tensor([s / scale for s in std], device=device)


def check(what: str, x: Tensor, channels: int, factor: int, period: int) -> None:
    """The border: ValueError if ``x`` is not (B, channels, [1 + period k,] factor i, factor j)."""
    shape = tuple(x.shape)
    if x.ndim not in (4, 5) or shape[1] != channels:
        raise ValueError(
            f"{what} of shape {shape}: expected (B, {channels}, H, W) or (B, {channels}, T, H, W)"
        )
    if any(side % factor for side in shape[-2:]):
        raise ValueError(f"{what} of {shape[-2]} x {shape[-1]}: expected multiples of {factor}")
    if x.ndim == 5 and (shape[2] - 1) % period:
        raise ValueError(f"{what} of {shape[2]} frames: expected 1 + {period} k")


def published(name: str) -> Foreign:
    """The autoencoder published as ``name``, with random weights, on the active device."""
    return Foreign(_built(name)).eval()


def load(
    source: str | Path,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
    config: str | None = None,
) -> Foreign:
    """A saved autoencoder, ready for inference, on the CPU.

    ``source``: a folder in diffusers' layout (the autoencoder's, or a pipeline's with vae/), a hub id, or one
    safetensors file in diffusers' or the original layout, alone or within a checkpoint. Such a file does not
    say how its latents are scaled: ``config`` is its name in PUBLISHED. Pickle is never read.
    """
    path = Path(source)
    if path.is_file():
        model = _single(path, config)
    elif path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        model = _folder(str(source), subfolder)
    else:
        raise ValueError(f"{source}: no such file or folder, and not a hub id such as stabilityai/sdxl-vae")
    return Foreign(model).to(dtype).eval()


def save(autoencoder: Foreign, folder: Path | str) -> None:
    """``config.json`` and safetensors as diffusers writes and reads them, in place of what was there."""
    from safetensors import SafetensorError

    with replacing(Path(folder), ("config.json",)) as temporary:
        try:
            autoencoder.model.save_pretrained(temporary)
        except SafetensorError as error:  # diffusers' name for a full disk
            raise OSError(None, f"cannot be written ({error})", str(folder)) from None


def _built(name: str) -> Any:
    import diffusers

    if name not in PUBLISHED:
        raise ValueError(f"unknown autoencoder {name!r}; known: {', '.join(PUBLISHED)}")
    kind, config = PUBLISHED[name]
    return getattr(diffusers, kind)(**config)


def _folder(source: str, subfolder: str | None) -> Any:
    """A model in diffusers' layout, local or on the hub."""
    import diffusers
    from safetensors import SafetensorError

    found = ""
    for place in ("", "vae") if subfolder is None else (subfolder,):
        try:
            config = diffusers.AutoencoderKL.load_config(source, subfolder=place or None)
            break
        except (OSError, ValueError) as error:  # OSError is diffusers' word for all that the hub may answer
            found = found or line(error)
    else:
        raise ValueError(f"{source}: no config.json of an autoencoder, neither there nor in vae/ ({found})")
    kind: Any = config.get("_class_name") if isinstance(config, dict) else None
    known(f"_class_name in {source}:", kind)
    here = Path(source, place)
    if here.is_dir() and not list(here.glob("*.safetensors")):
        raise ValueError(f"{here}: no safetensors; pickled weights are never read, convert them first")
    try:
        model, info = getattr(diffusers, kind).from_pretrained(
            source, subfolder=place or None, use_safetensors=True, output_loading_info=True
        )
    except (*FAULTS, SafetensorError) as error:
        raise ValueError(f"{here}: no whole {kind} ({line(error)})") from None
    same(here, info["missing_keys"], info["unexpected_keys"])
    return model


def line(error: Exception) -> str:
    """What ``error`` says first."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def same(source: Any, missing: Iterable[str], spare: Iterable[str]) -> None:
    """The names of a checkpoint are those of its model, or ValueError."""
    for names, fault in ((sorted(missing), "is missing"), (sorted(spare), "is not part of the model")):
        if names:
            raise ValueError(f"{source}: {names[0]!r} {fault} ({len(names)} such names)")


def _single(path: Path, config: str | None) -> Any:
    """A model from one safetensors file, its weights still as they are stored."""
    from safetensors import SafetensorError, safe_open

    if config is None:
        raise ValueError(f"{path}: a single file needs config=, one of {', '.join(PUBLISHED)}")
    try:
        with safe_open(path, "pt") as f:
            names = list(f.keys())
            prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in names)), "")
            names = [k for k in names if k.startswith(prefix)]
            tensors = {k.removeprefix(prefix): f.get_tensor(k) for k in names}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    with torch.device("meta"):
        model = _built(config)
    model.load_state_dict(mapped(model, tensors, f"{path} as {config}"), assign=True)
    return model


def mapped(model: Any, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """``tensors`` of a single file under the names of ``model``; ValueError unless it is exactly they."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    kind, expected = type(model).__name__, model.state_dict()
    state = {k: v for k, v in tensors.items() if not k.startswith(UNUSED)}
    count = sum(v.numel() for v in state.values())
    if not set(expected) <= set(state):
        if kind not in ORIGINAL or model.config.get("is_residual"):
            raise ValueError(f"{source}: the original layout of this {kind} is not read, only diffusers' own")
        table: Any = SINGLE_FILE_LOADABLE_CLASSES
        convert = table[ORIGINAL[kind]]["checkpoint_mapping_fn"]
        # that of LTX-Video looks for its names by their prefix
        prefix = "vae." if kind == "AutoencoderKLLTXVideo" else ""
        try:
            state = convert(checkpoint={prefix + k: v for k, v in state.items()}, config=model.config)
        except FAULTS as error:
            raise ValueError(f"{source}: in neither layout of {kind} ({line(error)})") from None
    same(source, set(expected) - set(state), set(state) - set(expected))
    for key, value in state.items():
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            raise ValueError(f"{source}: {key!r} has shape {shapes}")
    # the mapping of AutoencoderKL drops what it does not know
    if spare := count - sum(v.numel() for v in expected.values()):
        raise ValueError(f"{source}: holds {spare} values more than the model")
    return state
