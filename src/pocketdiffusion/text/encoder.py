"""TextTransformer: a small bidirectional text encoder, trained with the denoiser.

    forward(ids (B, N), mask (B, N)) -> Cond(tokens (B, N, D), mask, pooled (B, D))

``embed(texts) -> Cond`` tokenises first. Positions are rotary; the pooled vector is the mean of real tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nn import rope
from ..nn.attention.full import Attention
from ..nn.mlp import MLP
from ..nn.norm import LayerNorm
from ..types import Cond
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Config:
    vocab: int = 512
    dim: int = 128
    depth: int = 2
    heads: int = 4
    mlp: int = 512
    length: int = 32  # tokens at most


PRESETS: dict[str, Config] = {
    "smoke": Config(dim=32, depth=1, heads=2, mlp=64),
    "scenes": Config(),
}


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.norm1 = LayerNorm(config.dim)
        self.attn = Attention(config.dim, config.heads, config.dim // config.heads)
        self.norm2 = LayerNorm(config.dim)
        self.mlp = MLP(config.dim, config.mlp)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), table, None, mask)
        return x + self.mlp(self.norm2(x))


class TextTransformer(nn.Module):
    def __init__(self, config: Config, tokenizer: Tokenizer | None = None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.tokens = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Cond:
        positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)[:, None]
        table = rope.angles(positions, self.config.dim // self.config.heads)
        x = self.tokens(ids)  # (B, N, D)
        for block in self.blocks:
            x = block(x, table, mask)
        x = self.norm(x)
        weight = mask[..., None].to(x.dtype)
        return Cond(x, mask, pooled=(x * weight).sum(1) / weight.sum(1))

    def embed(self, texts: Sequence[str] | Cond) -> Cond:
        """What types.TextEncoder asks for; embeddings that were cached pass through."""
        if isinstance(texts, Cond):
            return texts
        assert self.tokenizer is not None, "this text encoder was built without a tokenizer"
        ids, mask = self.tokenizer(texts)
        device = self.tokens.weight.device
        return self(ids.to(device), mask.to(device))

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Token numbers and mask that tests, bench and exporters use."""
        n = self.config.length
        ids = torch.randint(0, self.config.vocab, (batch, n), generator=torch.Generator().manual_seed(0))
        mask = torch.arange(n)[None] < torch.tensor([n, n // 2])[torch.arange(batch) % 2, None]
        return ids.to(device), mask.to(device)


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""
    d = c.dim
    attention = 4 * d * d + 2 * (d // c.heads)
    block = 4 * d + attention + 2 * d * c.mlp + c.mlp + d
    return c.vocab * d + c.depth * block + 2 * d
