"""How fast the scenes world is drawn, and the teacher trains: eager, compiled, bf16.

    pocket train scenes_throughput --threads 1
    pocket train scenes_throughput --device cuda --batch 512

Prints a table, with bf16 rows where the device has it; about four minutes, most of it compilation.
Expected: see docs/results.md (training throughput).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from ..autoencoders import kl
from ..bench.table import text as table
from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..methods.flow_matching import FlowMatching
from ..models import dit
from ..store import preset
from ..text import encoder
from ..text.tokenizer import Tokenizer
from ..types import Batch, Cond
from .scenes_teacher import captions


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_throughput")
    preset: str = "scenes"
    batch: int = 32
    threads: int = 1
    repeats: int = 8
    compile: bool = True  # measure the compiled rows as well
    device: str = "cpu"


def timed(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median seconds of a call, after two that warm up (and compile)."""
    seconds = []
    for _ in range(repeats + 2):
        started = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - started)
    return median(seconds[2:])


def main(args: Args) -> None:
    device = choose(args.device)
    torch.set_num_threads(args.threads)
    world = Scenes(TRAIN_WORLD, args.batch, device=device)
    vae = kl.AutoencoderKL(preset("AutoencoderKL", args.preset)).to(device).requires_grad_(False)
    vae = vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tokenizer = Tokenizer.train(captions(1024))
    steps = iter(range(10**9))
    drawing = timed(lambda: world(0, next(steps)), args.repeats, device)
    # as many text tokens in every batch, so that nothing is compiled twice
    batch = world(0, 0)
    rows = [{"what": "drawing", "pictures/s": round(args.batch / drawing), "share of a step": None}]
    for compiled in (False, True) if args.compile else (False,):
        for half in (False, True) if bf16(device) else (False,):
            text = encoder.TextTransformer(preset("TextTransformer", args.preset), tokenizer).to(device)
            model = dit.DiT(preset("DiT", args.preset)).to(device)
            if compiled:
                model.compile()

            def embed(batch: Batch, text: Any = text) -> tuple[torch.Tensor, Cond]:
                with torch.no_grad():
                    x0 = vae.encode(batch.x).float()
                return x0, text.embed(batch.text)

            trained = [*model.parameters(), *text.parameters()]
            optimiser = torch.optim.AdamW(trained, 1e-4)
            method = FlowMatching(model, embed, partial(text.embed, [""]), trained)

            def step(method: Any = method, optimiser: Any = optimiser, half: bool = half) -> None:
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    for losses in method.losses("denoiser", batch):
                        losses["loss"].backward()
                optimiser.step()
                optimiser.zero_grad()

            seconds = timed(step, args.repeats, device)
            name = f"{'compiled' if compiled else 'eager'} {'bf16' if half else 'fp32'}"
            share = f"{drawing / seconds:.1%}"
            rows.append(
                {"what": name, "pictures/s": round(args.batch / seconds, 1), "share of a step": share}
            )
    print(table(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "throughput.json").write_text(json.dumps(rows, indent=2) + "\n")
