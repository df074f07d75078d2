"""Where a picture looks at its words: explicit cross-attention maps, on request.

    look = watched(model, names)
    v, a = look(x, t, cond)              v as before; a (B, H W, M) sums to 1 over the words

Logits of the chosen layers are summed over heads and averaged over layers, then a softmax over the words that
are there, the one that ends a prompt among them (CountDiffusion's prototype leaves that out; that it stays is
ours). Fused attention stays everywhere else, and outputs are equal. Layers of one map must look at one grid;
``finest`` names those of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ...types import Cond
from ..gate import sharing
from .full import Attention, NaiveCore


class Written(NaiveCore):
    """Attention spelled out, that keeps its logits summed over heads: (B, N, M)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: Tensor | None = None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        repeated = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        self.logits = (q @ repeated.transpose(-1, -2) / q.shape[-1] ** 0.5).sum(1)
        return super().forward(q, k, v, mask)


def crossing(model: nn.Module) -> list[str]:
    """Names of the layers of ours that look at words."""
    return [
        n for n, m in model.named_modules() if isinstance(m, Attention) and n.rpartition(".")[2] == "cross"
    ]


Look = Callable[[Tensor, Tensor, Cond], tuple[Tensor, Tensor]]


class Keeper(Protocol):
    """Whoever keeps the logits of a layer, summed over heads, after a call."""

    logits: Tensor | None


def through(network: nn.Module, keepers: Sequence[Keeper]) -> Look:
    """A call of ``network`` with the map of all ``keepers``. ValueError if their grids differ."""

    def look(x: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        v = network(x, t, cond)
        found = [keeper.logits for keeper in keepers]
        if len({logits.shape for logits in found if logits is not None}) != 1:
            raise ValueError("the layers of a map look at grids of different sizes")
        mean = torch.stack([logits for logits in found if logits is not None]).mean(0)
        for keeper in keepers:
            keeper.logits = None
        return v, mean.masked_fill(~cond.mask[:, None], float("-inf")).softmax(-1)

    return look


def watched(model: nn.Module, names: Sequence[str]) -> Look:
    """``model`` with maps of the layers ``names``; weights are shared."""
    network, cores = sharing(model), []
    for name in names:
        layer = network.get_submodule(name)
        if not isinstance(layer, Attention):
            raise ValueError(f"{name}: a {type(layer).__name__}, expected an attention layer")
        layer.core = core = Written()  # type: ignore[assignment]
        cores.append(core)
    return through(network, cores)


@torch.no_grad()
def finest(model: nn.Module, inputs: Sequence[Tensor | Cond], names: Sequence[str]) -> list[str]:
    """Of the cross-attention layers those with most places."""
    sizes: dict[str, int] = {}
    handles = []
    for name in names:

        def note(_module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            sizes[name] = args[0].shape[1]

        handles.append(model.get_submodule(name).register_forward_pre_hook(note))
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not sizes:
        raise ValueError(f"{type(model).__name__} has no cross-attention to look at")
    return [name for name, size in sizes.items() if size == max(sizes.values())]
