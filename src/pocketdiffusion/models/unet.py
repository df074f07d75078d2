"""UNet: SnapGen's denoiser, a thin SDXL U-Net with separable convolutions.

Separable convolutions with expansion; self-attention (multi-query, QK-norm, 2-D RoPE on the grid at hand) at
the lowest level alone; cross-attention to the text and a GEGLU of three widths from the first level on; time
and pooled text are added within the residual blocks.

    x (B, C, H, W), t (B,), cond.tokens (B, N, text), cond.pooled (B, pooled) -> v (B, C, H, W)

Source: SnapGen (Hu et al. 2024, arXiv 2412.09619), which publishes no width table. ``snapgen`` is a
reconstruction: inner widths of twice the output, separable samplers and 2304-wide text land on the published
379 M and, for ImageNet, near the 372 M (370.3 M). But the relative changes of the paper's ablation are met by
inner widths of twice the *input* (``s_in``, ``ladder_*``), which end elsewhere: no one rule gives both, and
the recipe snapgen_ladder prints the gap. With other settings the same class is SDXL's own U-Net.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn import rope
from ..nn.attention.full import Attention
from ..nn.conv import SeparableConv, UpNearest
from ..nn.mlp import GEGLU
from ..nn.norm import LayerNorm, RMSNorm
from ..nn.residual import ACTIVATIONS, TimedResBlock
from ..nn.time import TimeEmbedding
from ..types import Cond
from .unet_config import PRESETS as PRESETS
from .unet_config import Config, Slot, slots
from .unet_count import count as count


class Ctx(NamedTuple):
    """What every block sees beside its input."""

    temb: Tensor  # (B, temb), activated
    rope: Tensor | None  # (2, N, head_dim / 2), of the block's own grid
    text: Tensor  # (B, M, D)
    mask: Tensor  # (B, M) bool


class Block(nn.Module):
    """A transformer block on tokens (B, N, D): self-attention where the level has it, text, feed-forward."""

    def __init__(self, config: Config, i: int, level: int):
        super().__init__()
        c, dim, kv = config, config.dims[level], config.kv_heads or None
        assert isinstance(c.heads, tuple) and isinstance(c.cross_heads, tuple) and isinstance(c.mlp, tuple)
        self.attn: Attention | None = None
        self.cross: Attention | None = None
        if c.self_attention[level]:
            self.norm1 = LayerNorm(dim)
            self.attn = Attention(dim, c.heads[i], c.head_dim, kv, None, c.qk_norm, out_bias=True)
        if c.cross_attention[level]:
            source = c.context or c.text
            self.norm2 = LayerNorm(dim)
            self.cross = Attention(dim, c.cross_heads[i], c.head_dim, kv, source, c.qk_norm, out_bias=True)
        self.norm3 = LayerNorm(dim)
        self.mlp = GEGLU(dim, c.mlp[i])

    def forward(self, x: Tensor, ctx: Ctx) -> Tensor:
        if self.attn is not None:
            x = x + self.attn(self.norm1(x), ctx.rope)
        if self.cross is not None:
            x = x + self.cross(self.norm2(x), None, ctx.text, ctx.mask)
        return x + self.mlp(self.norm3(x))


class Transformer(nn.Module):
    """x + leave(blocks(enter(norm(x)))), with a map's positions as tokens; the blocks are the model's."""

    def __init__(self, dim: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.enter = nn.Linear(dim, dim)
        self.leave = nn.Linear(dim, dim)

    def forward(self, x: Tensor, blocks: Sequence[nn.Module], ctx: Ctx) -> Tensor:
        h = self.enter(self.norm(x).flatten(2).transpose(1, 2))  # (B, H W, C)
        for block in blocks:
            h = block(h, ctx)
        return x + self.leave(h).transpose(1, 2).reshape(x.shape)


def down(width: int, separable: bool) -> nn.Module:
    if separable:
        return SeparableConv(width, width, stride=2, bias=True)
    return nn.Conv2d(width, width, 3, stride=2, padding=1)


def up(width: int, separable: bool) -> nn.Module:
    if separable:
        return UpNearest(width, width)
    return nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(width, width, 3, padding=1))


class UNet(nn.Module):
    BRANCHES = ("blocks.*.attn", "blocks.*.cross", "blocks.*.mlp", "resnets.*.conv")
    BLOCKS = "blocks"

    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config.resolved()
        self.slots = slots(c)
        assert isinstance(c.mid, tuple)
        act = ACTIVATIONS[c.activation]
        self.time = TimeEmbedding(c.temb, c.features, c.activation)
        self.pooled: nn.Module | None = None
        self.project: nn.Module | None = None
        if c.pooled:
            self.pooled = nn.Sequential(nn.Linear(c.pooled, c.temb), act(), nn.Linear(c.temb, c.temb))
        if c.context:
            self.project = nn.Sequential(nn.Linear(c.text, c.context), RMSNorm(c.context))
        self.enter = nn.Conv2d(c.channels, c.dims[0], 3, padding=1)
        self.resnets = nn.ModuleList(residual(c, s, mid) for s, mid in zip(self.slots, c.mid))
        self.transformers = nn.ModuleList(
            Transformer(c.dims[s.level], c.groups) if s.transformer else nn.Identity() for s in self.slots
        )
        self.blocks = nn.ModuleList(Block(c, i, s.level) for s in self.slots for i in s.blocks)
        self.downs = nn.ModuleList(down(width, c.separable_samplers) for width in c.dims[:-1])
        self.ups = nn.ModuleList(up(width, c.separable_samplers) for width in c.dims[1:])
        self.norm = nn.GroupNorm(c.groups, c.dims[0])
        self.act = act()
        self.leave = nn.Conv2d(c.dims[0], c.channels, 3, padding=1)
        self.reset_parameters()

    @property
    def AXES(self) -> dict[str, str]:
        return axes(self.config)

    def reset_parameters(self) -> None:
        """Residual convolutions and the output start at zero."""
        for resnet in self.resnets:
            assert isinstance(resnet, TimedResBlock)
            resnet.conv.silence()
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        c, ctx = self.config, self.contexts(x, t, cond)
        y = self.enter(x)
        skips, places = [y], iter(range(len(self.slots)))
        for level in range(len(c.dims)):
            for _ in range(c.per_level):
                y = self.slot(next(places), y, ctx)
                skips.append(y)
            if level < len(self.downs):
                y = self.downs[level](y)
                skips.append(y)
        y = self.slot(next(places), y, ctx)
        y = self.slot(next(places), y, ctx)
        for level in reversed(range(len(c.dims))):
            for _ in range(c.per_level + 1):
                y = self.slot(next(places), torch.cat([y, skips.pop()], 1), ctx)
            if level:
                y = self.ups[level - 1](y)
        return self.leave(self.act(self.norm(y)))

    def contexts(self, x: Tensor, t: Tensor, cond: Cond) -> list[Ctx]:
        """One per level: they differ in their grids."""
        c, (h, w) = self.config, x.shape[-2:]
        temb = self.time(t)  # (B, temb)
        if self.pooled is not None:
            temb = temb + self.pooled(cond.pooled)
        text = cond.tokens if self.project is None else self.project(cond.tokens)
        found = []
        for level, attends in enumerate(c.self_attention):
            table = None
            if c.rope and attends:
                table = rope.angles(rope.grid(h >> level, w >> level, device=x.device), c.head_dim)
            found.append(Ctx(self.act(temb), table, text, cond.mask))
        return found

    def slot(self, i: int, y: Tensor, contexts: Sequence[Ctx]) -> Tensor:
        """A residual block and its transformer."""
        slot, ctx = self.slots[i], contexts[self.slots[i].level]
        y = self.resnets[i](y, ctx.temb)
        blocks = [self.blocks[number] for number in slot.blocks]
        return self.transformers[i](y, blocks, ctx) if slot.transformer else y

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Cond]:
        """Inputs that tests, bench and exporters use."""
        g, c = torch.Generator().manual_seed(0), self.config
        x = torch.randn(batch, c.channels, c.side, c.side, generator=g)
        tokens = torch.randn(batch, 12, c.text, generator=g)
        mask = torch.arange(12)[None] < torch.tensor([12, 7])[torch.arange(batch) % 2, None]
        pooled = torch.randn(batch, c.pooled, generator=g) if c.pooled else None
        t = torch.linspace(0.9, 0.1, batch)
        return x.to(device), t.to(device), Cond(tokens, mask, pooled).to(device)


def residual(c: Config, slot: Slot, mid: int) -> TimedResBlock:
    enters, leaves = sum(c.dims[level] for level in slot.enters), c.dims[slot.level]
    # by levels and not by widths, which pruning may make equal
    skip = slot.enters != (slot.level,)
    return TimedResBlock(enters, mid, leaves, c.temb, c.separable, c.groups, c.activation, skip)


def axes(c: Config) -> dict[str, str]:
    """nn/axes.py's table. It is the config's, since every slot has its own widths."""
    table = dict(ends(c))
    for i, slot in enumerate(slots(c)):
        name, here, mid = f"resnets.{i}", f"dims.{slot.level}", f"mid.{i}"
        enters = "+".join(f"dims.{level}" for level in slot.enters)
        table |= {f"{name}.norm.{k}": enters for k in ("weight", "bias")}
        table |= {f"{name}.conv.norm.{k}": mid for k in ("weight", "bias")}
        table |= {f"{name}.conv.time.weight": f"{mid} temb", f"{name}.conv.time.bias": mid}
        table |= conv(f"{name}.conv.conv1", enters, mid, c.separable, bias=not c.separable)
        table |= conv(f"{name}.conv.conv2", mid, here, c.separable, bias=not c.separable)
        if slot.enters != (slot.level,):
            table |= {f"{name}.skip.weight": f"{here} {enters} 1 1", f"{name}.skip.bias": here}
        if slot.transformer:
            table |= {f"transformers.{i}.norm.{k}": here for k in ("weight", "bias")}
            for linear in ("enter", "leave"):
                table[f"transformers.{i}.{linear}.weight"] = f"{here} {here}"
                table[f"transformers.{i}.{linear}.bias"] = here
        for number in slot.blocks:
            table |= dict(inside(c, number, slot.level))
    for i in range(len(c.dims) - 1):
        before, after = f"dims.{i}", f"dims.{i + 1}"
        table |= conv(f"downs.{i}", before, before, c.separable_samplers)
        table |= conv(f"ups.{i}.{'conv' if c.separable_samplers else 1}", after, after, c.separable_samplers)
    return table


def conv(name: str, enters: str, leaves: str, separable: bool, bias: bool = True) -> dict[str, str]:
    if not separable:
        return {f"{name}.weight": f"{leaves} {enters} 3 3", f"{name}.bias": leaves}
    found = {f"{name}.depthwise.weight": f"{enters} 1 3 3", f"{name}.depthwise.bias": enters}
    return (
        found
        | {f"{name}.pointwise.weight": f"{leaves} {enters} 1 1"}
        | ({f"{name}.pointwise.bias": leaves} if bias else {})
    )


def ends(c: Config) -> Iterator[tuple[str, str]]:
    """All but residual blocks, transformers and samplers."""
    linears = {"time.up": "temb features", "time.down": "temb temb"}
    if c.pooled:
        linears |= {"pooled.0": "temb pooled", "pooled.2": "temb temb"}
    if c.context:
        linears |= {"project.0": "context text"}
        yield "project.1.weight", "context"
    linears |= {"enter": "dims.0 channels 3 3", "leave": "channels dims.0 3 3"}
    for name, words in linears.items():
        yield f"{name}.weight", words
        yield f"{name}.bias", words.split()[0]
    yield from ((f"norm.{k}", "dims.0") for k in ("weight", "bias"))


def inside(c: Config, i: int, level: int) -> Iterator[tuple[str, str]]:
    """A transformer block."""
    dim, name = f"dims.{level}", f"blocks.{i}"
    source = "context" if c.context else "text"
    for branch, heads, other, norm, there in (
        ("attn", f"heads.{i}", dim, "norm1", c.self_attention[level]),
        ("cross", f"cross_heads.{i}", source, "norm2", c.cross_attention[level]),
    ):
        if not there:
            continue
        inner, shared = f"{heads}*head_dim", f"{c.kv_heads or heads}*head_dim"
        yield f"{name}.{branch}.q.weight", f"{inner} {dim}"
        yield from ((f"{name}.{branch}.{k}.weight", f"{shared} {other}") for k in "kv")
        yield f"{name}.{branch}.out.weight", f"{dim} {inner}"
        yield f"{name}.{branch}.out.bias", dim
        yield from ((f"{name}.{norm}.{k}", dim) for k in ("weight", "bias"))
        if c.qk_norm:
            yield from ((f"{name}.{branch}.norm_{k}.weight", "head_dim") for k in "qk")
    yield from ((f"{name}.norm3.{k}", dim) for k in ("weight", "bias"))
    for k, words in {"gate": f"mlp.{i} {dim}", "up": f"mlp.{i} {dim}", "down": f"{dim} mlp.{i}"}.items():
        yield f"{name}.mlp.{k}.weight", words
        yield f"{name}.mlp.{k}.bias", words.split()[0]
