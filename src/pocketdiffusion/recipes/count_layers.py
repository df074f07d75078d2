"""Which cross-attention layers look where the things are, to correct counts by.

    pocket train count_layers --model runs/count_model/pipeline
    pocket train count_layers --model my_sdxl/ --counter grounding-dino-base/

The pipeline draws --prompts pictures of one kind of thing, the counter finds the things in them, and for some
of the steps each layer's map of the noun is compared with that: ``auc`` is how often a place on a thing has
more of the noun's attention than a place beside it (1/2: chance). Layers of one grid can be joined in a map;
one that looks beside the things spoils it. Ends with a table and OUT/layers.json.

    pocket generate "five red circles" --count-correct --count-layers LAYER ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ..bench.table import text
from ..cli.counting import asked, layers_of, scene_counter, words_of
from ..device import choose
from ..diffusion.count import on_grid
from ..diffusion.samplers import Step
from ..disk import renamed
from ..export.foreign import opened
from ..nn.attention.maps import Look, watched
from ..rewards.detectors import load
from ..teachers import maps as foreign
from ..teachers.diffusers import Foreign
from ..train import spread
from .count_claims import Args as Asked
from .count_claims import single

PARTS = (0.1, 0.3, 0.5, 0.7)  # of the steps


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/count_layers")
    model: str = "scenes"  # a shipped pipeline's name or a folder, ours or of diffusers
    counter: str = ""  # a detector of transformers; empty: that of the scenes world
    layers: tuple[str, ...] = ("*",)  # patterns of their names
    prompts: int = 2  # of each number of things
    most: int = 9
    prompt_seed: int = 1
    steps: int | None = None  # of the sampler; None: what the pipeline says
    seed: int = 0
    device: str = "cpu"


def auc(values: Tensor, there: Tensor) -> float | None:
    """How often a value where ``there`` is above one elsewhere, ties by half; None where either is empty."""
    on, off = values[there], values[~there]
    if not len(on) or not len(off):
        return None
    above = (on[:, None] > off).float() + (on[:, None] == off).float() / 2
    return float(above.mean())


def aligned(
    look: Look, steps: list[Step], cond: Any, words: list[list[int]], things: list[Tensor]
) -> Iterator[tuple[int, float]]:
    """The side of the grid, and the mean over pictures, for each of ``steps``."""
    for step in steps:
        with torch.no_grad():
            a = look(step.x, step.s, cond)[1].cpu()
        side, found = round(a.shape[1] ** 0.5), []
        for row, mine, mask in zip(a, words, things):
            there = on_grid(mask, (side, side)).flatten() if mask.any() else mask.new_zeros(side * side)
            if (value := auc(row[:, mine].mean(1), there)) is not None:
                found.append(value)
        yield side, mean(found) if found else float("nan")


def main(args: Args) -> None:
    if spread.world() > 1:
        raise ValueError("count_layers runs in one process")
    pipe = opened(args.model).to(choose(args.device))
    pipe.schedule = pipe.settings(args.steps, None)
    for network in pipe.components.values():
        network.requires_grad_(False)
    names = layers_of(pipe, args.layers)
    counter = load(args.counter, None, pipe.device) if args.counter else scene_counter()
    prompts = list(single(Asked(prompts=args.prompts, most=args.most, prompt_seed=args.prompt_seed)))
    steps: list[Step] = []
    pictures = pipe.sample(prompts, seed=args.seed, callback=steps.append)
    wanted = [asked(prompt, (), counter) for prompt in prompts]
    words = [words_of(pipe, p, t)[t[0].phrase] for p, t in zip(prompts, wanted)]
    things = []
    for picture, target in zip(pictures, wanted):
        masks = counter(picture[None], [target[0].phrase])[0][target[0].phrase]
        things.append(torch.stack(masks).any(0).cpu() if masks else torch.zeros(picture.shape[-2:]).bool())
    with torch.no_grad():
        cond = pipe.text_encoder.embed(prompts)
    chosen = [steps[round(part * (len(steps) - 1))] for part in PARTS]
    watch = foreign.watched if isinstance(pipe.transformer, Foreign) else watched
    rows = []
    for name in names:
        found = list(aligned(watch(pipe.transformer, [name]), chosen, cond, words, things))
        at = {f"auc_{round(100 * part)}": round(value, 3) for part, (_, value) in zip(PARTS, found)}
        rows.append({"layer": name, "grid": found[0][0], **at})
    print(text(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    with renamed(args.out / "layers.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
