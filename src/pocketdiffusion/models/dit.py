"""DiT: a text-conditioned diffusion transformer for pictures, PixArt style.

Patches become tokens; every block is self-attention with 2-D RoPE and QK-norm, cross-attention to the text,
and a feed-forward layer; the time enters through adaLN-single. PixArt-alpha (Chen et al. 2023) has fixed
sinusoidal positions, no QK-norm and biases in attention; those three differ here.

    x (B, C, H, W), t (B,), cond.tokens (B, N, text) -> v (B, C, H, W)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..nn import rope
from ..nn.attention.full import Attention
from ..nn.mlp import MLP
from ..nn.modulation import SharedModulation, Table, modulate
from ..nn.norm import LayerNorm
from ..nn.time import TimeEmbedding
from ..types import Cond

Width = int | tuple[int, ...]


@dataclass(frozen=True)
class Config:
    channels: int = 4  # of the latent
    patch: int = 2
    dim: int = 256
    depth: int = 5
    head_dim: int = 32
    heads: Width = 8
    cross_heads: Width = 8
    mlp: Width = 768  # hidden width
    text: int = 128  # width of cond.tokens
    features: int = 256  # sinusoids of the time embedding
    side: int = 16  # of the latent, for example()


PRESETS: dict[str, Config] = {
    "smoke": Config(dim=64, depth=2, heads=2, cross_heads=2, mlp=128, text=32, side=8),
    "scenes": Config(),
    # dimensions of PixArt-alpha-XL/2, 0.6 B, with T5-XXL tokens
    "pixart_xl": Config(
        dim=1152, depth=28, head_dim=72, heads=16, cross_heads=16, mlp=4608, text=4096, side=64
    ),
}


class Ctx(NamedTuple):
    """What every block sees beside its input."""

    modulation: Tensor  # (B, 6, D)
    rope: Tensor  # (2, N, head_dim / 2)
    text: Tensor  # (B, M, D)
    mask: Tensor  # (B, M) bool


def per_block(value: Width, block: int) -> int:
    return value[block] if isinstance(value, tuple) else value


class Block(nn.Module):
    def __init__(self, config: Config, i: int):
        super().__init__()
        dim = config.dim
        self.table = Table(dim)
        self.norm1 = LayerNorm(dim, affine=False)
        self.attn = Attention(dim, per_block(config.heads, i), config.head_dim)
        self.norm2 = LayerNorm(dim)
        self.cross = Attention(dim, per_block(config.cross_heads, i), config.head_dim, source=dim)
        self.norm3 = LayerNorm(dim, affine=False)
        self.mlp = MLP(dim, per_block(config.mlp, i))

    def forward(self, x: Tensor, ctx: Ctx) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.table(ctx.modulation)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), ctx.rope)
        x = x + self.cross(self.norm2(x), None, ctx.text, ctx.mask)
        return x + gate2 * self.mlp(modulate(self.norm3(x), shift2, scale2))


class DiT(nn.Module):
    BRANCHES = ("blocks.*.attn", "blocks.*.cross", "blocks.*.mlp")
    BLOCKS = "blocks"
    AXES: ClassVar = {
        "patchify.weight": "dim pixels",
        "patchify.bias": "dim",
        "time.up.weight": "dim features",
        "time.down.weight": "dim dim",
        "time.up.bias": "dim",
        "time.down.bias": "dim",
        "modulation.proj.weight": "6*dim dim",
        "modulation.proj.bias": "6*dim",
        "text.up.weight": "dim text",
        "text.down.weight": "dim dim",
        "text.up.bias": "dim",
        "text.down.bias": "dim",
        "blocks.*.table.weight": "6 dim",
        "blocks.*.attn.q.weight": "heads*head_dim dim",
        "blocks.*.attn.k.weight": "heads*head_dim dim",
        "blocks.*.attn.v.weight": "heads*head_dim dim",
        "blocks.*.attn.out.weight": "dim heads*head_dim",
        "blocks.*.attn.norm_q.weight": "head_dim",
        "blocks.*.attn.norm_k.weight": "head_dim",
        "blocks.*.norm2.weight": "dim",
        "blocks.*.norm2.bias": "dim",
        "blocks.*.cross.q.weight": "cross_heads*head_dim dim",
        "blocks.*.cross.k.weight": "cross_heads*head_dim dim",
        "blocks.*.cross.v.weight": "cross_heads*head_dim dim",
        "blocks.*.cross.out.weight": "dim cross_heads*head_dim",
        "blocks.*.cross.norm_q.weight": "head_dim",
        "blocks.*.cross.norm_k.weight": "head_dim",
        "blocks.*.mlp.up.weight": "mlp dim",
        "blocks.*.mlp.up.bias": "mlp",
        "blocks.*.mlp.down.weight": "dim mlp",
        "blocks.*.mlp.down.bias": "dim",
        "table.weight": "2 dim",
        "unpatchify.weight": "pixels dim",
        "unpatchify.bias": "pixels",
    }

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim, pixels = config.dim, config.channels * config.patch**2
        self.patchify = nn.Linear(pixels, dim)
        self.time = TimeEmbedding(dim, config.features)
        self.modulation = SharedModulation(dim, 6)
        self.text = MLP(config.text, dim, dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm = LayerNorm(dim, affine=False)
        self.table = Table(dim, 2)
        self.unpatchify = nn.Linear(dim, pixels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Cross-attention and the output start at zero; the adaLN tables keep their own scale."""
        blocks: Any = self.blocks
        for block in blocks:
            nn.init.zeros_(block.cross.out.weight)
        nn.init.zeros_(self.unpatchify.weight)
        nn.init.zeros_(self.unpatchify.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        h, w = x.shape[-2] // self.config.patch, x.shape[-1] // self.config.patch
        temb = self.time(t)  # (B, D)
        positions = rope.grid(h, w, device=x.device)
        ctx = Ctx(
            self.modulation(temb),
            rope.angles(positions, self.config.head_dim),
            self.text(cond.tokens),
            cond.mask,
        )
        y = self.patchify(patches(x, self.config.patch))  # (B, N, D)
        for block in self.blocks:
            y = block(y, ctx)
        shift, scale = self.table(temb[:, None])
        y = self.unpatchify(modulate(self.norm(y), shift, scale))  # (B, N, C p p)
        return pixels(y, h, w, self.config.patch)

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Cond]:
        """Inputs that tests, bench and exporters use."""
        return pictures_and_text(self.config, batch, device)


