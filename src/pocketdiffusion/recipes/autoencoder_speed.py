"""Autoencoders side by side, in pairs of equal compression: operations, time, memory.

    pocket train autoencoder_speed                             # a quiet CPU; the biggest peers take minutes
    pocket train autoencoder_speed --device cuda --bf16 --side 512
    pocket train autoencoder_speed --pairs 4x8x8 --count-only

Ours and diffusers' classes in their published configurations, all with random weights: what they compute does
not depend on them. Every row has channels and compression beside it, for numbers at unequal ones say little.
A run that was cut goes on with the rows that are not in OUT/speed.json yet. Results: docs/results.md
(autoencoders). Ends with OUT/speed.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
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
from ..eval.seeds import settings, settled

MAY_CHANGE = {"pairs"}
# compression -> ours (class and preset), diffusers' (names in teachers.autoencoders)
PAIRS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "4x8x8": ((("H3AE", "4x8x8"),), ("wan2.1", "cogvideox-2b")),
    "4x16x16": ((("H3AE", "4x16x16_fast_c48"), ("H3AE", "4x16x16_c32")), ("wan2.2-5b",)),
    "8x32x32": ((("H3AE", "8x32x32_c128"),), ("ltx-0.9",)),
    "1x32x32": ((("H3AE", "1x32x32"),), ("dc-ae-f32c32",)),
    # decoders for pictures, at twice the side
    "1x8x8": (
        (("TinyDecoder", "snapgen_4"), ("TinyDecoder", "snapgen_4_fast"), ("TinyDecoder", "taesd")),
        ("sdxl",),
    ),
}


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/autoencoder_speed")
    pairs: tuple[str, ...] = tuple(PAIRS)
    side: int = 256
    frames: int = 17
    runs: int = 3
    threads: int | None = None
    count_only: bool = False  # operations and parameters, on meta: no time, no memory
    memory: bool = True  # peak memory, in a process of its own
    bf16: bool = False
    device: str = "cpu"


class Half(nn.Module):
    """One direction of an autoencoder, as a module."""

    def __init__(self, autoencoder: nn.Module, name: str):
        super().__init__()
        self.autoencoder, self.name = autoencoder, name

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.autoencoder, self.name)(x)


def built(kind: str, preset: str) -> Any:
    """On the active device."""
    if kind == "diffusers":
        from ..teachers.autoencoders import published

        return published(preset)
    config = store.preset(kind, preset)
    # the path that conditions on a first frame has no counterpart elsewhere
    config = replace(config, omni=False) if kind == "H3AE" else config
    return getattr(store.kind(kind), kind)(config)


def weights(vae: nn.Module, part: str) -> int:
    """Parameters of a direction, by its name."""
    named = dict(vae.named_parameters())
    chosen = [p.numel() for k, p in named.items() if f"{part}r" in k.split(".")]
    return sum(chosen) or sum(p.numel() for p in named.values())


def row(pair: str, kind: str, preset: str, args: Args, device: torch.device) -> dict[str, Any]:
    with torch.device("meta"):
        shape = built(kind, preset).eval()
    config = shape.config
    pace, side = getattr(config, "time_factor", 1), args.side if pair != "1x8x8" else 2 * args.side
    # whole groups of frames, as near to --frames as every member of a pair can have
    t = 1 + (args.frames - 1) // pace * pace if pace > 1 else 1
    clip, latent = ((t,), (1 + (t - 1) // pace,)) if pace > 1 else ((), ())
    x = torch.zeros(1, 3, *clip, side, side, device="meta")
    z = torch.zeros(1, config.channels, *latent, side // config.factor, side // config.factor, device="meta")
    found: dict[str, Any] = {
        "pair": pair,
        "autoencoder": f"{kind} {preset}",
        "channels": config.channels,
        "compression": 3 * pace * config.factor**2 / config.channels,
    }
    directions: dict[str, Tensor] = {"encode": x, "decode": z} if hasattr(shape, "encode") else {"decode": z}
    for name, given in directions.items():
        found[f"{name} M params"] = weights(shape, name) / 1e6
        found[f"{name} kMACs/px"] = cost(Half(shape, name), (given,)).macs / (t * side * side) / 1e3
    if args.count_only:
        return found
    with torch.device(device):
        vae = built(kind, preset).eval().requires_grad_(False)
    vae = vae.bfloat16() if args.bf16 else vae
    for name, given in directions.items():
        real = torch.randn(given.shape, device=device, dtype=torch.bfloat16 if args.bf16 else None).clamp(
            -1, 1
        )
        timed = latency(Half(vae, name), (real,), args.runs, 1, args.threads, seconds=120)
        found[f"{name} ms/frame"] = timed.median / t
        found["contended"] = found.get("contended", False) or timed.contended
        if args.memory:
            found[f"{name} peak MB"] = peak(Half(vae, name), (real,)).peak / 1e6
    return found


def main(args: Args) -> None:
    if unknown := set(args.pairs) - set(PAIRS):
        raise ValueError(f"--pairs {sorted(unknown)[0]}: expected some of {', '.join(PAIRS)}")
    device, path = choose(args.device), args.out / "speed.json"
    settled(args.out, settings(args, MAY_CHANGE) | {"device": device.type, "bf16": args.bf16})
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    known = {(r["pair"], r["autoencoder"]) for r in rows}
    for pair in args.pairs:
        ours, theirs = PAIRS[pair]
        for kind, preset in (*ours, *(("diffusers", name) for name in theirs)):
            if (pair, f"{kind} {preset}") in known:
                continue
            rows.append(row(pair, kind, preset, args, device))
            print(json.dumps(rows[-1]), flush=True)
            with renamed(path) as temporary:
                temporary.write_text(json.dumps(rows, indent=2) + "\n")
    rows = [r for r in rows if r["pair"] in args.pairs]
    columns = list(dict.fromkeys(k for r in rows for k in r))
    print(text([{k: r.get(k) for k in columns} for r in rows]))
