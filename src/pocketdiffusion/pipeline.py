"""Pipeline, prompt -> picture: text encoder, denoiser, sampler and autoencoder in one folder.

pipe = Pipeline.from_pretrained("snapgen_scenes")
pipe("two green stars", seed=3)[0].save("stars.png")

FOLDER/model_index.json             which classes; of a few-step pipeline, which teacher it had
FOLDER/transformer/  text_encoder/  vae/
FOLDER/decoder/                             a smaller decoder in place of the vae's own, if there is one
FOLDER/tokenizer/tokenizer.json
FOLDER/scheduler/scheduler_config.json      how the model wants to be sampled: see Schedule
FOLDER/lazy/NAME.json                       plans of what to skip at which step, if any (compress/lazy.py)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import store
from .compress import width as widths
from .compress.lazy import Lazy, Plan
from .data.latents import latents_hash as latents_hash
from .diffusion import times
from .diffusion.guidance import cfg
from .diffusion.samplers import STEPS, Step, run
from .disk import replacing
from .models.supernet import Supernet, with_lora
from .noise import normal
from .teachers.pipeline import is_foreign
from .text.tokenizer import Tokenizer

SHIPPED = Path(__file__).parent / "weights"
COMPONENTS = ("transformer", "text_encoder", "vae")
OPTIONAL = ("decoder",)


@dataclass(frozen=True)
class Schedule:
    """Everything that decides how a model is sampled, saved with it so that no runtime has to guess."""

    sampler: str = "euler"  # a name in diffusion.samplers.STEPS
    steps: int = 28
    shift: float = 1.0
    times: tuple[float, ...] | None = None  # the levels of a few-step model, in place of steps and shift
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)  # levels at which guidance acts
    prediction_type: str = "flow"  # v = e - x0; nothing else is sampled here
    size: int = 64  # pixels

    def check(self, source: str) -> Schedule:
        if self.prediction_type != "flow":
            raise ValueError(
                f"{source}: prediction_type {self.prediction_type!r} is not supported, expected 'flow'"
            )
        if self.sampler not in STEPS:
            raise ValueError(f"{source}: unknown sampler {self.sampler!r}; known: {', '.join(STEPS)}")
        if self.steps < 1 or self.steps != int(self.steps):
            raise ValueError(f"{source}: steps must be at least 1, got {self.steps}")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"{source}: guidance must be 0 or more, got {self.guidance}")
        if len(self.interval) != 2:
            raise ValueError(f"{source}: interval must be two levels, got {self.interval}")
        try:
            self.levels()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {error}") from None
        return self

    def levels(self) -> Tensor:
        """Decreasing levels from 1 to 0."""
        return times.few_step(self.times) if self.times else times.grid(self.steps, self.shift)


def shipped() -> dict[str, Path]:
    """What is shipped, by name: pipelines, and autoencoders by themselves (NAME/vae)."""
    alone = {p.parent.parent.name: p.parent for p in SHIPPED.glob("*/vae/config.json")}
    return alone | {p.parent.name: p for p in SHIPPED.glob("*/pipeline")}


def find(name: str | Path) -> Path:
    """A folder, or what is shipped under a name: a pipeline's folder, else an autoencoder's."""
    folder = Path(name)
    if any((folder / known).exists() for known in ("model_index.json", "config.json")):
        return folder
    known = shipped()
    if str(folder) in known:
        return known[str(folder)]
    names = [k if p.name == "pipeline" else f"{k} (an autoencoder)" for k, p in sorted(known.items())]
    raise ValueError(
        f"no pipeline {str(name)!r}: give a folder or one of {', '.join(names) or '(none shipped)'}"
    )


def matched(folder: Path, parts: dict[str, Any], tokens: int) -> None:
    """Whether the components were made for each other; ValueError says which were not."""
    model, text, vae = (parts[c].config for c in COMPONENTS)
    if model.channels != vae.channels:
        raise ValueError(f"{folder}: the transformer has {model.channels} channels, the vae {vae.channels}")
    if model.text != text.dim:
        raise ValueError(f"{folder}: the transformer reads text of width {model.text}, not {text.dim}")
    # our own encoder's pooled vector is a mean of its tokens
    wanted, pooled = getattr(model, "pooled", 0), getattr(text, "pooled", text.dim)
    if wanted and wanted != pooled:
        raise ValueError(f"{folder}: the transformer reads a pooled text of width {wanted}, not {pooled}")
    if "decoder" in parts:
        fitting(folder, parts["decoder"], parts["vae"])
    if tokens > text.vocab:
        raise ValueError(f"{folder}: the tokenizer has {tokens} tokens, the text encoder {text.vocab}")


def narrowed(source: Any, network: Any, width: str | None) -> tuple[Any, dict[str, Any] | None]:
    """One width of a supernet as a plain model, by name or by the file of one, and how the file wants it to
    be sampled; other networks as they are.
    """
    if isinstance(network, Supernet):
        schedule = None
        if width and width.endswith(".safetensors"):
            given = widths.read(Path(width))
            if given.rank and not network.config.rank:
                network = with_lora(network, given.rank, given.alpha)
            widths.adopt(network, given, width)
            width, schedule = given.name, given.schedule
        return network.extract(width or network.config.names[-1]), schedule
    if width is not None:
        raise ValueError(f"{source}: a {type(network).__name__} has one width, there is no {width!r}")
    return network, None


def supernet(name: str | Path) -> Supernet:
    """All widths of an elastic pipeline. ValueError for any other pipeline."""
    network = store.load(find(name) / "transformer")
    if not isinstance(network, Supernet):
        raise ValueError(f"{name}: a {type(network).__name__}, expected an elastic model (Supernet)")
    return network


def fitting(source: Any, decoder: Any, vae: Any) -> None:
    """Whether ``decoder`` reads the latents of ``vae``; by sizes alone where it does not say whose."""
    for name, least in (("channels", None), ("factor", None), ("time_factor", 1)):
        found, wanted = getattr(decoder.config, name, least), getattr(vae.config, name, least)
        if found is None or not hasattr(decoder, "decode"):
            raise ValueError(f"{source}: a {type(decoder).__name__}, expected a decoder of latents")
        if found != wanted:
            raise ValueError(f"{source}: the decoder has {name} {found}, the vae {wanted}")
    whose = getattr(decoder.config, "latents", "")
    if whose and whose != (ours := latents_hash(vae)):
        raise ValueError(f"{source}: reads latents of autoencoder {whose[:8]}, the vae's are of {ours[:8]}")


def same_latents(name: str, vae: nn.Module, other_name: str, other: nn.Module) -> None:
    """ValueError when two autoencoders make different latents; their decoders may differ."""
    mine, theirs = latents_hash(vae)[:8], latents_hash(other)[:8]
    if mine != theirs:
        made = f"{name} expects latents of autoencoder {mine}, {other_name} of {theirs}"
        raise ValueError(f"{made}; both must share one latent space")


class Decoder(nn.Module):
    """An autoencoder's decoder alone, as a device runs it: z (B, C, h, w) -> x (B, 3, H, W)."""

    def __init__(self, vae: Any):
        super().__init__()
        # the same weights, without those of the encoder, which no device stores
        self.vae = copy(vae)
        self.vae._modules = {name: part for name, part in vae._modules.items() if name != "encoder"}

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


