"""An endless, seeded world of captioned scenes, with the ground truth of every picture.

A scene is one to three groups of alike things that do not touch, on a light background, and a caption that
tells all of them. ``World`` holds every probability; they are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from ..types import Batch, Instance
from .captions import Group, describe, relate
from .render import Background, Scene, Thing, draw
from .shapes import BACKDROPS, COLOURS, KINDS_OF_BACKGROUND, SHAPES, TEXTURES

SIZES = {"small": (0.095, 0.125), "medium": (0.13, 0.17), "large": (0.18, 0.235)}


@dataclass(frozen=True)
class World:
    """What may appear, and how often. Lengths are fractions of the picture's side."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    textures: tuple[str, ...] = TEXTURES
    backgrounds: tuple[str, ...] = KINDS_OF_BACKGROUND
    held_out: frozenset[tuple[str, str]] = frozenset()  # (colour, shape) pairs that never appear
    most: int = 9  # things in one picture
    empty: float = 0.02  # how often there is nothing
    groups: tuple[float, float, float] = (0.5, 0.4, 0.1)  # how often there are one, two, three groups
    singles: float = 0.5  # how often every group is a single thing
    textured: float = 0.2  # how often a group is not plain
    tilt: float = 0.15  # largest rotation, radians
    gap: float = 0.03  # least distance between two things
    overlap: bool = False  # let things lie over each other
    tell_colour: float = 0.8
    tell_texture: float = 0.7
    tell_size: float = 0.3
    tell_backdrop: float = 0.12
    tell_relation: float = 0.5  # for two single things

    def __post_init__(self) -> None:
        pairs = {(c, s) for c in self.colours for s in self.shapes} - self.held_out
        wanted = max((i + 1 for i, often in enumerate(self.groups) if often), default=0)
        if len(pairs) < wanted or self.most < wanted:
            raise ValueError(
                f"a world of up to {wanted} groups needs as many things and (colour, shape) pairs"
            )


@dataclass(frozen=True)
class _Kind:
    """A group before it is placed."""

    count: int
    shape: str
    colour: str
    texture: str
    size: str


def _kinds(world: World, rng: Random) -> list[_Kind]:
    if rng.random() < world.empty:
        return []
    n = rng.choices((1, 2, 3), world.groups)[0]
    singles = rng.random() < world.singles
    kinds: list[_Kind] = []
    budget = world.most
    while len(kinds) < n:
        shape, colour = rng.choice(world.shapes), rng.choice(world.colours)
        if (colour, shape) in world.held_out or any((k.shape, k.colour) == (shape, colour) for k in kinds):
            continue
        left = budget - (n - len(kinds) - 1)
        count = (
            1 if singles else min(left, rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9)[: 4 + world.most]))
        )
        texture = rng.choice(world.textures[1:] or ("plain",)) if rng.random() < world.textured else "plain"
        crowd = "small" if world.most > 5 and count > 3 else rng.choice(("small", "medium"))
        size = rng.choice(tuple(SIZES)) if singles and n < 3 else crowd
        kinds.append(_Kind(count, shape, colour, texture, size))
        budget -= count
    return kinds


def _place(radii: Sequence[float], world: World, rng: Random) -> list[tuple[float, float]] | None:
    """Centres of circles that stay inside and, unless asked, ``gap`` apart; None when it did not work out."""
    spots: list[tuple[float, float]] = []
    for i, r in enumerate(radii):
        edge = r + 0.01
        for _ in range(40):
            x, y = rng.uniform(edge, 1 - edge), rng.uniform(edge, 1 - edge)
            clear = all(
                math.hypot(x - u, y - v) >= r + radii[j] + world.gap for j, (u, v) in enumerate(spots)
            )
            if world.overlap or clear:
                spots.append((x, y))
                break
        if len(spots) <= i:
            return None
    return spots


