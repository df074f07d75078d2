"""pocket eval: a pipeline on SceneEval, and its Frechet distance to the world.

    pocket eval --model scenes --out out/eval
    pocket eval --model my_pipeline/ --steps 4 --guidance 1 --per-prompt 1
    pocket eval --judge

The judge is the detector in rewards/scenes.py; --judge measures how often it is right.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device import choose, precision
from ..disk import renamed

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline import Pipeline

CAPTIONS, PICTURES = 10**6, 10**6 + 1  # seeds of the world that no training run uses


@dataclass(frozen=True)
class Args:
    model: str = "snapgen_scenes"
    """A shipped pipeline's name or a folder."""
    decoder: Path | None = None
    """A folder with another decoder of the same latents (pocket train tiny_decoder)."""
    width: str | None = None
    """Of an elastic model: a width by name, or a file of one (kdmd_scenes); default: the full one."""
    bundle: Path | None = None
    """An exported folder (pocket export) to score in place of the model."""
    per_prompt: int = 4
    """Pictures per prompt."""
    prompts: int | None = None
    """Prompts per category; default: all sixty."""
    prompt_seed: int = 0
    """0: the committed prompts; another number makes others, to choose settings on."""
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    batch: int = 60
    frechet: int = 1000
    """Pictures for the Frechet distance; 0 = leave it out."""
    judge: bool = False
    """Measure the detector and the autoencoder in place of the model."""
    out: Path | None = None
    """Folder for result.json and report.html."""
    device: str = "auto"
    dtype: str = "fp32"


def artist(pipe: Pipeline, args: Args) -> Any:
    """(prompts, seed, first) -> pictures (B, 3, H, W) in [-1, 1], by the pipeline or the bundle."""
    if args.bundle is None:
        return lambda texts, seed, first: pipe.sample(
            texts, "", args.steps, args.guidance, seed, first=first
        ).cpu()
    import torch

    from .generate import bundle_of

    bundle = bundle_of(args.bundle)

    def draw(texts: list[str], seed: int, first: int) -> Tensor:
        made = bundle.generate(texts, "", args.steps, args.guidance, seed, first)
        return torch.from_numpy(made).permute(0, 3, 1, 2) / 127.5 - 1

    return draw


def scene_eval(draw: Any, args: Args) -> tuple[Any, list[Tensor]]:
    """The result, and the first picture of every prompt."""
    from tqdm import tqdm

    from ..eval.compose import PROMPTS, evaluate
    from ..eval.prompts import CATEGORIES, make
    from ..rewards.scenes import SceneDetector

    every = make(args.prompt_seed) if args.prompt_seed else PROMPTS
    chosen = [p for c in CATEGORIES for p in [q for q in every if q.category == c][: args.prompts]]
    shown: list[Tensor] = []
    with tqdm(total=len(chosen) * args.per_prompt, desc="SceneEval", disable=None, delay=2) as bar:

        def generate(texts: list[str], seeds: list[int]) -> Tensor:
            pictures = draw(texts, args.seed, seeds[0])
            shown.extend(x for x, i in zip(pictures, seeds) if i % args.per_prompt == 0)
            bar.update(len(texts))
            return pictures

        return evaluate(generate, SceneDetector(), args.per_prompt, chosen, args.batch), shown


def through(pipe: Pipeline, x: Tensor) -> Tensor:
    """Pictures encoded, and decoded by what draws."""
    import torch

    with torch.no_grad():
        return pipe.decoder.decode(pipe.vae.encode(x)).clamp(-1, 1)


def judge(pipe: Pipeline, count: int = 1000) -> list[dict[str, Any]]:
    """The detector on worlds whose truth is known, as they are and through the autoencoder."""
    from ..data.scenes import EVAL_WORLD, Scenes, World
    from ..eval.detection import accuracy
    from ..eval.reconstruction import psnr
    from ..rewards.scenes import SceneDetector

    rows = []
    for name, world in (("SceneEval's world", EVAL_WORLD), ("full world", World())):
        for change in (None, lambda x: through(pipe, x.to(pipe.device)).cpu()):
            found = accuracy(SceneDetector(), world, count, CAPTIONS, change=change)
            x = Scenes(world, 256)(PICTURES, 0).x
            row: dict[str, Any] = {"pictures": name, "through the autoencoder": "yes" if change else "no"}
            row |= {k: round(v, 4) for k, v in found.items()}
            rows.append(row | {"PSNR": round(float(psnr(x, change(x)).mean()), 2) if change else None})
    return rows