class Pipeline:
    # Any: each has its own config, and what a protocol asks for beyond nn.Module
    transformer: Any
    text_encoder: Any
    vae: Any
    decoder: Any  # what makes pixels: the vae, unless a smaller one was given

    def __init__(
        self,
        transformer: nn.Module,
        text_encoder: nn.Module,
        vae: nn.Module,
        schedule: Schedule,
        decoder: nn.Module | None = None,
    ):
        self.transformer, self.text_encoder, self.vae = transformer, text_encoder, vae
        self.decoder = vae if decoder is None else decoder
        self.schedule = schedule.check("schedule")
        self.plans: dict[str, Plan] = {}
        self.teacher = ""  # of a few-step pipeline: the name or folder of the one it was distilled from
        self.dtype = torch.float32

    @property
    def components(self) -> dict[str, Any]:
        names = COMPONENTS if self.decoder is self.vae else (*COMPONENTS, *OPTIONAL)
        return {name: getattr(self, name) for name in names}

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pipeline:
        """Move to ``device``; ``dtype`` is the compute dtype (autocast), weights stay fp32."""
        for network in self.components.values():
            network.to(device)
        self.dtype = dtype or self.dtype
        return self

    @classmethod
    def from_pretrained(
        cls, name: str | Path, decoder: str | Path | None = None, width: str | None = None
    ) -> Pipeline:
        """A shipped pipeline by name, or a folder in the diffusers layout.

        ``decoder``: a folder with another one. ``width``: of an elastic model, by name; None: the full one.
        """
        folder = find(name)
        if not (folder / "model_index.json").exists():
            raise ValueError(f"{name}: a network by itself, expected a pipeline (with model_index.json)")
        index = store.read_json(folder / "model_index.json")
        if is_foreign(folder):
            takers = "pocket info, generate, bench, export and cache take it"
            raise ValueError(f"{name}: a {index.get('_class_name')}, with parts of diffusers; {takers}")
        if missing := [c for c in (*COMPONENTS, "tokenizer", "scheduler") if c not in index]:
            raise ValueError(f"{folder / 'model_index.json'}: no component {missing[0]!r}")
        there = [*COMPONENTS, *(c for c in OPTIONAL if c in index and not decoder)]
        parts = {c: store.load(folder / c) for c in there}
        for c in there:
            if index[c][-1] != type(parts[c]).__name__:
                raise ValueError(f"{folder / c}: holds a {type(parts[c]).__name__}, expected {index[c][-1]}")
        parts["transformer"], own = narrowed(name, parts["transformer"], width)
        if decoder:
            parts["decoder"] = store.load(Path(decoder))
            fitting(decoder, parts["decoder"], parts["vae"])
        text = parts["text_encoder"]
        text.tokenizer = Tokenizer.load(folder / "tokenizer", text.config.length)
        matched(folder, parts, len(text.tokenizer))
        source = folder / "scheduler" / "scheduler_config.json"
        told = store.read_json(source) if own is None else own
        schedule = store.config_of(Schedule, told, source).check(str(source))
        made = cls(**parts, schedule=schedule)
        made.plans = {path.stem: Plan.load(path) for path in sorted((folder / "lazy").glob("*.json"))}
        made.teacher = str(index.get("_teacher", ""))
        return made

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the whole folder, or nothing."""
        with replacing(Path(folder), ("model_index.json",)) as temporary:
            index: dict[str, Any] = {"_class_name": "Pipeline", "_library": "pocketdiffusion"}
            if self.teacher:
                index["_teacher"] = self.teacher
            for name, network in self.components.items():
                (temporary / name).mkdir()
                store.write(network, type(network).__name__, temporary / name, dtype)
                index[name] = ["pocketdiffusion", type(network).__name__]
            self.text_encoder.tokenizer.save(temporary / "tokenizer")
            (temporary / "scheduler").mkdir()
            config = {"_class_name": "Schedule", **asdict(self.schedule)}
            store.write_json(temporary / "scheduler" / "scheduler_config.json", config)
            for name, plan in self.plans.items():
                (temporary / "lazy").mkdir(exist_ok=True)
                plan.save(temporary / "lazy" / f"{name}.json")
            index |= {"tokenizer": ["tokenizers", "Tokenizer"], "scheduler": ["pocketdiffusion", "Schedule"]}
            store.write_json(temporary / "model_index.json", index)

    def computing(self) -> torch.autocast:
        """The context in which its networks are called, of its compute dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def unit(self) -> int:
        """Pixels that sides are multiples of."""
        # a transformer of three stages merges tokens by two
        merged = 2 if getattr(self.transformer.config, "middle", None) else 1
        return self.vae.config.factor * self.transformer.config.patch * merged

    def sides(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """Height and width in pixels, checked against what the autoencoder and the patches can do."""
        size = self.schedule.size if size is None else size
        h, w = (size, size) if isinstance(size, int) else size
        unit = self.unit
        if h < unit or w < unit or h % unit or w % unit:
            raise ValueError(f"size must be a positive multiple of {unit} pixels, got {h} x {w}")
        return h, w

    def settings(self, steps: int | None, guidance: float | None) -> Schedule:
        """The saved schedule with what the caller wants otherwise."""
        wanted = self.schedule
        if steps is not None:
            if wanted.times and steps != len(wanted.times):
                raise ValueError(f"steps: this few-step model takes {len(wanted.times)} steps, got {steps}")
            wanted = replace(wanted, steps=steps)
        if guidance is not None:
            wanted = replace(wanted, guidance=guidance)
        return wanted.check("generate")

    def lazy(self, name: str) -> Plan:
        """A plan by name. ValueError says which there are."""
        if name not in self.plans:
            with_plans = {n: sorted((p / "lazy").glob("*.json")) for n, p in shipped().items()}
            others = [f"{n} has {', '.join(p.stem for p in own)}" for n, own in with_plans.items() if own]
            known = f"it has {', '.join(self.plans)}" if self.plans else f"it has none; {'; '.join(others)}"
            raise ValueError(f"no lazy plan {name!r} for this pipeline; {known}")
        return self.plans[name]

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        negative: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        first: int = 0,
        callback: Callable[[Step], None] | None = None,
        lazy: Plan | None = None,
    ) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]; picture i takes its noise from (seed, first + i) alone.

        ``lazy``: what rests at which step; its times must be the sampler's.
        """
        schedule = self.settings(steps, guidance)
        network = self.transformer
        if lazy is not None:
            lazy.fits(schedule.levels().tolist())
            network = Lazy(network, lazy).start()
        h, w = (side // self.vae.config.factor for side in self.sides(size))
        shape = (self.vae.config.channels, h, w)

        def noise(step: int) -> Tensor:
            rows = [normal(seed, first + i, step, shape) for i in range(len(prompts))]
            return torch.from_numpy(np.stack(rows)).to(self.device)

        with self.computing():
            cond = self.text_encoder.embed(list(prompts))
            null = self.text_encoder.embed([negative])
            model = cfg(network, null, schedule.guidance, schedule.interval)
            x, fresh = noise(0), noise if schedule.sampler == "renoise" else None
            for step in run(STEPS[schedule.sampler], model, x, schedule.levels(), cond, fresh):
                x = step.x
                if callback:
                    callback(step)
            return self.decoder.decode(x).float().clamp(-1, 1)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative: str = "",
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        num_images: int = 1,
        batch: int = 16,
        callback: Callable[[Step], None] | None = None,
        lazy: Plan | None = None,
    ) -> list[Image.Image]:
        """``num_images`` pictures for every prompt, in order. ``batch`` is how many are made at once."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if num_images < 1 or batch < 1:
            raise ValueError(f"num_images and batch must be at least 1, got {num_images} and {batch}")
        every = [p for p in prompts for _ in range(num_images)]
        pictures: list[Image.Image] = []
        for i in range(0, len(every), batch):
            part = self.sample(every[i : i + batch], negative, steps, guidance, seed, size, i, callback, lazy)
            pictures += [to_pil(x) for x in part]
        return pictures


def to_pil(x: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an 8-bit picture."""
    return Image.fromarray(((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())
