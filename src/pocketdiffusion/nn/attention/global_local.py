"""Sparse self-attention (ASSA): coarse keys from everywhere, fine ones from nearby, gated.

    q, k, v = norm_q(W_q x), norm_k(W_k x), norm_v(W_v x)           q and k with RoPE
    global   softmax(q k_c^T / sqrt(d)) v_c        k_c, v_c = 2 x 2 convolutions of stride 2 over the grid
    local    softmax(q_b [k]_N(b)^T / sqrt(d)) [v]_N(b)      tokens in blocks of rows, N(b) = b - r .. b + r
    y        W_o (g * global + (1 - g) * local)    g = sigmoid(W_g x + b_g), one per token and query head

Source: SnapGen++ (arXiv 2601.08303), adaptive sparse self-attention, eq. 1 to 3: 16 blocks of 4 rows each and
r = 1 on 64 x 64 tokens, which is 43 % of full attention's multiply-accumulates. Ours: a block keeps its four
rows whatever the grid, so that pictures of any size go through; the convolutions are shared by the heads and
begin as an average; the gate begins at one half. Keys are rotated before they are compressed, as the paper's
figure draws it, or after, at the centres of their cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rope import angles, grid, rotate
from .full import Attention, Core

# (dim, affine) -> a norm over the last dimension
NormOf = Callable[[int, bool], nn.Module]


class Grid(NamedTuple):
    """What tokens know of their places, made once for all blocks of a stage."""

    rope: Tensor  # (2, H W, head_dim / 2)
    centres: Tensor  # (2, ceil(H / 2) ceil(W / 2), head_dim / 2), of the cells of 2 x 2
    height: int
    width: int


def raster(h: int, w: int, head_dim: int, device: torch.device | str = "cpu") -> Grid:
    """Places of h x w tokens in units of one token."""
    centres = grid((h + 1) // 2, (w + 1) // 2, device=device) * 2 + 0.5
    return Grid(angles(grid(h, w, device=device), head_dim), angles(centres, head_dim), h, w)


def visible(n: int, size: int, radius: int, device: torch.device | str = "cpu") -> Tensor:
    """(n, n) bool: which tokens see each other, in blocks of ``size`` tokens."""
    block = torch.arange(n, device=device) // size
    return (block[:, None] - block).abs() <= radius


def naive_local(core: nn.Module, q: Tensor, k: Tensor, v: Tensor, size: int, radius: int) -> Tensor:
    """The local branch with a dense mask."""
    return core(q, k, v, visible(q.shape[2], size, radius, q.device)[None, None])


def looped(core: nn.Module, q: Tensor, k: Tensor, v: Tensor, size: int, radius: int) -> Tensor:
    """Block by block, on slices: no mask, nothing is computed that is not used."""
    parts = []
    for start in range(0, q.shape[2], size):
        near = slice(max(0, start - radius * size), start + (radius + 1) * size)
        parts.append(core(q[:, :, start : start + size], k[:, :, near], v[:, :, near], None))
    return torch.cat(parts, 2)


def gathered(core: nn.Module, q: Tensor, k: Tensor, v: Tensor, size: int, radius: int) -> Tensor:
    """All blocks in one call, as rows of the batch: keys are gathered by shifted views."""
    b, _, n, _ = q.shape
    blocks = -(-n // size)
    more, around = blocks * size - n, radius * size

    def windows(x: Tensor) -> Tensor:
        """(B, K, n, d) -> (B blocks, K, (2 r + 1) size, d)."""
        padded = F.pad(x, (0, 0, around, around + more))
        return padded.unfold(2, size + 2 * around, size).permute(0, 2, 1, 4, 3).flatten(0, 1)

    # which keys of a window are there
    places = torch.arange(-around, blocks * size + around, device=q.device)
    there = ((places >= 0) & (places < n)).unfold(0, size + 2 * around, size)  # (blocks, keys)
    mask = there[None].expand(b, -1, -1).flatten(0, 1)[:, None, None]
    rows = F.pad(q, (0, 0, 0, more)).unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)
    y = core(rows, windows(k), windows(v), mask)  # (B blocks, H, size, d)
    return y.unflatten(0, (b, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :n]


class Local(nn.Module):
    """(q (B, H, N, d), k, v (B, K, N, d), tokens of a block) -> (B, H, N, d); the core is replaceable.

    One call for all blocks on a GPU; on a CPU, and wherever a graph is exported, a call for each.
    """

    def __init__(self, radius: int):
        super().__init__()
        self.radius = radius
        self.core = Core()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
        way = gathered if q.device.type == "cuda" else looped
        return way(self.core, q, k, v, size, self.radius)


class Compress(nn.Conv2d):
    """(B, K, H W, d) -> (B, K, ceil(H / 2) ceil(W / 2), d): cells of 2 x 2, alike in all heads.

    Begins as an average. Of an odd side the last row or column counts twice.
    """

    def __init__(self, head_dim: int):
        super().__init__(head_dim, head_dim, 2, stride=2)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.in_channels)[:, :, None, None].expand_as(self.weight) / 4)
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:  # type: ignore[override]
        b = x.shape[0]
        y = x.flatten(0, 1).transpose(1, 2).unflatten(2, (h, w))  # (B K, d, H, W)
        if h % 2 or w % 2:
            y = F.pad(y, (0, w % 2, 0, h % 2), mode="replicate")
        return super().forward(y).flatten(2).transpose(1, 2).unflatten(0, (b, -1))


class GlobalLocal(Attention):
    """forward(x (B, H W, D), Grid) -> (B, H W, D).

    ``rows``: of a block; ``radius``: blocks seen to either side; ``compress_first``: keys are compressed,
    then normed and rotated. ``norm``: what makes the norms of q, k and v. ``see``: "both" branches, or one of
    them alone, "global" or "local", to compare with.
    """

    rotate = staticmethod(rotate)  # exporters have their own

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        kv_heads: int,
        norm: NormOf,
        rows: int = 4,
        radius: int = 1,
        compress_first: bool = False,
        see: str = "both",
    ):
        super().__init__(dim, heads, head_dim, kv_heads, qk_norm=False)
        if see not in ("both", "global", "local"):
            raise ValueError(f"see {see!r}: expected both, global or local")
        self.rows, self.compress_first, self.see = rows, compress_first, see
        self.norm_q, self.norm_k = norm(head_dim, True), norm(head_dim, True)
        self.norm_v = norm(head_dim, False)
        if see != "local":
            self.compress_k, self.compress_v = Compress(head_dim), Compress(head_dim)
        if see != "global":
            self.local = Local(radius)
        if see == "both":
            self.gate = nn.Linear(dim, heads)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def everywhere(self, q: Tensor, k: Tensor, v: Tensor, ctx: Grid) -> Tensor:
        """The global branch; k and v are as projected, q is ready."""
        h, w = ctx.height, ctx.width
        if self.compress_first:
            k = self.rotate(self.norm_k(self.compress_k(k, h, w)), ctx.centres)
            v = self.norm_v(self.compress_v(v, h, w))
        else:
            k = self.compress_k(self.rotate(self.norm_k(k), ctx.rope), h, w)
            v = self.compress_v(self.norm_v(v), h, w)
        return self.core(q, k, v, None)

    def nearby(self, q: Tensor, k: Tensor, v: Tensor, ctx: Grid) -> Tensor:
        """The local branch, of the same."""
        k, v = self.rotate(self.norm_k(k), ctx.rope), self.norm_v(v)
        return self.local(q, k, v, self.rows * ctx.width)

    def forward(self, x: Tensor, ctx: Grid) -> Tensor:  # type: ignore[override]
        q = self.norm_q(self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))  # (B, H, N, d)
        k = self.k(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, N, d)
        v = self.v(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)  # (B, K, N, d)
        q = self.rotate(q, ctx.rope)
        if self.see == "global":
            y = self.everywhere(q, k, v, ctx)
        elif self.see == "local":
            y = self.nearby(q, k, v, ctx)
        else:
            g = self.gate(x).sigmoid().transpose(1, 2)[..., None]  # (B, H, N, 1)
            y = g * self.everywhere(q, k, v, ctx) + (1 - g) * self.nearby(q, k, v, ctx)
        return self.out(y.transpose(1, 2).flatten(2))
