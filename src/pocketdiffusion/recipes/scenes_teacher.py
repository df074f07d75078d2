"""The text-to-image teacher of the scenes world: a DiT and its text encoder.

    pocket train scenes_teacher                                             # one core, 55 pictures/s (bf16)
    torchrun --nproc-per-node 2 -m pocketdiffusion train scenes_teacher     # both cores
    pocket train scenes_teacher --device cuda --batch 512 --steps 20000     # a GPU
    pocket train scenes_teacher --init FOLDER/pipeline --out runs/more      # goes on from a finished one
    pocket train scenes_teacher --init snapgen_scenes --world counts --steps 2400 --out runs/count_model

Needs the autoencoder of scenes_autoencoder and scenes_decoder. Pictures are drawn and encoded on the fly and
none comes back after its ``uses`` steps in a row. Expected: see docs/results.md (SceneEval). Ends with a
pipeline folder, OUT/pipeline. The last command makes a U-Net of many steps that has seen up to nine things in
a picture, which count correction is measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import store
from ..data.latents import Encoded
from ..data.scenes import TRAIN_WORLD, WORLDS, Scenes
from ..device import bf16, choose
from ..methods.flow_matching import FlowMatching
from ..models import dit
from ..pipeline import SHIPPED, Pipeline, Schedule
from ..text import encoder
from ..text.tokenizer import FILE, Tokenizer
from ..train import spread
from ..train.fit import Run, State, every, fit
from ..train.optimisers import adamw, warmup_decay
from ..types import Batch, Cond


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_teacher")
    vae: Path = SHIPPED / "scenes" / "pipeline" / "vae"
    init: str | None = None  # a shipped name or a folder whose denoiser, text encoder and tokenizer go on
    world: str = "scene_eval"  # what is drawn: scene_eval, or counts for up to nine things
    preset: str = "scenes"
    steps: int = 10_000
    batch: int = 32  # per process
    uses: int = 4  # steps that a batch serves, with other times and noise: encoding is a fifth of a step
    lr: float = 1.5e-3
    decay: float = 0.6  # share of the steps, at the end, over which the learning rate falls
    shift: float = 2.5  # of the times in training
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    compile: bool = True
    look: int = 1000  # steps between sample grids in TensorBoard; 0 = none
    device: str = "cpu"


# chosen on other prompts than SceneEval's; guidance at the highest levels empties pictures (docs/log.md)
SCHEDULE = Schedule(steps=20, shift=2.5, guidance=4.0, interval=(0.0, 0.9))
LOOK = ("a red circle", "two green stars", "a blue square to the left of a yellow heart", "three black rings")


def captions(count: int) -> list[str]:
    """What the tokenizer learns from."""
    scenes = Scenes(TRAIN_WORLD, 64)
    return [s.caption for step in range(count // 64) for s in scenes.specs(0, step)]


def tokenizer(folder: Path, length: int) -> Tokenizer:
    """The run's own: learned once and kept, so that a resumed run reads its words the same way."""
    if not (folder / FILE).exists():
        learned = Tokenizer.train(captions(4096), length=length)
        if spread.rank() == 0:
            learned.save(folder)
        return learned
    return Tokenizer.load(folder, length)


def networks_of(args: Args, device: torch.device) -> tuple[dit.DiT, encoder.TextTransformer]:
    """Fresh networks, or those of ``args.init``."""
    if args.init:
        given = Pipeline.from_pretrained(args.init).to(device)
        given.transformer.requires_grad_(True).train()
        given.text_encoder.requires_grad_(True).train()
        return given.transformer, given.text_encoder
    config = store.preset("TextTransformer", args.preset)
    text = encoder.TextTransformer(config, tokenizer(args.out / "tokenizer", config.length))
    return dit.DiT(store.preset("DiT", args.preset)).to(device), text.to(device)


def main(args: Args) -> None:
    if args.world not in WORLDS:
        raise ValueError(f"--world {args.world}: expected one of {', '.join(WORLDS)}")
    device = choose(args.device)
    torch.manual_seed(args.seed)
    vae = store.load(args.vae).to(device).requires_grad_(False)
    vae.to(memory_format=torch.channels_last)  # a fifth faster on a CPU than contiguous, and than compiled
    model, text = networks_of(args, device)

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        return batch.x, text.embed(batch.text)

    trained = [*model.parameters(), *text.parameters()]
    method = FlowMatching(model, embed, lambda: text.embed([""]), trained, shift=args.shift)
    optimiser = adamw(method.players["denoiser"], args.lr)
    if args.compile:
        model.compile()
    pipe = Pipeline(model, text, vae, SCHEDULE)

    def look(state: State) -> None:
        with state.averaged():
            grid = pipe.sample(LOOK, steps=20, seed=args.seed)
        if state.log:
            state.log.grid(state.step, "samples", torch.cat(list(grid), dim=-1))

    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.999,
        save_every=250,
        log_every=25,
        name="teacher",
    )
    scenes = Scenes(WORLDS[args.world], args.batch, device=device)
    data = Encoded(scenes, vae.encode, args.uses, spread.world())
    networks = {"transformer": model, "text_encoder": text}
    hooks = [every(args.look, look)] if args.look else []
    rate = warmup_decay(args.steps, decay=args.decay)
    state = fit(method, data, {"denoiser": optimiser}, networks, run, rate, hooks)
    if spread.rank():
        return
    with state.averaged():
        # half precision on the disk: a velocity changes by less than one part in a thousand
        pipe.save_pretrained(args.out / "pipeline", torch.float16)
