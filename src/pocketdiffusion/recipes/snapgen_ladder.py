"""SnapGen's design steps: counted beside the paper's numbers, and trained small.

    pocket train snapgen_ladder                                       # the table: no training, half a minute
    pocket train snapgen_ladder --train --seeds 0 1 2                 # every step at the size of --preset
    pocket train snapgen_ladder --train --steps 20000 --device cuda

The table has every step's parameters and multiply-accumulates at --side, their change against the step before
(``expanded``: against the one before ``separable``, as the paper does), and the change that was published.
Below it stands the gap: the last step and ``snapgen_imagenet``, which meets the published totals, are not the
same network. Trained steps read the text and latents of --pipeline; the loss is held out, of EMA weights. Not
run in full yet: docs/results.md (claims). Ends with OUT/ladder.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import store
from ..bench.table import text
from ..data.latents import Encoded
from ..data.scenes import EVAL_WORLD, TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..disk import renamed
from ..eval.seeds import against, collect, settings, table
from ..methods.flow_matching import FlowMatching
from ..models.unet import UNet
from ..models.unet_config import ABLATION, PRESETS, ladder
from ..models.unet_count import count, macs
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond

# SnapGen, section 3.1, as a walk-through quotes it: latency on an iPhone 15 Pro, FID of ImageNet-256
PUBLISHED = {
    "thin_sdxl": "FID 3.76",
    "low_attention": "MACs -17 %, latency -24 %, FID 3.12",
    "separable": "parameters -24 %, latency -62 %, FID 3.38",
    "expanded": "parameters -15 %, MACs -27 % (of low_attention), 2.4 times faster",
    "ffn3": "parameters and MACs -12 %",
    "mqa": "parameters -16 %, MACs -6 %, latency -9 %",
    "early_cross": "-",
    "qk_rope": "final: 372 M, FID 2.06",
}
MAY_CHANGE = {"arms", "seeds", "train"}


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/snapgen_ladder")
    side: int = 128  # of the latents that are counted
    tokens: int = 77
    train: bool = False
    arms: tuple[str, ...] = tuple(PUBLISHED)
    seeds: tuple[int, ...] = (0, 1, 2)
    preset: str = "scenes"  # whose sizes are trained
    pipeline: str = "scenes"  # whose text encoder and autoencoder are read
    steps: int = 2000
    batch: int = 32
    uses: int = 4  # steps that a batch serves
    lr: float = 1.5e-3
    shift: float = 2.5
    held_out: int = 1024  # pictures
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def change(new: int, old: int) -> str:
    return f"{100 * (new / old - 1):+.1f} %"


def counted(args: Args) -> list[dict[str, Any]]:
    """A row per step, then the preset that meets the published totals."""
    steps = ladder(ABLATION) | {"snapgen_imagenet": PRESETS["snapgen_imagenet"]}
    size = {k: (count(c), macs(c, args.side, args.tokens)) for k, c in steps.items()}
    names, rows = list(steps), []
    for i, name in enumerate(names):
        before = names[i - 2 if name == "expanded" else max(0, i - 1)]
        (p, m), (q, n) = size[name], size[before]
        row = {"step": name, "M parameters": round(p / 1e6, 1), "GMACs": round(m / 1e9, 2)}
        row |= {"parameters": change(p, q) if i else "-", "MACs": change(m, n) if i else "-"}
        rows.append(row | {"published": PUBLISHED.get(name, "not a step: 372 M")})
    return rows


def held_out_loss(method: FlowMatching, args: Args, vae: Any, device: torch.device) -> float:
    """On pictures that no run has seen; every network gets the same times and noise."""
    size = min(args.held_out, 64)
    scenes = Scenes(EVAL_WORLD, size, device=device)

    def losses() -> Iterator[Tensor]:
        for i in range(max(1, args.held_out // size)):
            batch = scenes(10**6, i)
            torch.manual_seed(i)
            yield next(method.losses("denoiser", Batch(vae.encode(batch.x), batch.text)))["loss"]

    with torch.no_grad():
        return float(torch.stack(list(losses())).mean())


def trained(name: str, seed: int, args: Args, device: torch.device) -> dict[str, float]:
    """One step of the ladder with one seed, from scratch: its loss, size and work."""
    torch.manual_seed(seed)
    pipe = Pipeline.from_pretrained(args.pipeline).to(device)
    words, vae = pipe.text_encoder.requires_grad_(False), pipe.vae.requires_grad_(False)
    base = replace(store.preset("UNet", args.preset), pooled=0, channels=vae.config.channels)
    config = ladder(replace(base, text=words.config.dim))[name]
    model = UNet(config).to(device)

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        return batch.x, words.embed(batch.text)

    def method(drop: float) -> FlowMatching:
        weights = list(model.parameters())
        return FlowMatching(model, embed, lambda: words.embed([""]), weights, drop, shift=args.shift)

    run = Run(
        args.steps,
        args.out / f"{name}-{seed}",
        seed,
        bf16=bf16(device, args.bf16),
        ema=0.998,
        keep=1,
        name=name,
    )
    data = Encoded(Scenes(TRAIN_WORLD, args.batch, device=device), vae.encode, args.uses)
    optimisers = {"denoiser": adamw(model.parameters(), args.lr)}
    state = fit(method(0.1), data, optimisers, {"transformer": model}, run, warmup_cosine(args.steps))
    with state.averaged():
        loss = held_out_loss(method(0.0), args, vae, device)
    return {"loss": loss, "M parameters": count(config) / 1e6, "MMACs": macs(config, tokens=32) / 1e6}


def main(args: Args) -> None:
    if unknown := set(args.arms) - set(PUBLISHED):
        raise ValueError(f"--arms {sorted(unknown)[0]}: expected some of {', '.join(PUBLISHED)}")
    if spread.world() > 1:
        raise ValueError("snapgen_ladder runs in one process; start several with other --seeds")
    rows = counted(args)
    print(text(rows))
    last, meets = rows[-2]["M parameters"], rows[-1]["M parameters"]
    print(f"the steps end at {last} M, snapgen_imagenet has {meets} M; published are 372 M")
    args.out.mkdir(parents=True, exist_ok=True)
    with renamed(args.out / "ladder.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
    if not args.train:
        return
    device, same = choose(args.device), settings(args, MAY_CHANGE)
    found = collect(args.out, args.arms, args.seeds, lambda arm, seed: trained(arm, seed, args, device), same)
    print(text(table(found, {"loss": 4, "M parameters": 2, "MMACs": 1})))
    for before, after in zip(args.arms, args.arms[1:]):
        pair = {arm: found[arm] for arm in (before, after)}
        print(text(against(pair, before, {"loss": 4})))
