"""tap(model, names)(x, t, cond) -> v, {name: tensor}: the only path to features.

It serves our models and foreign ones. A name is a submodule's dotted name; its output (the first tensor of
it) is returned, with its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn


def _first(output: Any) -> Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def tap(model: nn.Module, names: Sequence[str]) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    """Hooks live only during the call, so taps never outlast their use and may be nested."""
    modules = dict(model.named_modules())
    if missing := [n for n in names if n not in modules]:
        raise ValueError(f"{type(model).__name__} has no submodule {missing[0]!r}")

    def call(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name in names:

                def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                    seen[name] = _first(output)

                stack.callback(modules[name].register_forward_hook(keep).remove)
            return model(*args, **kwargs), seen

    return call
