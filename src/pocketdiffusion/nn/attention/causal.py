"""Block-causal attention in clips: a token sees its own frame and those before it.

    y_i = sum_j softmax_j(q_i k_j / sqrt(d)) v_j     over tokens j of frames  f(i) - window < f(j) <= f(i)

RoPE over time, height and width, QK-norm (H3AE). The paper's attention looks back without end; ``window``
(ours) bounds it, so that a stream of any length needs a state of fixed size. Positions enter as differences
only, so a stream counts them from the oldest frame it remembers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..causal import State, pad_past, streamed
from ..mlp import MLP
from ..norm import RMSNorm
from ..rope import angles, grid, rotate
from .full import Attention


@dataclass(frozen=True)
class Ctx:
    """What all blocks share; ``past`` remembered frames lie in front of the chunk's own."""

    rope: Tensor  # (2, (past + T) tokens, head_dim / 2)
    tokens: int  # of one frame
    window: int
    seen: Tensor | None  # (past,) 1 where a remembered frame has been; None: nothing is remembered


def naive_visible(frames: int, past: int, window: int) -> Tensor:
    """(frames, past + frames) bool: which remembered and own frames each frame sees."""
    ahead = torch.arange(-past, frames) - torch.arange(frames)[:, None]
    return (ahead <= 0) & (ahead > -window)


class CausalAttention(Attention):
    """stream(x (B, T tokens, D), state, ctx) -> the same shape, state; keys are remembered unrotated.

    Every frame is given the keys of its own window, so that there is no mask of tokens by tokens.
    """

    def forward(self, x: Tensor, ctx: Ctx) -> Tensor:  # type: ignore[override]
        return self.stream(x, None, ctx)[0]

    def stream(self, x: Tensor, state: State | None, ctx: Ctx) -> tuple[Tensor, State]:
        q = self.norm_q(self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))  # (B, H, N, d)
        k = self.norm_k(self.k(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2))  # (B, K, N, d)
        v = self.v(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, N, d)
        if state:
            k, v = torch.cat([state["k"], k], 2), torch.cat([state["v"], v], 2)
        n, past = ctx.tokens, (k.shape[2] - q.shape[2]) // ctx.tokens
        q, turned = rotate(q, ctx.rope[:, past * n :]), rotate(k, ctx.rope)
        parts = []
        for i in range(q.shape[2] // n):
            window = slice(n * max(0, past + i + 1 - ctx.window), n * (past + i + 1))
            mask = None
            if ctx.seen is not None:
                known = torch.cat([ctx.seen > 0.5, ctx.seen.new_ones(i + 1, dtype=torch.bool)])
                mask = known.repeat_interleave(n)[None, window]
            parts.append(self.core(q[:, :, n * i : n * (i + 1)], turned[:, :, window], v[:, :, window], mask))
        y = torch.cat(parts, 2)  # (B, H, T tokens, d)
        keep = (ctx.window - 1) * n
        after = {"k": pad_past(k, keep), "v": pad_past(v, keep)} if keep else {}
        return self.out(y.transpose(1, 2).flatten(2)), after


class Block(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)); linear layers have biases."""

    def __init__(self, dim: int, heads: int, mlp: int):
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.attn = CausalAttention(dim, heads, dim // heads, bias=True)
        self.norm2 = RMSNorm(dim)
        self.mlp = MLP(dim, mlp)

    def forward(self, x: Tensor, ctx: Ctx) -> Tensor:
        x = x + self.attn(self.norm1(x), ctx)
        return x + self.mlp(self.norm2(x))

    def stream(self, x: Tensor, state: State | None, ctx: Ctx) -> tuple[Tensor, State]:
        after: State = {}
        x = x + streamed(self, "attn", self.norm1(x), state, after, ctx)
        return x + self.mlp(self.norm2(x)), after


class CausalBlocks(nn.Module):
    """``depth`` blocks on clips: (B, D, T, H, W) -> the same, whole or as a stream (nn/causal.py)."""

    def __init__(self, dim: int, depth: int, heads: int, mlp: int, window: int):
        super().__init__()
        self.head_dim, self.window = dim // heads, window
        self.blocks = nn.ModuleList(Block(dim, heads, mlp) for _ in range(depth))

    def context(self, t: int, h: int, w: int, seen: Tensor | None, x: Tensor) -> Ctx:
        """``seen``: which of the remembered frames there have been (window - 1,); None at the beginning."""
        past = 0 if seen is None else self.window - 1
        # about three eighths of the head each for height and width, the rest for time: 64 = 16 + 24 + 24
        side = self.head_dim * 3 // 16 * 2
        widths = (self.head_dim - 2 * side, side, side)
        rope = angles(grid(past + t, h, w, device=x.device), self.head_dim, widths=widths)
        return Ctx(rope, h * w, self.window, seen)

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[2:]
        ctx = self.context(t, h, w, None, x)
        tokens = x.flatten(2).transpose(1, 2)  # (B, T H W, D)
        for block in self.blocks:
            tokens = block(tokens, ctx)
        return tokens.transpose(1, 2).unflatten(2, (t, h, w))

    def stream(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        t, h, w = x.shape[2:]
        seen = None if state is None or self.window == 1 else state["seen"]
        ctx = self.context(t, h, w, seen, x)
        after: State = {}
        tokens = x.flatten(2).transpose(1, 2)  # (B, T H W, D)
        for i in range(len(self.blocks)):
            tokens = streamed(self, f"blocks.{i}", tokens, state, after, ctx)
        if self.window > 1:
            before = x.new_zeros(self.window - 1) if seen is None else seen
            after["seen"] = torch.cat([before, x.new_ones(t)])[t:]
        return tokens.transpose(1, 2).unflatten(2, (t, h, w)), after
