"""Softmax attention over all tokens: MHA, GQA and MQA, QK-norm, RoPE, self and cross.

q = norm(W_q x), k = norm(W_k y), y = W_o softmax(q k^T / sqrt(d)) W_v y
head h uses key-value head floor(h K / H);  K = H is MHA, K = 1 MQA
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..norm import RMSNorm
from ..rope import rotate

# keys up to which a CPU's bf16 training folds: the library's backward pass takes 1.4 to 7 times as long there
FEW = 256


def fold(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention in two products, a group's heads stacked along its queries; mask (B, 1, 1, M)."""
    logits = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return (logits.softmax(-1) @ v).view_as(q)


class Core(nn.Module):
    """(q, k, v, mask) -> y; the part that exporters, maps-on-request and sparse patterns replace."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if q.requires_grad and q.device.type == "cpu" and k.shape[-2] <= FEW:
            half = q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
            if half and (mask is None or mask.shape[1:3] == (1, 1)):
                return fold(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])


class NaiveCore(nn.Module):
    """The same, written out: repeated key-value heads and an explicit softmax."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        return logits.softmax(-1) @ v


class Attention(nn.Module):
    """``source`` is the width of the other sequence for cross-attention; None = self-attention.

    ``bias`` is of all four projections, ``out_bias`` of the last alone.

    forward(x (B, N, D), rope table (2, N, d/2) or None, other (B, M, source), mask (B, M) bool) -> (B, N, D)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        kv_heads: int | None = None,
        source: int | None = None,
        qk_norm: bool = True,
        bias: bool = False,
        out_bias: bool = False,
    ):
        super().__init__()
        kv_heads = kv_heads or heads
        if heads % kv_heads:
            raise ValueError(f"heads ({heads}) must be a multiple of kv_heads ({kv_heads})")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.k = nn.Linear(source or dim, kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(source or dim, kv_heads * head_dim, bias=bias)
        self.out = nn.Linear(heads * head_dim, dim, bias=bias or out_bias)
        self.norm_q: nn.Module = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.norm_k: nn.Module = RMSNorm(head_dim) if qk_norm else nn.Identity()
        self.core = Core()

    def forward(
        self, x: Tensor, rope: Tensor | None = None, other: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        source = x if other is None else other
        q = self.norm_q(self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))  # (B, H, N, d)
        k = self.norm_k(self.k(source).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2))  # (B, K, M, d)
        v = self.v(source).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, M, d)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        y = self.core(q, k, v, None if mask is None else mask[:, None, None])  # (B, H, N, d)
        return self.out(y.transpose(1, 2).flatten(2))
