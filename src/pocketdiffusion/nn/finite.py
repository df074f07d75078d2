"""Names the first layer of a model whose output is not finite.

with watched(model, "fp16"): model(x)          every layer is looked at; for finding a fault
v = finite("the teacher", teacher, x, t, cond)     the result is, and the layers only if that is bad
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree

T = TypeVar("T")


def good(values: Any) -> bool:
    """Whether all floating-point tensors in a structure are finite."""
    found = [v for v in _pytree.tree_leaves(values) if isinstance(v, Tensor) and v.is_floating_point()]
    return all(bool(v.isfinite().all()) for v in found)


@contextmanager
def watched(model: nn.Module, when: str) -> Iterator[None]:
    """ValueError, within the block, as soon as a layer of ``model`` gives what is not finite.

    A layer ends after those within it, so that the innermost is named. Every layer costs a reduction over its
    output and a wait for the device: it is for finding a fault, not for every step. ``when`` is told.
    """

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not good(output):
                told = f"{name} ({type(module).__name__}) of {type(model).__name__}"
                raise ValueError(f"{told}: its output is the first that is not finite, in {when}")

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        yield


@torch.no_grad()
def explain(what: str, call: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
    """ValueError that says where ``call(*inputs)``, which is not finite, goes wrong.

    ``call`` may be any function: the layers are those of every module that it enters from outside.
    """
    from torch.distributed.tensor import DTensor

    with ExitStack() as stack:
        watching: set[int] = set()

        def enter(module: nn.Module, given: Any) -> None:
            if id(module) in watching:
                return
            if any(isinstance(p, DTensor) for p in module.parameters()):
                # the other processes would not take part in a second call
                raise ValueError(f"{what}: not finite; one process with whole weights would say where")
            watching.update(id(part) for part in module.modules())
            stack.enter_context(watched(module, what))

        stack.callback(register_module_forward_pre_hook(enter).remove)
        call(*inputs)
    raise ValueError(f"{what}: not finite, though the output of every layer is")


def finite(what: str, call: Callable[..., T], *inputs: Any) -> T:
    """``call(*inputs)`` of frozen networks; ValueError that names the layer if it is where a NaN begins.

    What comes in is not its fault: then the result is returned as it is. ``what`` is told.
    """
    found = call(*inputs)
    if not good(found) and good(inputs):
        explain(what, call, inputs)
    return found
