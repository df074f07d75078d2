"""Sparse attention (ASSA) beside full attention: time, memory, operations, growth.

    pocket train assa_bench                                         # 1,024 to 16,384 tokens, one layer
    pocket train assa_bench --device cuda --bf16 --peers sdpa flex
    pocket train snapgen_speed --models ElasticDiT:small pixart-alpha-1024 sana-1.6b     # whole denoisers

One layer with its projections, 16 heads of 64 and 8 key-value heads, batch 1, random weights. Peers:
``sdpa`` is torch's own softmax attention to everything (flash attention where the device has it), and on a
GPU ``flex`` is FlexAttention with the local branch's neighbourhood as its mask. ``looped`` and ``gathered``
are the two ways to compute the local branch, without projections (``core``). MACs are counted, times are
medians of one run: compare within it only. Ends with OUT/assa.json and OUT/growth.svg.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.cost import cost
from ..bench.latency import latency
from ..bench.memory import peak
from ..bench.table import text
from ..device import choose
from ..disk import renamed
from ..eval.plots import lines
from ..models.elastic_dit import PRESETS, normed
from ..nn.attention import global_local
from ..nn.attention.full import Attention, Core
from ..nn.attention.global_local import GlobalLocal, Grid, raster, visible

LAYER = PRESETS["small"]
PEERS = ("sdpa", "flex")
# in the plot
SHOWN = {
    "assa": "sparse (ASSA)",
    "sdpa": "full",
    "core looped": "local branch alone, looped",
    "core gathered": "... gathered",
    "core flex": "... FlexAttention",
}


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/assa_bench")
    sides: tuple[int, ...] = (32, 64, 128)  # of the grid of tokens
    peers: tuple[str, ...] = ("sdpa",)
    runs: int = 5
    threads: int | None = None
    memory: bool = True  # peak memory (on a CPU in a process of its own)
    bf16: bool = False
    device: str = "cpu"


class Everything(Attention):
    """Full attention, called as GlobalLocal is."""

    def forward(self, x: Tensor, ctx: Grid) -> Tensor:  # type: ignore[override]
        return super().forward(x, ctx.rope)


class Way(nn.Module):
    """The local branch alone, one way or the other."""

    def __init__(self, way: Callable[..., Tensor], size: int):
        super().__init__()
        self.way, self.size, self.core = way, size, Core()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.way(self.core, q, k, v, self.size, LAYER.radius)


def layers(args: Args) -> dict[str, nn.Module]:
    c = LAYER
    heads, kv = 16, 8

    def norm(dim: int, affine: bool) -> nn.Module:
        return normed(c, dim, affine)

    made: dict[str, nn.Module] = {"assa": GlobalLocal(c.dim, heads, c.head_dim, kv, norm, c.rows, c.radius)}
    if "sdpa" in args.peers:
        made["sdpa"] = Everything(c.dim, heads, c.head_dim, kv)
    return made


def cores(side: int, args: Args, device: torch.device) -> dict[str, tuple[nn.Module, list[Tensor]]]:
    """The local branch without projections, and FlexAttention with the same mask."""
    n, size = side * side, LAYER.rows * side
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    qkv = [torch.randn(1, heads, n, 64, device=device, dtype=dtype) for heads in (16, 8, 8)]
    ways = {"looped": global_local.looped, "gathered": global_local.gathered}
    made: dict[str, tuple[nn.Module, list[Tensor]]] = {
        f"core {name}": (Way(way, size), qkv) for name, way in ways.items()
    }
    if "flex" in args.peers:
        made["core flex"] = flex(n, size, device), qkv
    return made


def flex(n: int, size: int, device: torch.device) -> nn.Module:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def near(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q // size - k // size).abs() <= LAYER.radius

    mask: Any = create_block_mask(near, None, None, n, n, device=str(device))
    compiled: Any = torch.compile(flex_attention)

    class Flex(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return Flex()


def row(name: str, module: nn.Module, inputs: Any, side: int, args: Args, counted: int) -> dict[str, Any]:
    timed = latency(module, inputs, args.runs, 2, args.threads, seconds=120)
    found: dict[str, Any] = {"layer": name, "tokens": side * side, "GMACs": counted / 1e9}
    found |= {"ms": timed.median, "contended": timed.contended}
    if args.memory and not name.startswith("core"):
        found["peak MB"] = peak(module, inputs).peak / 1e6
    return found


def measured(side: int, args: Args, device: torch.device) -> list[dict[str, Any]]:
    dtype, rows = torch.bfloat16 if args.bf16 else torch.float32, []
    for name, layer in layers(args).items():
        given = torch.empty(1, side**2, LAYER.dim, device="meta"), raster(side, side, 64, "meta")
        shape = cost(layer.to("meta"), given)
        made = layers(args)[name].to(device, dtype).requires_grad_(False)
        x = torch.randn(1, side * side, LAYER.dim, device=device, dtype=dtype)
        rows.append(row(name, made, (x, raster(side, side, 64, device)), side, args, shape.macs))
    near = int(visible(side, LAYER.rows, LAYER.radius).sum()) * side**2  # pairs of tokens
    for name, (way, qkv) in cores(side, args, device).items():
        rows.append(row(name, way, qkv, side, args, 2 * near * 16 * 64))
    return rows


def main(args: Args) -> None:
    if unknown := set(args.peers) - set(PEERS):
        raise ValueError(f"--peers {sorted(unknown)[0]}: expected some of {', '.join(PEERS)}")
    if any(side < 4 for side in args.sides):
        raise ValueError(f"--sides {min(args.sides)}: expected 4 or more")
    device, rows = choose(args.device), []
    if "flex" in args.peers and device.type != "cuda":
        raise ValueError("--peers flex: FlexAttention is fast on a GPU only; add --device cuda")
    for side in args.sides:
        rows += measured(side, args, device)
        print(json.dumps(rows[-1]), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        with renamed(args.out / "assa.json") as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")
    columns = list(dict.fromkeys(k for r in rows for k in r))
    print(text([{k: r.get(k) for k in columns} for r in rows]))
    names = list(dict.fromkeys(r["layer"] for r in rows))
    series = {SHOWN[n]: [(log2(r["tokens"]), log2(r["ms"])) for r in rows if r["layer"] == n] for n in names}
    (args.out / "growth.svg").write_text(lines(series, "log2 tokens", "log2 ms", "growth with tokens"))
