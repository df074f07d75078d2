"""ElasticDiT: a three-stage diffusion transformer with sparse attention and nested widths.

Tokens pass Down at their own number, Middle merged 2 x 2, and Up again at their own number, where what Down
made is added. Down and Up attend by ASSA (nn/attention/global_local.py), Middle to everything. Blocks are
PixArt's: adaLN-single, cross-attention without a norm before it, a feed-forward layer. In Middle, block i
meets what block depth - 1 - i left behind (U-ViT). Of every projection the leading rows and columns are a
smaller network (models/supernet.py); keys and values of the text keep their width.

    x (B, C, H, W), t (B,), cond.tokens (B, N, text) -> v (B, C, H, W)

Source: SnapGen++ (arXiv 2601.08303). Its depths, heads and widths are not printed: ``tiny``, ``small`` and
``full`` are our reconstruction, 0.26, 0.43 and 1.59 B parameters where the paper rounds to 0.3, 0.4 and
1.6 B; its one precise number, 429 M on ImageNet, is missed by 7 %. ``ladder_a`` to ``_d`` follow its
ablation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..nn.attention.full import Attention
from ..nn.attention.global_local import GlobalLocal, Grid, raster
from ..nn.merge import Fuse, Merge, Unmerge
from ..nn.mlp import MLP
from ..nn.modulation import SharedModulation, Table, modulate
from ..nn.norm import LayerNorm, RMSNorm
from ..nn.time import TimeEmbedding
from ..types import Cond
from .dit import Width, patches, per_block, pictures_and_text, pixels

ATTENTION = ("assa", "full", "global", "local")  # of Down and Up


@dataclass(frozen=True)
class Config:
    channels: int = 16  # of the latent
    patch: int = 2
    dim: int = 1024
    stages: tuple[int, ...] = (8, 10, 10)  # blocks in Down, Middle and Up; or of one stage alone
    head_dim: int = 64
    heads: Width = 16
    kv_heads: Width = 8
    cross_heads: Width = 16
    cross_kv_heads: int = 4  # of the text; the same at all widths
    mlp: Width = (*[4096] * 8, *[3072] * 10, *[4096] * 10)  # hidden width
    text: int = 2560  # width of cond.tokens
    features: int = 256  # sinusoids of the time embedding
    attention: str = "assa"  # of Down and Up: or full, and global or local alone, to compare with
    rows: int = 4  # of a block of the local branch
    radius: int = 1  # blocks it sees to either side
    compress_first: bool = False  # keys are rotated after they are compressed, not before
    skips: bool = True  # in Middle
    norm: str = "layer"  # of q, k and v: or rms
    side: int = 128  # of the latent, for example()

    def __post_init__(self) -> None:
        if len(self.stages) not in (1, 3):
            raise ValueError(f"stages {self.stages}: expected three numbers of blocks, or one")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention {self.attention!r}: expected {', '.join(ATTENTION)}")
        if self.norm not in ("layer", "rms"):
            raise ValueError(f"norm {self.norm!r}: expected layer or rms")

    @property
    def middle(self) -> range:
        """The numbers of Middle's blocks; of a single stage, none."""
        return range(0) if len(self.stages) == 1 else range(self.stages[0], sum(self.stages[:2]))

    @property
    def fused(self) -> int:
        """How many blocks of Middle meet an earlier one."""
        return len(self.middle) // 2 if self.skips else 0


