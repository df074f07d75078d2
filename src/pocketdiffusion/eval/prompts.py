"""The prompts of SceneEval: six categories of sixty, with what each asks for.

    single_object   a star                  counting      three stars
    two_object      a star and a ring       position      a red star to the left of a blue ring
    colors          a red star              color_attr    a red star and a blue ring

The categories are GenEval's (Ghosh et al., 2023, arXiv:2310.11513), the sentences are those of
``data/captions.py``. One in eight of those that name a colour asks for a (colour, shape) pair of
``HELD_OUT``, which no training picture shows. The prompts are committed, ``scene_eval.jsonl``;
``write(make())`` made the file and a test makes it again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random

from ..data.captions import Group, describe, relate
from ..data.scenes import HELD_OUT
from ..data.shapes import BACKDROPS, COLOURS, SHAPES

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PER_CATEGORY = 60
FILE = Path(__file__).with_name("scene_eval.jsonl")


@dataclass(frozen=True)
class Prompt:
    """A sentence, and what its picture must show. ``relation``: on which side of the second group the first
    is."""

    category: str
    text: str
    groups: tuple[Group, ...]
    relation: str = ""
    held_out: bool = False


def make(seed: int = 0) -> list[Prompt]:
    """All prompts, every text once."""
    rng = Random(f"SceneEval/{seed}")
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for category in CATEGORIES:
        for i in range(PER_CATEGORY):
            groups, relation = _ask(category, i, rng)
            text = _say(category, groups, relation, rng)
            while text in seen:
                text = _say(category, groups, relation, rng)
            seen.add(text)
            held_out = any((g.colour, g.shape) in HELD_OUT for g in groups)
            prompts.append(Prompt(category, text, groups, relation, held_out))
    return prompts


def _ask(category: str, i: int, rng: Random) -> tuple[tuple[Group, ...], str]:
    """The ``i``-th requirement of a category and its relation. Shapes, counts, colours and sides take turns;
    every eighth prompt that may name a colour is a held-out one."""
    kinds, turn = tuple(SHAPES), i // 8
    one = kinds[(i + turn) % 8]
    # 19 and the number of ordered pairs, 56, have no common factor
    two = list(permutations(kinds, 2))[i * 19 % 56]
    if category == "single_object":
        return (Group(1, one),), ""
    if category == "counting":
        return (Group(2 + turn % 3, one),), ""
    shapes = (one,) if category == "colors" else two
    # GenEval names no colours with positions; here every other one does
    coloured = category in ("colors", "color_attr") or (category == "position" and i % 2 == 1)
    colours = _colours(shapes, i % 8 == 7, rng) if coloured else [""] * len(shapes)
    side = ("left", "right", "above", "below")[(i // 2 + turn) % 4]
    groups = tuple(Group(1, shape, colour) for shape, colour in zip(shapes, colours))
    return groups, side if category == "position" else ""


def _colours(shapes: Sequence[str], held_out: bool, rng: Random) -> list[str]:
    """A different colour for every shape; the first pair is held out if asked, no other is."""
    while True:
        colours = rng.sample(tuple(COLOURS), len(shapes))
        if [pair in HELD_OUT for pair in zip(colours, shapes)] == [held_out, False][: len(shapes)]:
            return colours


def _say(category: str, groups: Sequence[Group], relation: str, rng: Random) -> str:
    if relation:
        return relate(groups[0], groups[1], relation, rng)
    # eight shapes alone make too few sentences
    told = category == "single_object" and rng.random() < 0.5
    return describe(groups, rng, rng.choice(tuple(BACKDROPS)) if told else "")


def write(prompts: Sequence[Prompt], path: Path = FILE) -> None:
    """One JSON object a line."""
    lines = []
    for p in prompts:
        requirement = [{"count": g.count, "shape": g.shape, "colour": g.colour} for g in p.groups]
        record = {"category": p.category, "prompt": p.text, "requirement": requirement}
        lines.append(json.dumps(record | {"relation": p.relation, "held_out": p.held_out}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def read(path: Path = FILE) -> list[Prompt]:
    prompts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        r = json.loads(line)
        groups = tuple(Group(**g) for g in r["requirement"])
        prompts.append(Prompt(r["category"], r["prompt"], groups, r["relation"], r["held_out"]))
    return prompts
