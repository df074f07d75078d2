"""Names the first layer of a foreign model whose output is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree


@contextmanager
def watched(model: nn.Module, when: str) -> Iterator[None]:
    """ValueError, within the block, as soon as a layer of ``model`` gives what is not finite.

    A layer ends after those within it, so that the innermost is named. Every layer costs a reduction over its
    output and a wait for the device: it is for finding a fault, not for every step. ``when`` is told.
    """

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found = [
                v for v in _pytree.tree_leaves(output) if isinstance(v, Tensor) and v.is_floating_point()
            ]
            if not all(v.isfinite().all() for v in found):
                told = f"{name} ({type(module).__name__}) of {type(model).__name__}"
                raise ValueError(f"{told}: its output is the first that is not finite, in {when}")

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                stack.callback(module.register_forward_hook(look(name)).remove)
        yield
