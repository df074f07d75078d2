"""The ops of a model: its blocks and branches, with all that decides what a call costs.

An op is a class. Its shapes are the tensors that go in and, of every submodule, the class, the shapes of its
weights, and the whole numbers, switches and words among its attributes (heads, strides); not its place in the
model. Equal blocks of any models are one op, a narrower block is another. A block that kept its own number as
an attribute would be an op of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree


@dataclass(frozen=True)
class Shapes:
    inputs: tuple[str, ...]  # "2x64x256", "2x12 bool", "None"
    parts: tuple[tuple[str, str], ...]  # ("attn.q", "Linear in_features=256 out_features=256 weight=256x256")

    def differences(self, other: Shapes) -> list[str]:
        """What ``self`` has and ``other`` has not."""
        inputs = [f"input {i} {x}" for i, x in enumerate(self.inputs) if other.inputs[i : i + 1] != (x,)]
        return inputs + [
            f"{name} {what}".strip() for name, what in self.parts if (name, what) not in other.parts
        ]


@dataclass(frozen=True)
class Call:
    """A submodule and what it was called with."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]

    @property
    def op(self) -> str:
        return type(self.module).__name__

    @cached_property
    def shapes(self) -> Shapes:
        leaves = _pytree.tree_leaves(self.inputs)
        return Shapes(
            tuple(described(x) for x in leaves), tuple((n, part(m)) for n, m in self.module.named_modules())
        )


def described(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    size = "x".join(map(str, x.shape)) or "scalar"
    # of floating point is the table's precision, whatever it was when the inputs were recorded
    return size if x.is_floating_point() else f"{size} {str(x.dtype).removeprefix('torch.')}"


def part(module: nn.Module) -> str:
    """A submodule's class, attributes and own weights in words."""

    def plain(x: Any) -> bool:
        return isinstance(x, int | str) or (isinstance(x, tuple) and all(isinstance(n, int) for n in x))

    own = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training" and plain(v)}
    found = [f"{k}={'x'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in sorted(own.items())]
    weights = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return " ".join([type(module).__name__, *found, *(f"{k}={described(w)}" for k, w in weights)])


def blocks(model: nn.Module) -> list[str]:
    if not hasattr(model, "BLOCKS"):
        raise ValueError(f"{type(model).__name__} lists no BLOCKS and BRANCHES; name its parts")
    return [f"{model.BLOCKS}.*"]


def branches(model: nn.Module) -> list[str]:
    return [*blocks(model), *model.BRANCHES][1:]  # type: ignore[misc]


@torch.no_grad()
def calls(model: nn.Module, inputs: Sequence[Any], names: Iterable[str]) -> list[Call]:
    """Every call of the submodules that ``names`` match in ``model(*inputs)``, in order.

    A name is dotted, "" the model itself; * stands for one part of it. Modules and inputs may be on meta.
    """
    modules = dict(model.named_modules())
    chosen: dict[str, nn.Module] = {}
    for pattern in names:
        form = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        some = {name: m for name, m in modules.items() if form.fullmatch(name)}
        if not some:
            raise ValueError(f"{type(model).__name__} has no submodule {pattern!r}")
        chosen |= some
    found: list[Call] = []
    with ExitStack() as stack:
        for name, module in chosen.items():

            def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                # defaults spelled out, so that f(x) and f(x, None) are one op
                bound = inspect.signature(module.forward).bind(*args, **kwargs)
                bound.apply_defaults()
                if bound.kwargs:
                    raise ValueError(f"{name} takes {next(iter(bound.kwargs))!r} by keyword only")
                found.append(Call(name, module, bound.args))

            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        model(*inputs)
    return found
