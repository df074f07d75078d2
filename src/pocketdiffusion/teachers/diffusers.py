"""Denoisers of diffusers as ours: x, t, cond -> v, taps on their blocks, one loader.

    v = path.velocity(y, step -> call(model, y, step, cond), x, t)

``convert`` knows the paths, ``families`` the arguments of each class, ``published`` the released sizes,
``checkpoints`` the files. Latents are those of our autoencoders: normalised as the model's own pipeline does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.latents import latents_hash
from ..disk import replacing
from ..nn.finite import watched
from ..types import Cond
from . import autoencoders
from .checkpoints import built, component, fetched, files, fill, is_hub_id, mapped, read, read_json
from .convert import Flow, Process, process
from .families import Settings, known
from .published import PUBLISHED, known_name, like

SCHEDULER = "scheduler_config.json"


class Features(nn.Module):
    """The identity, there to be tapped: the picture's part of what leaves a block, without the text's."""

    def __init__(self, picture: int):
        super().__init__()
        self.picture = picture

    def forward(self, x: Tensor) -> Tensor:
        return x

    def hear(self, block: nn.Module, inputs: Any, output: Any) -> None:
        self(output[self.picture] if isinstance(output, tuple) else output)


class Foreign(nn.Module):
    """A denoiser of diffusers as a ``types.Denoiser``; its parameters are those of ``model``.

    x (B, C, H, W) or, of a video model, also (B, C, T, H, W), latents of the autoencoder ``latents``: its
    name in ``autoencoders.PUBLISHED`` or its ``latents_hash``, None if unknown. t (B,); Wan and LTX-Video
    also take (B, T). ``blocks`` are the names to ``tap``, in the order in which x passes them.
    """

    def __init__(
        self, model: nn.Module, path: Process, latents: str | None = None, settings: Settings | None = None
    ):
        super().__init__()
        self.model: Any = model
        self.family = known("class of denoiser", type(model).__name__)
        self.path, self.latents, self.settings = path, latents, settings or Settings()
        self.features = nn.ModuleDict()
        for name in self.family.blocks:
            part = model.get_submodule(name)
            several = isinstance(part, nn.ModuleList)
            for i, block in enumerate(part if several else [part]):  # type: ignore[arg-type]
                features = self.features[f"{name}_{i}" if several else name] = Features(self.family.picture)
                block.register_forward_hook(features.hear)
        self.blocks = tuple(f"features.{name}" for name in self.features)
        config: Any = model.config
        inputs, outputs = config.in_channels, config.out_channels or config.in_channels
        # twice as many with a learned variance; that of Qwen-Image counts them before packing
        if outputs not in (inputs, 2 * inputs, self.channels):
            raise ValueError(
                f"{type(model).__name__} with {inputs} channels in and {outputs} out:"
                " expected a denoiser that takes x and nothing beside it (no inpainting, no first frame)"
            )

    @property
    def last(self) -> str:
        """The name of the last block."""
        return self.blocks[-1]

    @property
    def channels(self) -> int:
        """Of x."""
        return self.model.config.in_channels // self.family.packed**2

    @property
    def config(self) -> dict[str, Any]:
        """That of diffusers; keys with an underscore say where the weights came from."""
        return {k: v for k, v in self.model.config.items() if not k.startswith("_")}

    @property
    def dtype(self) -> torch.dtype:
        """In which the network computes: that of most of its weights."""
        sizes: dict[torch.dtype, int] = {}
        for p in self.model.parameters():
            sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
        return max(sizes, key=sizes.__getitem__)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """v, in the shape and dtype of ``x``; ValueError if the inputs are not the model's."""
        self.border(x, t, cond)
        dtype, picture = self.dtype, self.family.clips and x.ndim == 4
        cond, t = cond.to(dtype=dtype), t.to(torch.promote_types(t.dtype, torch.float32))

        def network(y: Tensor, step: Tensor) -> Tensor:
            return self.family.call(self.model, y.to(dtype), step, cond, self.settings)[:, : self.channels]

        v = self.path.velocity(network, x[:, :, None] if picture else x, t)
        return (v[:, :, 0] if picture else v).to(x.dtype)

    def border(self, x: Tensor, t: Tensor, cond: Cond) -> None:
        """ValueError if the shapes of the inputs are not those that the model takes."""
        family, config, shape = self.family, self.model.config, tuple(x.shape)
        frames, side = family.patch(config)
        if x.ndim not in ((4, 5) if family.clips else (4,)) or shape[1] != self.channels:
            clips = f" or (B, {self.channels}, T, H, W)" if family.clips else ""
            raise ValueError(f"x of shape {shape}: expected (B, {self.channels}, H, W){clips}")
        if any(s % side for s in shape[-2:]) or (x.ndim == 5 and shape[2] % frames):
            raise ValueError(f"x of shape {shape}: expected sides that are multiples of {side}")
        if family.square and shape[-1] != shape[-2]:
            raise ValueError(f"x of shape {shape}: {type(self.model).__name__} takes squares only")
        levels: list[tuple[int, ...]] = [(shape[0],)]
        if family.clips and isinstance(self.path, Flow) and x.ndim == 5:
            levels.append((shape[0], shape[2]))
        if tuple(t.shape) not in levels:
            raise ValueError(f"t of shape {tuple(t.shape)}: expected {' or '.join(map(str, levels))}")
        if family.text and cond.tokens.shape[-1] != config[family.text]:
            raise ValueError(f"cond.tokens of width {cond.tokens.shape[-1]}: expected {config[family.text]}")
        pooled = family.pooled(config)
        if pooled and (cond.pooled is None or cond.pooled.shape[-1] != pooled):
            given = "None" if cond.pooled is None else f"of width {cond.pooled.shape[-1]}"
            raise ValueError(f"cond.pooled {given}: expected (B, {pooled})")
        if not family.text and cond.label is None:
            raise ValueError("cond.label None: expected (B,), the number of a class")

    def map(self, feature: Tensor, x: Tensor) -> Tensor:
        """What ``tap`` gave for one of ``blocks`` as a map (B, D, [T',] h, w), for the input ``x``."""
        if feature.ndim == 4:
            return feature
        frames, side = self.family.patch(self.model.config)
        clip = (x.shape[2] // frames,) if x.ndim == 5 else ()
        return feature.transpose(1, 2).unflatten(2, (*clip, x.shape[-2] // side, x.shape[-1] // side))

    @torch.no_grad()
    def check(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """v; ValueError that names the first layer whose output is not finite, if there is one."""
        given = {"x": x, "t": t, "cond.tokens": cond.tokens, "cond.pooled": cond.pooled}
        for name, value in given.items():
            if value is not None and not value.isfinite().all():
                raise ValueError(f"{name} of the denoiser: not finite")
        with watched(self.model, f"{self.dtype} at t = {t.tolist()}"):
            v = self(x, t, cond)
        if not v.isfinite().all():
            raise ValueError(f"v of {type(self.model).__name__}: not finite at t = {t.tolist()}")
        return v

    def expects(self, autoencoder: nn.Module) -> None:
        """ValueError if the latents of ``autoencoder`` are not those that this denoiser was trained on.

        Of one that is not published and lies without its vae/, nothing but the channels is known.
        """
        config: Any = getattr(autoencoder, "config", None)
        channels = getattr(config, "channels", None)
        if channels is not None and channels != self.channels:
            raise ValueError(f"latents of {channels} channels: this denoiser takes {self.channels}")
        if self.latents is None:
            return
        foreign = isinstance(autoencoder, autoencoders.Foreign)
        # a decoder that stands alone says whose latents it reads
        found = getattr(config, "latents", "") or latents_hash(autoencoder)
        if self.latents in autoencoders.PUBLISHED:
            kind, wanted = autoencoders.PUBLISHED[self.latents]
            scale = {k: v for k, v in wanted.items() if k in ("scaling_factor", "shift_factor")}
            matches = foreign and config.name == kind and scale.items() <= config.foreign.items()
            more = ", ".join(f"{k} {v}" for k, v in scale.items())
            expected = f"{self.latents} ({kind}{', ' if more else ''}{more})"
        else:
            matches, expected = found == self.latents, self.latents[:8]
        if not matches:
            name = config.name if foreign else type(autoencoder).__name__
            told = f"latents of autoencoder {found[:8]} ({name})"
            raise ValueError(f"{told}: {type(self.model).__name__} expects those of {expected}")

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Cond]:
        """Inputs that tests, bench and exporters use: a small picture, or a clip of few frames."""
        g, config = torch.Generator().manual_seed(0), self.model.config
        frames, side = self.family.patch(config)
        clip = (3 * frames,) if self.family.clips else ()
        width = config[self.family.text] if self.family.text else 1
        pooled = self.family.pooled(config)
        cond = Cond(
            torch.randn(batch, 7, width, generator=g),
            torch.arange(7)[None] < torch.tensor([7, 4])[torch.arange(batch) % 2, None],
            torch.randn(batch, pooled, generator=g) if pooled else None,
            None if self.family.text else torch.arange(batch),
        )
        x = torch.randn(batch, self.channels, *clip, 4 * side, 4 * side, generator=g)
        return x.to(device), torch.linspace(0.9, 0.1, batch).to(device), cond.to(device)


def published(name: str, device: torch.device | str = "meta", settings: Settings | None = None) -> Foreign:
    """The denoiser published as ``name``, frozen, without weights; on another ``device`` with random ones."""
    import diffusers

    known_name(name)
    entry = PUBLISHED[name]
    with torch.device(device):
        model = getattr(diffusers, entry.kind)(**entry.config)
    return _frozen(Foreign(model, process(entry.scheduler, name), entry.latents, settings))


def load(
    source: str | Path,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    config: str | None = None,
    offload: bool = False,
    settings: Settings | None = None,
) -> Foreign:
    """A saved denoiser, frozen and in eval mode.

    ``source``: a folder in diffusers' layout (the denoiser's, or a pipeline's), a hub id, or one safetensors
    file in diffusers' or the original layout. ``config``, a name in PUBLISHED, says what a single file is,
    and gives a folder of a U-Net, DiT or PixArt without scheduler/ its schedule. ``offload``: the weights
    stay in memory, each layer's go to ``device`` while it runs. Pickle is never read.
    """
    latents: str | None
    if config is not None:
        known_name(config)
    if (file := Path(source)).is_file():
        if config is None:
            raise ValueError(f"{file}: a single file needs config=, one of {', '.join(PUBLISHED)}")
        entry = PUBLISHED[config]
        model = built(entry.kind, entry.config, config)
        state = mapped(model, read([file]), f"{file} as {config}")
        path, latents = process(entry.scheduler, config), entry.latents
    else:
        root = file
        if not file.is_dir():
            if not is_hub_id(str(source)):
                raise ValueError(f"{source}: no such file or folder, and not a hub id such as org/name")
            root = fetched(str(source), subfolder)
        here = component(root, subfolder)
        told = read_json(here / "config.json")
        kind = told.get("_class_name")
        known(f"_class_name in {here / 'config.json'}:", kind)
        path = _process(here, root, str(kind), config)
        model = built(str(kind), told, str(here / "config.json"))
        state = mapped(model, read(files(here)), str(here))
        latents = _latents(here, root, model)
    foreign = _frozen(Foreign(fill(model, state, dtype), path, latents, settings))
    if not offload:
        return foreign.to(device)
    from accelerate import cpu_offload

    cpu_offload(foreign.model, torch.device(device))
    return foreign


def save(denoiser: Foreign, folder: Path | str) -> None:
    """transformer/ or unet/ and scheduler/ as diffusers writes and reads them, in place of what was there."""
    from safetensors import SafetensorError

    place = "unet" if type(denoiser.model).__name__.startswith("UNet") else "transformer"
    with replacing(Path(folder), (place,)) as temporary:
        try:
            denoiser.model.save_pretrained(temporary / place)
        except SafetensorError as error:  # diffusers' name for a full disk
            raise OSError(None, f"cannot be written ({error})", str(folder)) from None
        if denoiser.path.config:
            (temporary / "scheduler").mkdir()
            text = json.dumps(dict(denoiser.path.config), indent=2)
            (temporary / "scheduler" / SCHEDULER).write_text(text)


def _frozen(denoiser: Foreign) -> Foreign:
    return denoiser.requires_grad_(False).eval()


def _process(here: Path, root: Path, kind: str, config: str | None) -> Process:
    """What the scheduler's file says; else ``config``; else the class, where all of it is flow matching."""
    for place in (root, here, here.parent):
        if (file := place / "scheduler" / SCHEDULER).is_file():
            return process(read_json(file), str(file))
    if config is not None:
        return process(PUBLISHED[config].scheduler, config)
    if known("class", kind).flow:
        return Flow(None)
    raise ValueError(
        f"{root / 'scheduler' / SCHEDULER}: no such file, and a {kind} does not say what it predicts;"
        f" give config=, one of {', '.join(k for k, v in PUBLISHED.items() if v.kind == kind)}"
    )


def _latents(here: Path, root: Path, model: Any) -> str | None:
    """The hash of the autoencoder in vae/, if there is one; else the name of that of a published twin."""
    for place in (root / "vae", here.parent / "vae"):
        if any(place.glob("*.safetensors")):
            try:
                return latents_hash(autoencoders.load(place))
            except ValueError:  # of a class that we do not read
                return None
    entry = like(model)
    return entry.latents if entry else None
