"""An elastic model for the scenes world: three widths from one set of weights.

    pocket train elastic_scenes                                          # the shipped teacher, two CPU cores
    torchrun --nproc-per-node 2 -m pocketdiffusion train elastic_scenes
    pocket train elastic_scenes --widths half=0.5 full=1.0 --no-teach    # other widths, flow matching alone
    pocket train elastic_scenes --device cuda --batch 512 --lr 1.5e-3

Every step trains the full width and one of the others on the same noise (methods/elastic.py); the teacher's
prediction is weighed by the timestep-aware scaling, as in SnapGen. Text encoder and autoencoder are the
teacher's. After 6,000 steps the widths place things without drawing their outlines (docs/results.md):
elastic_scenes_4step goes on from there, as it did for ``elastic``, which ships. Ends with the held-out flow
loss of each width, and OUT/pipeline, in which one file holds all:

    pocket generate "two green stars" --model runs/elastic_scenes/pipeline --width small
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import store
from ..device import bf16, choose
from ..methods.elastic import Elastic, Teacher
from ..methods.scaling import TRUST, MultiLevel
from ..models.supernet import Supernet
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import Hook, Run, State, every, fit
from ..train.optimisers import adamw, warmup_decay
from .scenes_teacher import LOOK
from .snapgen_kd_ladder import losses
from .snapgen_scenes_kd import reads, scenes


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/elastic_scenes")
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    preset: str = "scenes"  # of models/supernet.py
    widths: tuple[str, ...] = ()  # NAME=SHARE, the last of 1.0; default: the preset's
    teach: bool = True  # the teacher's predictions beside the data
    trust: str = "peaked"  # the share of the data at every t: peaked or cautious (methods/scaling.py)
    inner: float = 0.5  # weight of the distance from the full width
    subs: int = 1  # widths below the full one that train in every step
    steps: int = 6000
    batch: int = 32  # per process
    uses: int = 4  # steps that a batch serves, with other times and noise
    lr: float = 1e-3
    decay: float = 0.6  # share of the steps, at the end, over which the learning rate falls
    shift: float = 2.5  # of the times in training, as the teacher's
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    held_out: int = 256  # pictures for the losses at the end
    look: int = 1000  # steps between sample grids in TensorBoard; 0 = none
    device: str = "cpu"


def shares(given: tuple[str, ...]) -> dict[str, tuple[str, ...] | tuple[float, ...]]:
    """names and shares of a Config from NAME=SHARE."""
    parts = [word.partition("=") for word in given]
    try:
        return {"names": tuple(p[0] for p in parts), "shares": tuple(float(p[2]) for p in parts)}
    except ValueError:
        raise ValueError(f"--widths {' '.join(given)}: expected NAME=SHARE, such as small=0.5") from None


def supernet_of(args: Args, teacher: Pipeline) -> Supernet:
    """A fresh one for the teacher's latents and text."""
    config = store.preset("Supernet", args.preset)
    config = replace(config, channels=teacher.vae.config.channels, text=teacher.text_encoder.config.dim)
    if args.widths:
        config = replace(config, **shares(args.widths))
    return Supernet(config).to(teacher.device)


class Drawing:
    """A pipeline of one width, with the weights that the supernet has when it draws."""

    def __init__(self, pipe: Pipeline, net: Supernet, name: str):
        self.pipe, self.net, self.name, self.device = pipe, net, name, pipe.device

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        own = self.pipe
        drawn = Pipeline(self.net.extract(self.name), own.text_encoder, own.vae, own.schedule, own.decoder)
        return drawn.sample(*args, **kwargs)


def shown(pipe: Pipeline, net: Supernet, seed: int) -> Hook:
    """Sample grids of every width, a row each, in TensorBoard."""

    def look(state: State) -> None:
        with state.averaged():
            drawn = [Drawing(pipe, net, name).sample(LOOK, seed=seed) for name in net.config.names]
            rows = [torch.cat(list(pictures), dim=-1) for pictures in drawn]
        if state.log:
            state.log.grid(state.step, "samples", torch.cat(rows, dim=-2))

    return look


def main(args: Args) -> None:
    if args.trust not in TRUST:
        raise ValueError(f"--trust {args.trust}: expected one of {', '.join(TRUST)}")
    device = choose(args.device)
    teacher = Pipeline.from_pretrained(args.teacher).to(device)
    for network in teacher.components.values():
        network.requires_grad_(False)
    torch.manual_seed(args.seed)
    net, read = supernet_of(args, teacher), reads(teacher.text_encoder, False)
    told = Teacher(teacher.transformer, read, scaling=MultiLevel(TRUST[args.trust])) if args.teach else None
    method = Elastic(
        net,
        net.config.names,
        read,
        list(net.parameters()),
        told,
        args.inner,
        args.subs,
        shift=args.shift,
    )
    pipe = Pipeline(net, teacher.text_encoder, teacher.vae, teacher.schedule, teacher.decoder)
    hooks = [every(args.look, shown(pipe, net, args.seed))] if args.look else []
    run = Run(
        args.steps,
        args.out,
        args.seed,
        bf16=bf16(device, args.bf16),
        ema=0.999,
        save_every=250,
        log_every=25,
        name="elastic",
    )
    networks: dict[str, nn.Module] = {"transformer": net}
    data, rate = scenes(args, teacher, teacher.schedule.size), warmup_decay(args.steps, decay=args.decay)
    state = fit(method, data, {"supernet": adamw(net.parameters(), args.lr)}, networks, run, rate, hooks)
    if spread.rank():
        return
    with state.averaged():
        pipe.save_pretrained(args.out / "pipeline", torch.float16)
        print(f"held-out flow loss: teacher {losses(teacher, teacher, args)['velocity']:.4f}")
        for name in net.config.names:
            own = Pipeline(net.extract(name), pipe.text_encoder, pipe.vae, pipe.schedule)
            print(f"held-out flow loss: {name} {losses(own, teacher, args)['velocity']:.4f}")