def frechet_distance(pipe: Pipeline, draw: Any, args: Args) -> dict[str, float]:
    """Frechet and kernel distance between pictures of world captions and the world's own pictures."""
    import torch
    from tqdm import tqdm

    from .. import store
    from ..data.scenes import TRAIN_WORLD, Scenes
    from ..eval.frechet import frechet, kernel
    from ..pipeline import SHIPPED

    network = store.load(SHIPPED / "scenes" / "features")
    h, w = pipe.sides(None)
    world = Scenes(TRAIN_WORLD, min(args.batch, args.frechet), (h, w))
    ours, theirs, again = [], [], []
    steps = -(-args.frechet // world.batch)
    with torch.no_grad():
        for i in tqdm(range(steps), "Frechet", disable=None, delay=2):
            captions: Any = world(CAPTIONS, i).text
            ours.append(network.features(draw(captions, args.seed + 1, i * world.batch)))
            theirs.append(network.features(world(PICTURES, i).x))
            again.append(network.features(world(PICTURES + 1, i).x))
    a, b, c = (torch.cat(x)[: args.frechet] for x in (ours, theirs, again))
    # two sets of the world's own pictures are not at zero: N pictures know a Gaussian only so well
    return {"frechet": frechet(a, b), "kernel": kernel(a, b)[0], "floor": frechet(c, b)}


def check(args: Args) -> None:
    least = {"per_prompt": 1, "batch": 1, "prompts": 1, "frechet": 0, "prompt_seed": 0}
    for name, low in least.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected {low} or more")
    if args.frechet == 1:
        raise ValueError("--frechet 1: a distance needs at least 2 pictures, or 0 to leave it out")


def main(args: Args) -> None:
    check(args)
    from ..pipeline import Pipeline, Schedule
    from ..runtime.manifest import read
    from ..store import config_of

    pipe = Pipeline.from_pretrained(args.model, args.decoder, args.width)
    pipe.to(choose(args.device), precision(args.dtype))
    if args.bundle:
        pipe.schedule = config_of(Schedule, read(args.bundle).schedule, args.bundle)
    if args.judge:
        from ..bench.table import markdown

        print(markdown(judge(pipe)))
        return
    schedule = pipe.settings(args.steps, args.guidance)
    draw = artist(pipe, args)
    result, shown = scene_eval(draw, args)
    print(result.table())
    numbers: dict[str, Any] = {
        "model": str(args.bundle or args.model),
        "steps": len(schedule.levels()) - 1,
        "guidance": schedule.guidance,
        "seed": args.seed,
        "prompt_seed": args.prompt_seed,
        "per_prompt": args.per_prompt,
        "pictures": result.pictures,
        "overall": result.overall,
        # JSON has no NaN: no prompt of the kind was asked
        "seen": known(result.seen),
        "held_out": known(result.held_out),
        "scores": result.scores,
        "intervals": result.intervals,
    }
    if args.out:
        write(args.out, numbers, result, shown)
    if args.frechet:
        numbers |= frechet_distance(pipe, draw, args) | {"frechet_pictures": args.frechet}
        print(
            f"Frechet distance {numbers['frechet']:.2f} (the world to itself: {numbers['floor']:.2f}),",
            end=" ",
        )
        print(f"kernel distance {numbers['kernel']:.4f} ({args.frechet} pictures, scenes features)")
        if args.out:
            write_numbers(args.out, numbers)


def known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_numbers(out: Path, numbers: dict[str, Any]) -> None:
    with renamed(out / "result.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=2) + "\n")


def write(out: Path, numbers: dict[str, Any], result: Any, shown: list[Tensor]) -> None:
    """result.json and report.html in ``out``."""
    import torch

    from ..eval.report import Report

    write_numbers(out, numbers)
    report = Report(f"SceneEval of {numbers['model']}")
    report.text(f"{numbers['steps']} steps, guidance {numbers['guidance']}, overall {numbers['overall']:.3f}")
    report.table([{"category": k, "score": round(v, 3)} for k, v in result.scores.items()])
    for category in result.scores:
        rows = [i for i, p in enumerate(result.prompts) if p.category == category][:12]
        marks = [f"{result.prompts[i].text} - {sum(result.right[i])}/{len(result.right[i])}" for i in rows]
        report.heading(category).grid(torch.stack([shown[i] for i in rows]), marks)
    print(report.save(out / "report.html"))
