"""Cross-attention maps of denoisers of diffusers: a processor that also keeps the logits.

    look = watched(foreign, crossing(foreign))     as nn/attention/maps.py has it; SD1.5, SDXL, PixArt

What the network computes is not touched: the layer's own processor runs, and queries and keys are multiplied
once more beside it. Models whose text and picture attend together have no such layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..nn.attention.maps import Look, through
from ..nn.gate import sharing


class Kept:
    """An attention processor of diffusers around another."""

    def __init__(self, inner: Any):
        self.inner = inner
        self.logits: Tensor | None = None

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Any = None, **more: Any) -> Any:
        heads = attn.heads
        words = hidden if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross:
            words = attn.norm_encoder_hidden_states(words)
        q = attn.to_q(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
        k = attn.to_k(words).unflatten(-1, (heads, -1)).transpose(1, 2)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        self.logits = (q @ k.transpose(-1, -2) * attn.scale).sum(1).float()
        return self.inner(attn, hidden, encoder_hidden_states=encoder_hidden_states, **more)


def crossing(model: nn.Module) -> list[str]:
    """Names of the layers that look at words."""
    return [
        name
        for name, layer in model.named_modules()
        if getattr(layer, "is_cross_attention", False) and hasattr(layer, "set_processor")
    ]


def watched(model: nn.Module, names: Sequence[str]) -> Look:
    """``model`` with maps of the layers ``names``; weights are shared."""
    network, kept = sharing(model), []
    for name in names:
        layer = network.get_submodule(name)
        processor = Kept(layer.processor)
        layer.set_processor(processor)
        kept.append(processor)
    return through(network, kept)
