"""CountDiffusion's claims: exact counts before and after correction, by two counters.

    pocket train count_claims --judge runs/count_judge/judge
    pocket train count_claims --prompt-seed 1 --prompts 4 --seeds 0 --middles 0.6 0.75 0.9 --sizes 0.05 0.1
    pocket train count_claims --model runs/count_model/pipeline --layers blocks.14.cross blocks.16.cross
    pocket train count_claims --model my_sdxl/ --counter grounding-dino-base

Prompts ask for 1 to 9 things of one kind (``single``), or for 1 to 3 each of two kinds (``several``). Arm
``plain`` is the pipeline as it is; ``corrected-MIDDLE-SIZE`` looks at that share of the steps and guides with
steps of that size, from the same noise. Measures: exact counts and absolute errors, by the counter that also
corrects, which takes a thing by its colour where no shape fits; from the kept pictures by SceneEval's own
(``strict``: outlines and shapes must be right) and by the judge (recipes/count_judge.py); ``strays``, things
per picture that nobody asked for; the Frechet distance to the world of up to nine things;
pictures that were changed; calls of the denoiser; and of ``plain`` pictures the share whose count was
foreseen at a part of the steps (``at_45``: 45 %). Every run is kept (OUT/ARM-SEED.json and .safetensors) and
not repeated; a seed is that of the sampling noise. Settings are chosen with --prompt-seed 1 and reported with
2. Numbers: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import store
from ..bench.table import text
from ..cli.counting import Looking, asked, scene_counter
from ..data.captions import plural
from ..data.scenes import COUNT_WORLD, Scenes
from ..data.shapes import COLOURS, SHAPES
from ..device import choose
from ..diffusion.count import Settings
from ..diffusion.samplers import Step
from ..disk import save_tensors
from ..eval.frechet import Gaussian, frechet
from ..eval.seeds import against, collect, settings, table
from ..export.foreign import opened
from ..pipeline import SHIPPED
from ..rewards.count import Counter, DetectorCounter
from ..rewards.detectors import load
from ..rewards.regressor import CountNet
from ..text.numbers import WORDS
from ..train import spread

MAY_CHANGE = {"seeds", "middles", "sizes", "batch", "judge"}
MEASURES = {
    "single": 3, "several": 3, "single_strict": 3, "several_strict": 3, "single_judge": 3, "several_judge": 3,
    "error": 2, "error_strict": 2, "error_judge": 2, "strays": 3, "strays_strict": 3, "frechet": 2,
    "changed": 3, "calls": 1,
}  # fmt: skip
FORESEEN = (30, 45, 60, 75, 90)  # percent of the steps


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/count_claims")
    model: str = "scenes"  # a shipped pipeline's name or a folder, ours or of diffusers
    judge: str = ""  # a folder of count_judge; empty: the counter alone judges
    counter: str = ""  # a detector of transformers; empty: that of the scenes world
    segmenter: str = ""  # SAM of transformers, beside --counter
    middles: tuple[float, ...] = (Settings.middle,)
    sizes: tuple[float, ...] = (Settings.size,)
    layers: tuple[str, ...] = ()  # whose map is looked at (count_layers); default: those of the finest grid
    first: int = Settings.first
    until: float = Settings.until
    add: float = Settings.add
    through: str = Settings.through
    together: str = Settings.several  # what is done where several kinds are wrong: together or apart
    prompts: int = 10  # of each number, and of each pair of numbers
    most: int = 9  # things of one kind
    prompt_seed: int = 2
    steps: int | None = None  # of the sampler; None: what the pipeline says
    batch: int = 32  # pictures of ``plain`` at a time
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"


def told(n: int, colour: str, shape: str) -> str:
    return f"{WORDS[n]} {colour} {shape if n == 1 else plural(shape)}"


def single(args: Args) -> Iterator[str]:
    rng = Random(f"count/{args.prompt_seed}")
    for n in range(1, args.most + 1):
        for _ in range(args.prompts):
            shape, colour = rng.choice(list(SHAPES)), rng.choice(list(COLOURS))
            yield told(n, colour, shape)


def several(args: Args) -> Iterator[str]:
    rng = Random(f"counts/{args.prompt_seed}")
    for a in range(1, 4):
        for b in range(1, 4):
            for _ in range(args.prompts):
                shapes, colours = rng.sample(list(SHAPES), 2), rng.sample(list(COLOURS), 2)
                yield " and ".join(map(told, (a, b), colours, shapes))


class Judged:
    """Counts of finished pictures beside what was asked for."""

    def __init__(self, counter: Counter):
        self.counter = counter
        self.rows: dict[str, list[float]] = {}
        self.pictures: list[Tensor] = []

    def note(self, measure: str, value: float) -> None:
        self.rows.setdefault(measure, []).append(float(value))

    def __call__(self, kind: str, prompt: str, picture: Tensor) -> None:
        wanted = {t.phrase: t.count for t in asked(prompt, (), self.counter)}
        phrases = list(wanted)
        seen = {p: float(len(m)) for p, m in self.counter(picture[None], phrases)[0].items()}
        self.score(kind, wanted, seen)
        if isinstance(self.counter, DetectorCounter):
            there = self.counter.detector(picture[None])[0]
            self.note("strays", sum(not self.counter.named(thing, phrases) for thing in there))
        self.pictures.append(picture.cpu())

    def score(self, kind: str, wanted: dict[str, int], seen: dict[str, float], end: str = "") -> None:
        self.note(kind + end, all(seen[p] == n for p, n in wanted.items()))
        self.note("error" + end, sum(abs(seen[p] - n) for p, n in wanted.items()) / len(wanted))

    def means(self) -> dict[str, float]:
        found = {name: sum(values) / len(values) for name, values in self.rows.items()}
        if self.pictures and isinstance(self.counter, DetectorCounter):
            found["frechet"] = distance(self.pictures)
        return found


def kept(path: Path) -> Tensor:
    """The pictures of a run, (N, 3, H, W) in [-1, 1]."""
    return load_file(path)["pictures"].to(torch.float32) / 127.5 - 1


def by_number(counter: Counter, prompts: list[tuple[str, str]], path: Path) -> dict[str, float]:
    """Of the kept pictures of one kind, the share that is exact for each number asked for."""
    judged = Judged(counter)
    for (kind, prompt), picture in zip(prompts, kept(path)):
        if kind == "single":
            ((phrase, n),) = ((t.phrase, t.count) for t in asked(prompt, (), counter))
            judged.note(str(n), len(counter(picture[None], [phrase])[0].get(phrase, ())) == n)
    return judged.means()


def by_judge(
    judge: CountNet, counter: Counter, prompts: list[tuple[str, str]], path: Path
) -> dict[str, float]:
    """What the judge says of kept pictures."""
    judged = Judged(counter)
    for (kind, prompt), picture in zip(prompts, kept(path)):
        wanted = {t.phrase: t.count for t in asked(prompt, (), counter)}
        seen = judge.count(picture[None].to(next(judge.parameters())), list(wanted))[0].round().tolist()
        judged.score(kind, wanted, dict(zip(wanted, seen)), "_judge")
    return judged.means()


def strictly(prompts: list[tuple[str, str]], path: Path) -> dict[str, float]:
    """Of kept pictures, what the detector says that SceneEval asks, to which shapes and outlines matter."""
    counter = scene_counter()
    judged = Judged(counter)
    for (kind, prompt), picture in zip(prompts, kept(path)):
        wanted = {t.phrase: t.count for t in asked(prompt, (), counter)}
        there = counter.detector(picture[None])[0]
        named = [counter.named(thing, list(wanted)) for thing in there]
        judged.score(kind, wanted, {p: float(sum(p in n for n in named)) for p in wanted}, "_strict")
        judged.note("strays_strict", sum(not n for n in named))
    return judged.means()


@torch.no_grad()
def distance(pictures: list[Tensor]) -> float:
    """To as many pictures of the world of up to nine things, by the features of the scenes world."""
    features = store.load(SHIPPED / "scenes" / "features").features
    ours, theirs = Gaussian(), Gaussian()
    world = Scenes(COUNT_WORLD, 32, pictures[0].shape[-1])
    for i in range(0, len(pictures), 32):
        part = torch.stack(pictures[i : i + 32])
        ours.add(features(part))
        theirs.add(features(world(10**6 + 3, i).x[: len(part)]))
    return frechet(ours, theirs)


def plain(pipe: Any, judged: Judged, prompts: list[tuple[str, str]], seed: int, batch: int) -> None:
    """The pipeline as it is, and what could be counted on the way."""
    steps = len(pipe.schedule.levels()) - 1
    looks = {max(1, round(percent / 100 * steps)): percent for percent in FORESEEN}
    for i in range(0, len(prompts), batch):
        part, previews = prompts[i : i + batch], dict[int, Tensor]()

        def keep(step: Step, previews: dict[int, Tensor] = previews) -> None:
            if step.index + 1 in looks:
                previews[looks[step.index + 1]] = step.x0

        pictures = pipe.sample([p for _, p in part], seed=seed, first=i, callback=keep)
        for (kind, prompt), picture in zip(part, pictures):
            judged(kind, prompt, picture)
        for percent, x0 in previews.items():
            with torch.no_grad():
                drawn = pipe.decoder.decode(x0).float().clamp(-1, 1)
            for (_, prompt), before, after in zip(part, drawn, pictures):
                phrases = [t.phrase for t in asked(prompt, (), judged.counter)]
                counts = [
                    {p: len(m) for p, m in judged.counter(x[None], phrases)[0].items()}
                    for x in (before, after)
                ]
                judged.note(f"at_{percent}", counts[0] == counts[1])


def corrected(looking: Looking, judged: Judged, prompts: list[tuple[str, str]], seed: int) -> None:
    """The same prompts from the same noise, one picture at a time."""
    for i, (kind, prompt) in enumerate(prompts):
        made = looking(prompt, seed=seed, index=i)
        judged(kind, prompt, made.picture)
        judged.note("changed", made.changed)
        judged.note("calls", made.calls)


def main(args: Args) -> None:
    if spread.world() > 1:
        raise ValueError("count_claims runs in one process; start several with other --seeds")
    if args.segmenter and not args.counter:
        raise ValueError(f"--segmenter {args.segmenter}: refines the boxes of a --counter, give both")
    arms = {"plain": Settings()} | {
        f"corrected-{middle:g}-{size:g}": Settings(
            middle, args.first, args.until, size, add=args.add, through=args.through, several=args.together
        )
        for middle in args.middles
        for size in args.sizes
    }
    pipe = opened(args.model).to(choose(args.device))
    pipe.schedule = pipe.settings(args.steps, None)
    for network in pipe.components.values():
        network.requires_grad_(False)
    counter = load(args.counter, args.segmenter or None, pipe.device) if args.counter else None
    count = counter or scene_counter(lenient=True)
    judge = None
    if args.judge:
        judge = store.load(Path(args.judge)).to(pipe.device)
        if not isinstance(judge, CountNet):
            raise ValueError(f"--judge {args.judge}: a {type(judge).__name__}, expected a CountNet")
    # whether it can be corrected at all, before much is drawn
    Looking(pipe, counter=counter, layers=args.layers)
    prompts = [("single", p) for p in single(args)] + [("several", p) for p in several(args)]

    def run(arm: str, seed: int) -> dict[str, float]:
        judged = Judged(count)
        if arm == "plain":
            plain(pipe, judged, prompts, seed, args.batch)
        else:
            corrected(Looking(pipe, arms[arm], counter, layers=args.layers), judged, prompts, seed)
        pictures = ((torch.stack(judged.pictures) + 1) * 127.5).round().to(torch.uint8)
        save_tensors({"pictures": pictures}, args.out / f"{arm}-{seed}.safetensors", {"format": "pt"})
        return judged.means()

    found = collect(args.out, arms, args.seeds, run, settings(args, MAY_CHANGE))
    if judge:
        for arm, seeds in found.items():
            for seed, measured in seeds.items():
                measured |= by_judge(judge, count, prompts, args.out / f"{arm}-{seed}.safetensors")
    if not args.counter:
        for arm, seeds in found.items():
            for seed, measured in seeds.items():
                measured |= strictly(prompts, args.out / f"{arm}-{seed}.safetensors")
    missing = ("_judge",) * (judge is None) + ("_strict",) * bool(args.counter)
    measures = {m: d for m, d in MEASURES.items() if not m.endswith(missing)}
    print(text(table(found, measures)))
    print(text(table({"plain": found["plain"]}, {f"at_{percent}": 3 for percent in FORESEEN})))
    print(text(against(found, "plain", measures)))
    print("exact, one kind, by the number asked for:")
    numbers = {
        arm: {seed: by_number(count, prompts, args.out / f"{arm}-{seed}.safetensors") for seed in seeds}
        for arm, seeds in found.items()
    }
    print(text(table(numbers, {str(n): 2 for n in range(1, args.most + 1)})))
