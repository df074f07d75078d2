"""Programs: a pipeline as three plain functions of fixed shape; all that exporters see.

    text_encoder   ids (1, N) int32, mask (1, N)                        -> tokens (1, N, D) [, pooled (1, P)]
    denoiser       x (B, C, h, w), t (B,), tokens (B, N, D), mask (B, N) -> v (B, C, h, w)
    decoder        z (1, C, h, w)                                       -> picture (1, 3, H, W) in [-1, 1]

Every tensor is float32 but ``ids``: Core ML has no 64-bit and no boolean inputs, so masks are 1.0 and 0.0. A
guided model is called with the conditional and the unconditional row at once, B = 2. The text encoders of a
pipeline of diffusers (foreign.py) are one program, whose N numbers are those of all of them and which says as
well which tokens are real. Any module becomes a Program by hand: ``Program("denoiser", module, {"x": x, "t":
t}, ("v",))``; one with structured inputs, such as a block, by ``flattened``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..pipeline import Pipeline
from ..types import Cond
from .foreign import ForeignPipeline, decoding, exportable

# What a condition may hold beside tokens and mask, and what a device would have to be given for it.
EXTRAS = tuple(f.name for f in fields(Cond) if f.name not in ("tokens", "mask"))


@dataclass(frozen=True)
class Program:
    """``module(*inputs.values())`` gives a tensor, or a tuple of them in the order of ``outputs``."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Outputs by name, for the example inputs unless others are given."""
        given = self.inputs if inputs is None else inputs
        found = self.module(*(given[name] for name in self.inputs))
        return dict(zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=True))


class TextStep(nn.Module):
    """Token numbers and mask -> what the denoiser reads."""

    def __init__(self, encoder: nn.Module, extras: tuple[str, ...]):
        super().__init__()
        self.encoder, self.extras = encoder, extras

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor | tuple[Tensor, ...]:
        cond = self.encoder(ids, mask > 0.5)
        more = tuple(getattr(cond, name).float() for name in self.extras)
        return (cond.tokens, *more) if more else cond.tokens


class DenoiserStep(nn.Module):
    """One call of the denoiser, its condition spelled out."""

    def __init__(self, denoiser: nn.Module, extras: tuple[str, ...]):
        super().__init__()
        self.denoiser, self.extras = denoiser, extras

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, *more: Tensor) -> Tensor:
        return self.denoiser(x, t, Cond(tokens, mask > 0.5, **dict(zip(self.extras, more, strict=True))))


class Flat(nn.Module):
    """A module whose inputs and outputs are spelled out as plain tensors; all else stays as in ``inputs``."""

    def __init__(self, module: nn.Module, inputs: Sequence[Any]):
        super().__init__()
        # ... where a tensor belongs
        self.inputs = _pytree.tree_map(lambda x: ... if torch.is_tensor(x) else x, tuple(inputs))
        self.module = module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        inputs = _pytree.tree_map(lambda x: next(given) if x is ... else x, self.inputs)
        found = self.module(*inputs)
        return tuple(x for x in _pytree.tree_leaves(found) if torch.is_tensor(x) and x.is_floating_point())


@torch.no_grad()
def flattened(name: str, module: nn.Module, inputs: Sequence[Any]) -> Program:
    """``module(*inputs)`` as a Program: tensors in0, in1, ... -> out0, ..., whatever holds them."""
    flat = Flat(module, inputs)
    tensors = [x for x in _pytree.tree_leaves(tuple(inputs)) if torch.is_tensor(x)]
    outputs = tuple(f"out{i}" for i in range(len(flat(*tensors))))
    return Program(name, flat, {f"in{i}": x for i, x in enumerate(tensors)}, outputs)


def programs(pipe: Pipeline, size: int | tuple[int, int] | None = None) -> dict[str, Program]:
    """The three programs of ``pipe`` for pictures of ``size`` pixels, with example inputs, in fp32."""
    for network in pipe.components.values():
        network.eval().requires_grad_(False)
    h, w = (side // pipe.vae.config.factor for side in pipe.sides(size))
    example: Cond = pipe.transformer.example(1)[2]
    extras = tuple(name for name in EXTRAS if getattr(example, name) is not None)
    if made_elsewhere := [name for name in extras if name != "pooled"]:
        raise ValueError(f"the denoiser needs a {made_elsewhere[0]!r} condition, which no program makes yet")
    generator = torch.Generator().manual_seed(0)

    text = pipe.text_encoder
    length = text.config.length
    mask = (torch.arange(length)[None] < length // 2).float()
    ids = torch.randint(0, text.config.vocab, (1, length), generator=generator, dtype=torch.int32)
    told = extras
    if isinstance(pipe, ForeignPipeline):
        ids, mask = (value.to(like.dtype) for value, like in zip(text.example(1), (ids, mask)))
        told = ("mask", *extras)
    # no two tensors of a graph have one name
    names = ("tokens", *("real" if name == "mask" else name for name in told))
    first = Program("text_encoder", TextStep(text, told), {"ids": ids, "mask": mask}, names)

    rows = 1 if pipe.schedule.guidance == 1 else 2
    x = torch.randn(rows, pipe.vae.config.channels, h, w, generator=generator)
    t = torch.full((rows,), 0.6)
    said = {name: value.expand(rows, *value.shape[1:]).contiguous() for name, value in first().items()}
    inputs = {
        "x": x,
        "t": t,
        "tokens": said.pop("tokens"),
        "mask": said.pop("real", mask.expand(rows, -1).contiguous()),
        **said,
    }
    step = Program("denoiser", DenoiserStep(exportable(pipe.transformer), extras), inputs, ("v",))
    last = Program("decoder", decoding(pipe.decoder), {"z": x[:1].clone()}, ("picture",))
    return {p.name: p for p in (first, step, last)}