def pictures_and_text(config: Any, batch: int, device: torch.device | str) -> tuple[Tensor, Tensor, Cond]:
    """Seeded inputs by the config's channels, side and width of text; captions of two lengths."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, config.channels, config.side, config.side, generator=g)
    tokens = torch.randn(batch, 12, config.text, generator=g)
    mask = torch.arange(12)[None] < torch.tensor([12, 7])[torch.arange(batch) % 2, None]
    t = torch.linspace(0.9, 0.1, batch)
    return x.to(device), t.to(device), Cond(tokens, mask).to(device)


def patches(x: Tensor, p: int) -> Tensor:
    """(B, C, H, W) -> (B, H/p W/p, C p p)."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * p * p)


def pixels(y: Tensor, h: int, w: int, p: int) -> Tensor:
    """(B, h w, C p p) -> (B, C, h p, w p)."""
    b, _, k = y.shape
    return y.reshape(b, h, w, k // p**2, p, p).permute(0, 3, 1, 4, 2, 5).reshape(b, k // p**2, h * p, w * p)


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""
    d, pix = c.dim, c.channels * c.patch**2
    ends = pix * d + d + d * pix + pix + 2 * d
    time = c.features * d + d + d * d + d + 6 * d * d + 6 * d
    text = c.text * d + d + d * d + d
    total = ends + time + text
    for i in range(c.depth):
        inner, cross, mlp = (per_block(w, i) for w in (c.heads, c.cross_heads, c.mlp))
        attention = 4 * d * (inner + cross) * c.head_dim + 4 * c.head_dim
        total += 6 * d + attention + 2 * d + 2 * d * mlp + mlp + d
    return total
