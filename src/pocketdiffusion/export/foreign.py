"""Pipelines of diffusers as our Pipeline, their parts spelled for exporters.

    opened("scenes") or opened("my-sd15/")     a Pipeline, ours or diffusers' own

A denoiser of another path is exported with its conversion to v. Exporters know no search in a table, so the
step k whose level is nearest to t is computed, from levels t_0 < ... < t_(K-1), as

    k(t) = sum over j < K - 1 of clamp((t - t_j) / (t_(j+1) - t_j), 0, 1)
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.flow import expand
from ..pipeline import Decoder, Pipeline, Schedule, find
from ..teachers import pipeline as foreign
from ..teachers.convert import Discrete, Network
from ..types import Cond


class ForeignPipeline(Pipeline):
    """``kind``: its class in diffusers."""

    def __init__(self, parts: foreign.Parts):
        super().__init__(parts.transformer, parts.text_encoder, parts.vae, Schedule(**parts.schedule))
        self.kind = parts.kind

    @property
    def unit(self) -> int:
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


def opened(model: str | Path, decoder: str | Path | None = None) -> Pipeline:
    """A pipeline by name or folder, ours or one of diffusers."""
    folder = find(model)
    if not foreign.is_foreign(folder):
        return Pipeline.from_pretrained(folder, decoder)
    if decoder:
        raise ValueError(f"--decoder {decoder}: {model} is a pipeline of diffusers, which keeps its own")
    return ForeignPipeline(foreign.load(folder))


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


def exportable(denoiser: nn.Module) -> nn.Module:
    """A denoiser whose path exporters can follow; the weights are shared."""
    path = getattr(denoiser, "path", None)
    if not isinstance(path, Discrete):
        return denoiser
    made: Any = copy(denoiser)
    made.path = Searched(path)
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
