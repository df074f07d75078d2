"""One denoising step, side by side: SnapGen's U-Net, SDXL, SD3 medium, PixArt-alpha.

    pocket train snapgen_speed --count-only                     # operations and parameters alone, on meta
    pocket train snapgen_speed --device cuda --bf16 --compile
    pocket train snapgen_speed --models ElasticDiT:small pixart-alpha-1024 sana-1.6b --side 64
    pocket train snapgen_speed --device cuda --bf16 --compile --compile-peers --peak-tflops 989   # an H100

1024-pixel latents (a side of 128), batch 1, no guidance; every model with its own latent channels and length
of text. All weights are random: what is computed does not depend on them. The peers are diffusers' networks
in their published configurations, called as their own pipelines do. Compare within one run only. Counts are
exact; eager times of two quiet cores are in docs/results.md. "floor ms" is what the products alone would
take at --peak-tflops, "of peak" the share of it that was reached. Ends with OUT/speed.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import store
from ..bench.cost import cost
from ..bench.latency import latency
from ..bench.memory import peak
from ..bench.table import text
from ..device import choose
from ..disk import renamed
from ..teachers.diffusers import published
from ..teachers.families import Settings, known
from ..types import Cond

# names in teachers.published, and how much text their own pipelines give them
PEERS = {"sdxl": 77, "sd3-medium": 77 + 256, "pixart-alpha-1024": 120, "sana-1.6b": 300}
SMALLER = {"sana-1.6b": 4}  # its autoencoder takes 32 pixels to one, the others 8
COMPARED = ("snapgen", "sdxl", "sd3-medium", "pixart-alpha-1024")
TOKENS = 77 + 128  # ours: of CLIP and of a language model


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/snapgen_speed")
    models: tuple[str, ...] = COMPARED  # peers, presets of UNet, and others of ours as CLASS:PRESET
    side: int = 128  # of the latent
    runs: int = 3
    threads: int | None = None
    compile: bool = False  # ours compiled, too
    compile_peers: bool = False  # and the peers
    peak_tflops: float | None = None  # of the device, in this dtype and dense: 10^12 FLOP/s
    count_only: bool = False  # operations and parameters, on meta: no time, no memory
    memory: bool = True  # peak memory (on a CPU in a process of its own)
    bf16: bool = False
    device: str = "cpu"


class Network(nn.Module):
    """A peer alone, called as its own pipeline does, without the conversion to our path."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        call = known("class", type(self.model).__name__).call
        return call(self.model, x, 1000 * t, cond, Settings())


def built(name: str, device: Any) -> nn.Module:
    if name in PEERS:
        return Network(published(name, device).model).eval()
    kind, _, preset = name.rpartition(":")
    kind = kind or "UNet"
    with torch.device(device):
        return getattr(store.kind(kind), kind)(store.preset(kind, preset)).eval()


def inputs(model: Any, name: str, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Cond]:
    if isinstance(model, Network):
        family = known("class", type(model.model).__name__)
        config: Any = model.model.config
        channels, width, pooled = config["in_channels"], config[family.text], family.pooled(config)
    else:
        config = model.config
        channels, width, pooled = config.channels, config.text, getattr(config, "pooled", 0)
    n, device = PEERS.get(name, TOKENS), next(model.parameters()).device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    mask = torch.ones(1, n, dtype=torch.bool, device=device)
    cond = Cond(normal(1, n, width), mask, normal(1, pooled) if pooled else None)
    # a network with another autoencoder draws the same picture from a smaller latent
    side = side // SMALLER.get(name, 1)
    return normal(1, channels, side, side), torch.full((1,), 0.5, device=device), cond


def achieved(flops: int, ms: float, peak_tflops: float | None) -> dict[str, float]:
    """FLOP/s, and where the peak is known what they are of it, and the least time that it allows."""
    found = {"TFLOP/s": flops / ms / 1e9}
    if peak_tflops:
        found |= {"of peak": found["TFLOP/s"] / peak_tflops, "floor ms": flops / peak_tflops / 1e9}
    return found


def rows(name: str, args: Args, device: torch.device) -> list[dict[str, Any]]:
    shape = built(name, "meta")
    given = inputs(shape, name, args.side, torch.float32)
    found = cost(shape, given)
    row: dict[str, Any] = {"model": name, "latent": "x".join(map(str, given[0].shape[1:]))}
    row |= {"tokens": given[2].tokens.shape[1]}
    row |= {"M parameters": found.parameters / 1e6, "GMACs": found.macs / 1e9}
    if args.count_only:
        return [row]
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model = built(name, device).to(dtype).requires_grad_(False)
    given = inputs(model, name, args.side, dtype)
    ways: dict[str, Any] = {"eager": model}
    if args.compile_peers if name in PEERS else args.compile:
        ways["compiled"] = torch.compile(model)
    done = []
    for way, call in ways.items():
        # enough to compile and to settle
        timed = latency(call, given, args.runs, 3, args.threads, seconds=300)
        here = row | {"model": f"{name} {way}", "ms per step": timed.median, "contended": timed.contended}
        here |= achieved(2 * found.macs, timed.median, args.peak_tflops)
        if args.memory and way == "eager":
            here["peak MB"] = peak(model, given).peak / 1e6
        done.append(here)
    return done


def main(args: Args) -> None:
    known = {*PEERS, *store.kind("UNet").PRESETS}
    if unknown := {name for name in args.models if ":" not in name} - known:
        raise ValueError(f"--models {sorted(unknown)[0]}: expected some of {', '.join(sorted(known))}")
    if args.peak_tflops is not None and args.peak_tflops <= 0:
        raise ValueError(f"--peak-tflops {args.peak_tflops}: expected more than 0")
    device, done = choose(args.device), []
    for name in args.models:
        done += rows(name, args, device)
        print(json.dumps(done[-1]), flush=True)
        args.out.mkdir(parents=True, exist_ok=True)
        with renamed(args.out / "speed.json") as temporary:
            temporary.write_text(json.dumps(done, indent=2) + "\n")
    columns = list(dict.fromkeys(k for r in done for k in r))
    print(text([{k: r.get(k) for k in columns} for r in done]))