def hidden(dim: int, stages: tuple[int, ...], ratios: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(dim * ratio for ratio, depth in zip(ratios, stages) for _ in range(depth))


def sized(base: Config, share: float) -> Config:
    """``base`` at a share of its width: of the heads and hidden units too, but not of the text's keys."""

    def scaled(width: Width) -> Any:
        if isinstance(width, tuple):
            return tuple(map(scaled, width))
        if width * share != round(width * share) or share <= 0:
            raise ValueError(f"a share of {share} leaves {width * share} of {width}, expected a whole number")
        return round(width * share)

    names = ("dim", "heads", "kv_heads", "cross_heads", "mlp")
    return replace(base, **{name: scaled(getattr(base, name)) for name in names})


SMALL = Config()
# the paper's ablation: a PixArt-like transformer, three stages, ASSA, and the last changes together
A = replace(
    SMALL,
    text=768,  # CLIP-L
    stages=(28,),
    kv_heads=1,
    mlp=3072,
    attention="full",
    skips=False,
)
B = replace(A, stages=(6, 14, 8))
TOY = Config(
    channels=4,
    dim=256,
    stages=(2, 3, 2),
    head_dim=16,
    heads=16,
    kv_heads=8,
    cross_heads=16,
    cross_kv_heads=2,
    mlp=hidden(256, (2, 3, 2), (4, 3, 4)),
    text=128,
    side=32,
)
PRESETS: dict[str, Config] = {
    "smoke": Config(
        channels=4,
        dim=32,
        stages=(1, 2, 1),
        head_dim=8,
        heads=4,
        kv_heads=2,
        cross_heads=4,
        cross_kv_heads=2,
        mlp=64,
        text=32,
        features=32,
        rows=1,
        side=8,
    ),
    # ours: 64 tokens and 16 in Middle, blocks of two rows, and small enough to ship in three widths
    "scenes": replace(TOY, dim=192, head_dim=12, mlp=hidden(192, (2, 3, 2), (4, 3, 4)), rows=2, side=16),
    "toy": TOY,
    "tiny": sized(SMALL, 0.75),
    "small": SMALL,
    "full": sized(SMALL, 2.0),
    "imagenet": replace(SMALL, text=768, side=32),
    "ladder_a": A,
    "ladder_b": B,
    "ladder_c": replace(B, attention="assa"),
    "ladder_d": replace(SMALL, text=768),
}


class Ctx(NamedTuple):
    """What every block of a stage sees beside its input."""

    modulation: Tensor  # (B, 6, D)
    grid: Grid
    text: Tensor  # (B, M, text)
    mask: Tensor  # (B, M) bool


def normed(config: Config, dim: int, affine: bool) -> nn.Module:
    """Of q, k and v: a learned scale at most."""
    return RMSNorm(dim, affine=affine) if config.norm == "rms" else LayerNorm(dim, affine=affine, bias=False)


class Block(nn.Module):
    def __init__(self, config: Config, i: int):
        super().__init__()
        c, dim = config, config.dim
        heads, kv_heads, cross, mlp = (
            per_block(width, i) for width in (c.heads, c.kv_heads, c.cross_heads, c.mlp)
        )
        self.sparse = c.attention != "full" and i not in c.middle
        self.table = Table(dim)
        self.norm1 = LayerNorm(dim, affine=False)
        self.attn: Attention
        if self.sparse:
            see = "both" if c.attention == "assa" else c.attention

            def norm(size: int, affine: bool) -> nn.Module:
                return normed(c, size, affine)

            self.attn = GlobalLocal(
                dim, heads, c.head_dim, kv_heads, norm, c.rows, c.radius, c.compress_first, see
            )
        else:
            self.attn = Attention(dim, heads, c.head_dim, kv_heads, qk_norm=False)
        self.cross = Attention(dim, cross, c.head_dim, c.cross_kv_heads, source=c.text, qk_norm=False)
        for attention in (self.attn, self.cross):
            attention.norm_q, attention.norm_k = (normed(c, c.head_dim, True) for _ in range(2))
        self.norm2 = LayerNorm(dim, affine=False)
        self.mlp = MLP(dim, mlp)

    def forward(self, x: Tensor, ctx: Ctx) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.table(ctx.modulation)
        place: Any = ctx.grid if self.sparse else ctx.grid.rope
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), place)
        x = x + self.cross(x, None, ctx.text, ctx.mask)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class ElasticDiT(nn.Module):
    BRANCHES = ("blocks.*.attn", "blocks.*.cross", "blocks.*.mlp")
    BLOCKS = "blocks"
    # what every width of a supernet has for itself: norms of q and k, and all that the time enters by
    PRIVATE = ("time.*", "modulation.*", "table.*", "blocks.*.table.*", "blocks.*.norm_[qk].*")
    EVERY: ClassVar = {
        "patchify.weight": "dim pixels",
        "patchify.bias": "dim",
        "time.up.weight": "dim features",
        "time.down.weight": "dim dim",
        "time.up.bias": "dim",
        "time.down.bias": "dim",
        "modulation.proj.weight": "6*dim dim",
        "modulation.proj.bias": "6*dim",
        "blocks.*.table.weight": "6 dim",
        "blocks.*.attn.q.weight": "heads*head_dim dim",
        "blocks.*.attn.k.weight": "kv_heads*head_dim dim",
        "blocks.*.attn.v.weight": "kv_heads*head_dim dim",
        "blocks.*.attn.out.weight": "dim heads*head_dim",
        "blocks.*.attn.norm_q.weight": "head_dim",
        "blocks.*.attn.norm_k.weight": "head_dim",
        "blocks.*.cross.q.weight": "cross_heads*head_dim dim",
        "blocks.*.cross.k.weight": "cross_kv_heads*head_dim text",
        "blocks.*.cross.v.weight": "cross_kv_heads*head_dim text",
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
    COARSE: ClassVar = {
        "blocks.*.attn.compress_k.weight": "head_dim head_dim 2 2",
        "blocks.*.attn.compress_k.bias": "head_dim",
        "blocks.*.attn.compress_v.weight": "head_dim head_dim 2 2",
        "blocks.*.attn.compress_v.bias": "head_dim",
    }
    GATE: ClassVar = {"blocks.*.attn.gate.weight": "heads dim", "blocks.*.attn.gate.bias": "heads"}
    MERGE: ClassVar = {
        "merge.weight": "dim 4*dim",
        "merge.bias": "dim",
        "unmerge.weight": "4*dim dim",
        "unmerge.bias": "4*dim",
    }
    FUSE: ClassVar = {"fuse.*.weight": "dim dim+dim"}

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim, pixels = config.dim, config.channels * config.patch**2
        self.patchify = nn.Linear(pixels, dim)
        self.time = TimeEmbedding(dim, config.features)
        self.modulation = SharedModulation(dim, 6)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(sum(config.stages)))
        if config.middle:
            self.merge, self.unmerge = Merge(dim), Unmerge(dim)
        self.fuse = nn.ModuleList(Fuse(dim) for _ in range(config.fused))
        self.norm = LayerNorm(dim, affine=False)
        self.table = Table(dim, 2)
        self.unpatchify = nn.Linear(dim, pixels)
        self.reset_parameters()

    @property
    def AXES(self) -> dict[str, str]:
        """By what there is: see nn/axes.py."""
        c = self.config
        sparse = c.attention != "full"
        coarse = self.COARSE if sparse and c.attention != "local" else {}
        gate = self.GATE if c.attention == "assa" else {}
        return {
            **self.EVERY,
            **coarse,
            **gate,
            **(self.MERGE if c.middle else {}),
            **(self.FUSE if c.fused else {}),
        }

    def reset_parameters(self) -> None:
        """Cross-attention and the output start at zero."""
        blocks: Any = self.blocks
        for block in blocks:
            nn.init.zeros_(block.cross.out.weight)
        nn.init.zeros_(self.unpatchify.weight)
        nn.init.zeros_(self.unpatchify.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        c = self.config
        h, w = x.shape[-2] // c.patch, x.shape[-1] // c.patch
        temb = self.time(t)  # (B, D)
        shared = self.modulation(temb)
        fine = Ctx(shared, raster(h, w, c.head_dim, x.device), cond.tokens, cond.mask)
        y = self.patchify(patches(x, c.patch))  # (B, N, D)
        if c.middle:
            if h % 2 or w % 2:
                raise ValueError(f"{h} x {w} tokens cannot be merged by two; sides must be even")
            for block in self.blocks[: c.middle.start]:
                y = block(y, fine)
            coarse = fine._replace(grid=raster(h // 2, w // 2, c.head_dim, x.device))
            y = y + self.unmerge(self.centre(self.merge(y, h, w), coarse), h, w)
            for block in self.blocks[c.middle.stop :]:
                y = block(y, fine)
        else:
            for block in self.blocks:
                y = block(y, fine)
        shift, scale = self.table(temb[:, None])
        y = self.unpatchify(modulate(self.norm(y), shift, scale))  # (B, N, C p p)
        return pixels(y, h, w, c.patch)

    def centre(self, y: Tensor, ctx: Ctx) -> Tensor:
        """Middle: (B, N / 4, D) -> the same."""
        kept: list[Tensor] = []
        middle = self.config.middle
        first = len(middle) - self.config.fused
        for i, number in enumerate(middle):
            if i >= first:
                y = self.fuse[i - first](y, kept.pop())
            y = self.blocks[number](y, ctx)
            if i < self.config.fused:
                kept.append(y)
        return y

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Cond]:
        """Inputs that tests, bench and exporters use."""
        return pictures_and_text(self.config, batch, device)


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""
    d, pix, h = c.dim, c.channels * c.patch**2, c.head_dim
    total = 2 * d * pix + d + pix + 2 * d  # both ends, and the last table
    total += c.features * d + d + d * d + d + 6 * d * d + 6 * d  # time and modulation
    if c.middle:
        total += 8 * d * d + 5 * d
    total += c.fused * 2 * d * d
    for i in range(sum(c.stages)):
        heads, kv, cross, mlp = (per_block(w, i) for w in (c.heads, c.kv_heads, c.cross_heads, c.mlp))
        total += 2 * d * h * (heads + kv) + 2 * h
        total += 2 * d * h * cross + 2 * c.text * h * c.cross_kv_heads + 2 * h
        total += 2 * d * mlp + mlp + d + 6 * d
        if i not in c.middle:
            if c.attention in ("assa", "global"):
                total += 2 * (4 * h * h + h)
            if c.attention == "assa":
                total += d * heads + heads
    return total
