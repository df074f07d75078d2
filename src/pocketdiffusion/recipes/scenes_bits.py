"""Four-bit weights, with biases and norms tuned to them by self-distillation.

    pocket train scenes_bits --size-mb 3.9
    pocket export runs/scenes_bits/pipeline --precision w4 --plan runs/scenes_bits/plans -o out/scenes-w4t

Bits are chosen per layer under the budget (export/budget.py) and weights rounded; then biases, norms and
adaLN tables of denoiser and text encoder learn to predict the original's velocity. Weights stay on their
grid, so the export packs them without changing a value. SnapGen++ (suppl.) tunes these at 4.3 bits on
average; steps and learning rate are ours. Expected: see docs/results.md (bits). Ends with OUT/pipeline and
OUT/plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..compress.bits import Plan
from ..compress.round import layers, rounded
from ..data.latents import Encoded
from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import choose
from ..export.budget import plans
from ..export.bundle import Choice, manifest_of
from ..export.parity import recorded
from ..export.program import Program, programs
from ..methods.velocity import VelocityMatching
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond

HELD_OUT = 10**6 + 2  # seed of the world


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_bits")
    pipeline: str = "scenes"  # a shipped name or a folder
    size_mb: float = 3.9  # of all weights, scales included
    steps: int = 600
    batch: int = 16
    lr: float = 1e-3
    seed: int = 0
    device: str = "cpu"


def small(network: nn.Module) -> list[nn.Parameter]:
    """All but the weights that were rounded: biases, norms and adaLN tables."""
    weights = {id(m.weight) for m in layers(network).values()}
    return [p for p in network.parameters() if id(p) not in weights]


def mean_bits(made: Mapping[str, Program], chosen: Mapping[str, Plan]) -> float:
    """Of a weight, scales not counted."""
    pairs = [
        (layer.weight.numel(), chosen[name].bits[key])  # type: ignore[operator,union-attr]
        for name, program in made.items()
        for key, layer in layers(program.module).items()
    ]
    return sum(n * bits for n, bits in pairs) / sum(n for n, _ in pairs)


@torch.no_grad()
def off(method: VelocityMatching, data: Encoded) -> float:
    """Root mean square of v - v_original on pictures that no run sees."""
    torch.manual_seed(0)
    losses = [next(method.losses("denoiser", data(HELD_OUT, 4 * i)))["loss"] for i in range(8)]
    return float(torch.stack(losses).mean().sqrt())


def main(args: Args) -> None:
    device = choose(args.device)
    torch.manual_seed(args.seed)
    pipe = Pipeline.from_pretrained(args.pipeline)
    made = programs(pipe)
    _, probes = recorded(made, manifest_of(pipe, made, Choice(), args.pipeline), pipe)
    chosen = plans(made, probes, int(args.size_mb * 1e6))
    coarse = {name: rounded(made[name].module, chosen[name].bits) for name in made}
    vae = deepcopy(pipe.vae)
    vae.load_state_dict(coarse["decoder"].vae.state_dict(), strict=False)  # type: ignore[union-attr,operator]
    tuned = Pipeline(
        coarse["denoiser"].denoiser,  # type: ignore[arg-type]
        coarse["text_encoder"].encoder,  # type: ignore[arg-type]
        vae,
        pipe.schedule,
    )
    whole = sum(plan.bytes for plan in chosen.values())
    print(f"{whole / 1e6:.2f} MB, {mean_bits(made, chosen):.2f} bits a weight (scales not counted)")
    networks = {"transformer": tuned.transformer.to(device), "text_encoder": tuned.text_encoder.to(device)}
    pipe.to(device)
    players = [p for network in networks.values() for p in small(network)]
    print(f"{sum(p.numel() for p in players)} biases, norms and table entries learn")

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        return batch.x, tuned.text_encoder.embed(batch.text)

    def embed_original(batch: Batch) -> tuple[Tensor, Cond]:
        return batch.x, pipe.text_encoder.embed(batch.text)

    shift = pipe.schedule.shift
    method = VelocityMatching(
        tuned.transformer, embed, pipe.transformer, embed_original, players, shift=shift
    )
    data = Encoded(Scenes(TRAIN_WORLD, args.batch, device=device), pipe.vae.encode, 4, spread.world())
    print(f"velocity off by {off(method, data):.4f} (rms)")
    run = Run(args.steps, args.out, args.seed, ema=0.99, save_every=100, name="bits")
    schedule = warmup_cosine(args.steps, min(50, args.steps // 10))
    state = fit(method, data, {"denoiser": adamw(players, args.lr)}, networks, run, schedule)
    if spread.rank():
        return
    with state.averaged():
        tuned.save_pretrained(args.out / "pipeline")
        print(f"velocity off by {off(method, data):.4f} (rms) when tuned")
    (args.out / "plans").mkdir(exist_ok=True)
    for name, plan in chosen.items():
        plan.save(args.out / "plans" / f"{name}.json")