def _relation(a: Thing, b: Thing) -> str | None:
    """The side of ``b`` on which ``a`` stands, when one axis clearly dominates."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) > 1.4 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.4 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def sample(world: World, rng: Random) -> Scene:
    """One scene with its caption."""
    for _ in range(100):
        kinds = _kinds(world, rng)
        radii = [rng.uniform(*SIZES[k.size]) for k in kinds for _ in range(k.count)]
        spots = _place(radii, world, rng)
        if spots is not None:
            break
    else:
        raise ValueError(f"no room for the things of {world}: allow fewer (most) or a smaller gap")
    alike = [k for k in kinds for _ in range(k.count)]
    things = tuple(
        Thing(k.shape, k.colour, x, y, r, k.texture, rng.uniform(-world.tilt, world.tilt))
        for k, (x, y), r in zip(alike, spots, radii)
    )
    kind = rng.choice(world.backgrounds)
    colour, second = rng.sample(tuple(BACKDROPS), 2)
    background = Background(kind, colour, second, rng.uniform(0, 2 * math.pi), rng.getrandbits(31))
    return Scene(things, background, _caption(kinds, things, background, world, rng))


def _caption(
    kinds: Sequence[_Kind], things: Sequence[Thing], background: Background, world: World, rng: Random
) -> str:
    # things that share a shape can only be told apart by colour
    distinct = len({k.shape for k in kinds}) == len(kinds)
    colours = not distinct or rng.random() < world.tell_colour
    textures, sizes = rng.random() < world.tell_texture, rng.random() < world.tell_size
    groups = [
        Group(
            k.count,
            k.shape,
            k.colour if colours else "",
            k.texture if textures else "",
            k.size if sizes and k.size != "medium" else "",
        )
        for k in kinds
    ]
    told = background.kind != "gradient" and rng.random() < world.tell_backdrop
    backdrop = background.colour if told else ""
    if len(things) == len(kinds) == 2 and rng.random() < world.tell_relation:
        relation = _relation(*things)
        if relation:
            return relate(groups[0], groups[1], relation, rng, backdrop)
    return describe(groups, rng, backdrop)


def truth(scenes: Sequence[Scene], masks: Sequence[Tensor]) -> list[list[Instance]]:
    """What a perfect detector would see."""
    out = []
    for scene, visible in zip(scenes, masks):
        h, w = visible.shape[-2:]
        out.append(
            [
                Instance(t.shape, t.colour, t.texture, t.x * w, t.y * h, t.radius * min(h, w), m)
                for t, m in zip(scene.things, visible)
            ]
        )
    return out


@dataclass(frozen=True)
class Scenes:
    """``Scenes(...)(seed, step) -> Batch`` of pixels (B, 3, H, W), captions and instances."""

    world: World = World()
    batch: int = 32
    size: int | tuple[int, int] = 64
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    def specs(self, seed: int, step: int) -> list[Scene]:
        rng = Random(f"{seed}/{step}")
        return [sample(self.world, rng) for _ in range(self.batch)]

    def __call__(self, seed: int, step: int) -> Batch:
        scenes = self.specs(seed, step)
        x, masks = draw(scenes, self.size, self.device)
        return Batch(x, [s.caption for s in scenes], truth(scenes, masks))


# Pairs that no training picture of the shipped models shows; SceneEval asks for them all the same.
HELD_OUT = frozenset(
    {
        ("red", "heart"),
        ("orange", "star"),
        ("yellow", "diamond"),
        ("green", "ring"),
        ("cyan", "cross"),
        ("blue", "triangle"),
        ("purple", "circle"),
        ("pink", "square"),
    }
)

# The fixed world of SceneEval: plain or gradient background, solid or striped, radius 6 pixels or more at 64.
EVAL_WORLD = World(
    textures=("plain", "striped"), backgrounds=("plain", "gradient"), most=5, tilt=0.0, gap=0.04
)
# Mostly what SceneEval asks for: single things and pairs, often without their colours, and small counts.
TRAIN_WORLD = replace(
    EVAL_WORLD,
    held_out=HELD_OUT,
    empty=0.01,
    groups=(0.27, 0.71, 0.02),
    singles=0.8,
    textured=0.1,
    tell_colour=0.2,
    tell_backdrop=0.2,
    tell_relation=0.3,
)
# Up to nine things, of one kind or two, and captions that say how many: what counting is measured on.
COUNT_WORLD = replace(TRAIN_WORLD, most=9, groups=(0.7, 0.3, 0.0), singles=0.1, tell_colour=0.9)
WORLDS = {"scene_eval": TRAIN_WORLD, "counts": COUNT_WORLD}  # what models are trained on, by what for
