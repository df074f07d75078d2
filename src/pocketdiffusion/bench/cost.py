"""Parameters, bytes and multiply-accumulates of a model and of its submodules to any depth.

One multiply-accumulate (MAC) is two FLOPs. Counted are matrix products, convolutions and attention (all pairs
of tokens, masked or not), as torch's flop counter does; norms, activations and sums are not. Nothing depends
on values, so a model and inputs on ``meta`` give the same numbers at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    parameters: int  # shared ones once
    bytes: int  # of parameters and buffers
    macs: int  # of one call, the whole batch


@contextmanager
def plain() -> Iterator[None]:
    """Attention as matrix products: the counter has no formula for the fused kernels of the CPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _macs(model: Callable[..., Any], inputs: Sequence[Any]) -> dict[str, int]:
    """MACs by dotted name, "" for the whole; modules without any are absent."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), plain(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    macs = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    root = type(model).__name__ + "."
    return {"": macs.get("Global", 0)} | {k[len(root) :]: v for k, v in macs.items() if k.startswith(root)}


def _weights(module: nn.Module) -> tuple[int, int]:
    """Number of parameters, and bytes of parameters and buffers."""
    parameters, buffers = list(module.parameters()), list(module.buffers())
    return sum(p.numel() for p in parameters), sum(t.nbytes for t in parameters + buffers)


def macs(call: Callable[..., Any], inputs: Sequence[Any]) -> int:
    """Of one ``call(*inputs)``, a module or a function of some."""
    return _macs(call, inputs)[""]


def cost(model: nn.Module, inputs: Sequence[Any]) -> Cost:
    """Of the whole model and one call ``model(*inputs)``."""
    return Cost(*_weights(model), _macs(model, inputs)[""])


def by_module(model: nn.Module, inputs: Sequence[Any], depth: int = 1) -> dict[str, Cost]:
    """Of every submodule whose dotted name has at most ``depth`` parts, in the order of definition."""
    macs = _macs(model, inputs)

    def total(name: str, module: nn.Module) -> int:
        # a list of modules is never called itself
        return (
            macs[name] if name in macs else sum(total(f"{name}.{k}", m) for k, m in module.named_children())
        )

    chosen = {name: m for name, m in model.named_modules() if name and name.count(".") < depth}
    return {name: Cost(*_weights(m), total(name, m)) for name, m in chosen.items()}
