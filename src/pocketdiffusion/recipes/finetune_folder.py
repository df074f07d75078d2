"""Fine-tunes a pipeline on your own folder of pictures, full or LoRA.

    pocket train finetune_folder --data photos                       # all of denoiser and text encoder
    pocket train finetune_folder --data photos --rank 16 --lr 1e-3   # LoRA on the denoiser, merged at the end

What the folder holds: data/files.py. It may also be a cache that `pocket cache` made with the same pipeline's
encoders (data/latents.py). A stopped run goes on when the same command is given again.
Ends with an ordinary pipeline, OUT/pipeline: pocket generate "..." --model OUT/pipeline
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..data.files import Folder
from ..data.latents import INDEX, Latents, weights_hash
from ..device import choose
from ..methods.flow_matching import FlowMatching
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import Run, fit
from ..train.optimisers import adamw, warmup_cosine
from ..types import Batch, Cond

if TYPE_CHECKING:
    import peft


@dataclass(frozen=True)
class Args:
    data: Path  # pictures with .txt captions or metadata.jsonl; or a cache of them
    out: Path = Path("runs/finetune_folder")
    pipeline: str = "scenes"  # a shipped name or a folder
    steps: int = 1000
    batch: int = 16
    lr: float = 2e-4
    rank: int = 0  # of LoRA; 0 = full fine-tuning
    seed: int = 0
    bf16: bool = False
    device: str = "cpu"
    size: int = 0  # pixels; 0 = what the pipeline was made for


def adapt(model: nn.Module, rank: int) -> peft.PeftModel:
    """Put LoRA beside every linear layer of the blocks of ``model``, in place; only the adapters train then.

    W x becomes W x + scale B A x with B = 0 at first; here scale = 1.
    """
    import peft

    linear = [
        k for k, m in model.named_modules() if isinstance(m, nn.Linear) and k.startswith(f"{model.BLOCKS}.")
    ]
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=linear))


def source(pipe: Pipeline, args: Args) -> Folder | Latents:
    """The folder, or the cache; a cache of other encoders is refused."""
    device = pipe.device
    if not (args.data / INDEX).exists():
        return Folder(args.data, args.batch, pipe.sides(args.size or None), device)
    return Latents(args.data, args.batch, weights_hash(pipe.vae), None, device)


def finetune(pipe: Pipeline, data: Folder | Latents, args: Args) -> None:
    """Train ``pipe`` in place; its averaged and merged weights are saved."""
    pipe.vae.requires_grad_(False)
    pipe.text_encoder.requires_grad_(not args.rank)
    adapted = adapt(pipe.transformer, args.rank) if args.rank else None
    networks = {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}
    players = [p for network in networks.values() for p in network.parameters() if p.requires_grad]

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        with torch.no_grad():
            x0 = batch.x if isinstance(data, Latents) else pipe.vae.encode(batch.x).float()
        return x0, pipe.text_encoder.embed(batch.text)

    method = FlowMatching(pipe.transformer, embed, lambda: pipe.text_encoder.embed([""]), players)
    run = Run(args.steps, args.out, args.seed, bf16=args.bf16, ema=0.99, save_every=100, name="finetune")
    optimiser = adamw(players, args.lr)
    schedule = warmup_cosine(args.steps, min(100, args.steps // 10))
    state = fit(method, data, {"denoiser": optimiser}, networks, run, schedule)
    if spread.rank():
        return
    with state.averaged():
        if adapted:
            adapted.merge_and_unload()
        pipe.save_pretrained(args.out / "pipeline")


def main(args: Args) -> None:
    device = choose(args.device)
    if args.rank < 0 or args.steps < 1 or args.batch < 1:
        raise ValueError(
            f"rank must be 0 or more, steps and batch 1 or more; got {args.rank, args.steps, args.batch}"
        )
    torch.manual_seed(args.seed)
    pipe = Pipeline.from_pretrained(args.pipeline).to(device)
    finetune(pipe, source(pipe, args), args)
