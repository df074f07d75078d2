"""Pipelines of diffusers as our Pipeline, their parts spelled for exporters.

    opened("scenes") or opened("my-sd15/")     a Pipeline, ours or diffusers' own
    save(FOLDER, student, schedule, parts)     a denoiser of ours beside foreign parts, for ``opened``

A denoiser of another path is exported with its conversion to v. Exporters know no search in a table, so the
step k whose level is nearest to t is computed, from levels t_0 < ... < t_(K-1), as

    k(t) = sum over j < K - 1 of clamp((t - t_j) / (t_(j+1) - t_j), 0, 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import store
from ..diffusion.flow import expand
from ..disk import replacing
from ..pipeline import Decoder, Pipeline, Schedule, find, fitting, matched
from ..teachers import autoencoders, encoders
from ..teachers import pipeline as foreign
from ..teachers.convert import Discrete, Network
from ..types import Cond


class ForeignPipeline(Pipeline):
    """``kind``: its class in diffusers, or foreign.STUDENT."""

    def __init__(self, parts: foreign.Parts, decoder: nn.Module | None = None):
        schedule = Schedule(**parts.schedule)
        super().__init__(parts.transformer, parts.text_encoder, parts.vae, schedule, decoder)
        self.kind = parts.kind

    @property
    def unit(self) -> int:
        if self.kind == foreign.STUDENT:
            return super().unit
        return self.vae.config.factor * self.transformer.family.patch(self.transformer.model.config)[1]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        raise ValueError(f"{folder}: a {self.kind} is saved by diffusers, part by part, not by this package")

    def example(self, batch: int, size: int | None = None) -> tuple[Tensor, Tensor, Cond]:
        """What the denoiser is given for pictures of ``size`` pixels."""
        h, w = (side // self.vae.config.factor for side in self.sides(size))
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, self.vae.config.channels, h, w, generator=generator)
        with torch.no_grad():
            cond = self.text_encoder(*self.text_encoder.example(1, self.device)).expand(batch)
        return x.to(self.device), torch.full((batch,), 0.6, device=self.device), cond


def opened(model: str | Path, decoder: str | Path | None = None, width: str | None = None) -> Pipeline:
    """A pipeline by name or folder, ours or one of diffusers.

    ``decoder``: a folder with another one. ``width``: of an elastic model, by name.
    """
    folder = find(model)
    if not foreign.is_foreign(folder):
        return Pipeline.from_pretrained(model, decoder, width)
    if width is not None:
        raise ValueError(f"{model}: a pipeline of diffusers has one width, there is no {width!r}")
    made = student(folder) if foreign.kind_of(folder) == foreign.STUDENT else foreign.load(folder)
    if not decoder:
        return ForeignPipeline(made)
    other = store.load(Path(decoder))
    fitting(decoder, other, made.vae)
    return ForeignPipeline(made, other)


def student(folder: Path) -> foreign.Parts:
    """What ``save`` wrote."""
    denoiser = store.load(folder / "transformer")
    text, vae = encoders.load(folder, width=denoiser.config.text), autoencoders.load(folder, "vae")
    matched(folder, {"transformer": denoiser, "text_encoder": text, "vae": vae}, 0)
    source = folder / "scheduler" / "scheduler_config.json"
    schedule = store.config_of(Schedule, store.read_json(source), source).check(str(source))
    return foreign.Parts(foreign.STUDENT, denoiser, text, vae, asdict(schedule))


def save(
    folder: Path | str,
    denoiser: nn.Module,
    schedule: Schedule,
    parts: Mapping[str, Path],
    dtype: torch.dtype | None = None,
) -> None:
    """A denoiser of ours as a pipeline that reads with SnapGen's text encoders.

    ``parts``: the folders of vae, text_encoder, tokenizer, text_encoder_2 ..., in diffusers' layout. They are
    large, so that the new folder holds links to them; ``cp -rL`` makes it whole.
    """
    with replacing(Path(folder), (foreign.INDEX,)) as temporary:
        name = type(denoiser).__name__
        (temporary / "transformer").mkdir()
        store.write(denoiser, name, temporary / "transformer", dtype)
        (temporary / "scheduler").mkdir()
        told = {"_class_name": "Schedule", **asdict(schedule)}
        store.write_json(temporary / "scheduler" / "scheduler_config.json", told)
        index: dict[str, Any] = {"_class_name": foreign.STUDENT, "_library": "pocketdiffusion"}
        index |= {k: ["pocketdiffusion", v] for k, v in (("transformer", name), ("scheduler", "Schedule"))}
        for part, place in parts.items():
            (temporary / part).symlink_to(place.resolve(), target_is_directory=True)
            index[part] = line_of(part, place)
        store.write_json(temporary / foreign.INDEX, index)


def line_of(part: str, place: Path) -> list[str]:
    """Library and class of a part, as an index has them."""
    if part.startswith("tokenizer"):
        return ["transformers", "AutoTokenizer"]
    config = store.read_json(place / "config.json")
    if "_class_name" in config:
        return ["diffusers", config["_class_name"]]
    return ["transformers", (config.get("architectures") or ["AutoModel"])[0]]


class Searched:
    """The path of ``Discrete`` in operators that exporters know, for t of (B,), in float32."""

    def __init__(self, path: Discrete):
        self.solve, table = path.solve, path.levels
        self.table, self.first, self.last = table.float(), float(table[0]), float(table[-1])

    def velocity(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        x, t = x.float(), t.float()
        k = ((t[:, None] - self.table[:-1]) / self.table.diff()).clamp(0, 1).sum(1)
        level = t.clamp(self.first, self.last)
        size = ((1 - level).square() + level.square()).sqrt()
        y = x / expand(((1 - t).square() + t.square()).sqrt(), x)
        x0, e = self.solve(network(y, k), y, expand((1 - level) / size, x), expand(level / size, x))
        t, level = expand(t, x), expand(level, x)
        late, early = (x - x0) / t.clamp(min=self.last), (e - x) / (1 - t.clamp(max=self.first))
        return torch.where(t == level, e - x0, torch.where(t > level, late, early))


class Apart(nn.Module):
    """A layer whose output gets an axis of 1 after the first."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, None]


def exportable(denoiser: nn.Module) -> nn.Module:
    """A denoiser whose path exporters can follow; the weights are shared."""
    path = getattr(denoiser, "path", None)
    if not isinstance(path, Discrete):
        return denoiser
    made: Any = copy(denoiser)
    made.path = Searched(path)
    if type(made.model).__name__ == "PixArtTransformer2DModel":
        # it ends with squeeze(1), which does nothing to tokens, but which ONNX takes at its word
        made._modules = {**made._modules, "model": copy(made.model)}
        made.model._modules = {**made.model._modules, "proj_out": Apart(made.model.proj_out)}
    return made


def decoding(vae: Any) -> Decoder:
    """The decoder alone, of a foreign autoencoder too."""
    made = Decoder(vae)
    inner = made.vae._modules.get("model")
    if inner is not None:
        made.vae._modules["model"] = inner = copy(inner)
        unused = ("encoder", "quant_conv")
        inner._modules = {name: part for name, part in inner._modules.items() if name not in unused}
    return made
