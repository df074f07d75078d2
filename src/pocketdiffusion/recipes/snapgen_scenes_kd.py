"""SnapGen's distillation in the scenes world: a DiT teaches a small U-Net.

    pocket train snapgen_scenes_kd                                       # the shipped teacher, two CPU cores
    torchrun --nproc-per-node 2 -m pocketdiffusion train snapgen_scenes_kd
    pocket train snapgen_scenes_kd --device cuda --batch 512 --lr 1.5e-3
    pocket train snapgen_scenes_kd --own-text                            # a text encoder of the student's own
    pocket train snapgen_scenes_kd --start snapgen_scenes --steps 2400   # of few steps once, of any now

The student sees the teacher's latents and, unless --own-text, its frozen text encoder. Task, output and
feature loss are weighed by the timestep-aware scaling (methods/scaling.py). Not run in full yet; the default
is sized for an hour or two on two cores. Ends with a pipeline folder, OUT/pipeline, which
snapgen_scenes_4step takes to four steps.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import store
from ..data.latents import Encoded
from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..methods.kd import Distillation, Embed, Features, features_between
from ..methods.scaling import TRUST, MultiLevel
from ..models.unet import UNet
from ..pipeline import Pipeline, same_latents
from ..train import spread
from ..train.fit import Hook, Run, State, every, fit
from ..train.optimisers import adamw, warmup_decay
from ..types import Batch, Cond
from .scenes_teacher import LOOK


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/snapgen_scenes_kd")
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    student: str = "UNet"  # a denoiser's class, a name in store.KINDS
    preset: str = "scenes"
    start: str | None = None  # a shipped name or a folder to go on from; None: a fresh one
    own_text: bool = False  # a fresh text encoder that trains with the student
    features: bool = True  # distil the last blocks too
    trust: str = "peaked"  # the share of the data at every t: peaked or cautious (methods/scaling.py)
    steps: int = 4000
    batch: int = 32  # per process
    uses: int = 4  # steps that a batch serves, with other times and noise
    lr: float = 1e-3
    decay: float = 0.6  # share of the steps, at the end, over which the learning rate falls
    shift: float = 2.5  # of the times in training, as the teacher's
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    look: int = 1000  # steps between sample grids in TensorBoard; 0 = none
    device: str = "cpu"


def student_of(kind: str, preset: str, teacher: Pipeline) -> Any:
    """A fresh denoiser for the teacher's latents and text."""
    store.kind(kind)
    denoisers = [
        name
        for name, (module, _) in store.KINDS.items()
        if module.startswith("models.") and hasattr(getattr(store.kind(name), name), "BLOCKS")
    ]
    if kind not in denoisers:
        raise ValueError(f"--student {kind}: expected the class of a denoiser: {', '.join(denoisers)}")
    config, width = store.preset(kind, preset), teacher.text_encoder.config.dim
    config = replace(config, channels=teacher.vae.config.channels, text=width)
    if getattr(config, "pooled", 0):
        config = replace(config, pooled=width)
    return getattr(store.kind(kind), kind)(config).to(teacher.device)


def reads(text: Any, trained: bool) -> Embed:
    """Latents as they are and captions as ``text`` reads them."""

    def embed(batch: Batch) -> tuple[Tensor, Cond]:
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return batch.x, text.embed(batch.text)

    return embed


def blocks(model: Any) -> list[str]:
    """The names of a denoiser's residual blocks, from the input to the output."""
    return [f"{model.BLOCKS}.{i}" for i in range(len(model.get_submodule(model.BLOCKS)))]


def last_block(model: Any) -> str:
    """The last block; of a U-Net all of the last one on the way up, as SnapGen has it."""
    if isinstance(model, UNet):
        last = len(model.slots) - 1
        return f"{'transformers' if model.slots[last].transformer else 'resnets'}.{last}"
    return blocks(model)[-1]


def last_features(student: Any, text: Any, teacher: Pipeline, size: int) -> Features:
    """The last blocks of both networks, with a projector between them."""
    side = size // teacher.vae.config.factor
    x = torch.zeros(1, teacher.vae.config.channels, side, side, device=teacher.device)
    conds = text.embed([""]), teacher.text_encoder.embed([""])
    names = last_block(student), last_block(teacher.transformer)
    return features_between(student, teacher.transformer, names, (x, x.new_full((1,), 0.5), *conds))


def shown(pipe: Pipeline, seed: int) -> Hook:
    """Sample grids of the averaged weights in TensorBoard."""

    def look(state: State) -> None:
        with state.averaged():
            grid = pipe.sample(LOOK, seed=seed)
        if state.log:
            state.log.grid(state.step, "samples", torch.cat(list(grid), dim=-1))

    return look


def scenes(args: Any, teacher: Pipeline, size: int) -> Callable[[int, int], Batch]:
    """Pictures drawn and encoded as the teacher's were."""
    world = Scenes(TRAIN_WORLD, args.batch, size, teacher.device)
    return Encoded(world, teacher.vae.encode, args.uses, spread.world())


def main(args: Args) -> None:
    if args.trust not in TRUST:
        raise ValueError(f"--trust {args.trust}: expected one of {', '.join(TRUST)}")
    device = choose(args.device)
    teacher = Pipeline.from_pretrained(args.teacher).to(device)
    for network in teacher.components.values():
        network.requires_grad_(False)
    torch.manual_seed(args.seed)
    size = teacher.schedule.size
    base = Pipeline.from_pretrained(args.start).to(device) if args.start else teacher
    same_latents(str(args.start), base.vae, args.teacher, teacher.vae)
    student = base.transformer if args.start else student_of(args.student, args.preset, teacher)
    student.requires_grad_(True).train()
    text = base.text_encoder.requires_grad_(False)
    if args.own_text:
        text = deepcopy(text).requires_grad_(True)
        text.load_state_dict(type(text)(text.config).state_dict())
    features = last_features(student, text, teacher, size) if args.features else None

    networks: dict[str, nn.Module] = {"transformer": student}
    if args.own_text:
        networks["text_encoder"] = text
    trained = [p for network in networks.values() for p in network.parameters()]
    if features:
        networks["projector"] = features.projector
    method = Distillation(
        student,
        teacher.transformer,
        reads(text, args.own_text),
        reads(teacher.text_encoder, False),
        trained,
        features,
        MultiLevel(TRUST[args.trust]),
        shift=args.shift,
    )
    pipe = Pipeline(student, text, teacher.vae, teacher.schedule)
    hooks = [every(args.look, shown(pipe, args.seed))] if args.look else []
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.999,
        save_every=250,
        log_every=25,
        name="student",
    )
    optimiser = {"student": adamw(method.players["student"], args.lr)}
    rate = warmup_decay(args.steps, decay=args.decay)
    state = fit(method, scenes(args, teacher, size), optimiser, networks, run, rate, hooks)
    if spread.rank():
        return
    with state.averaged():
        pipe.save_pretrained(args.out / "pipeline", torch.float16)
