"""The scenes world moves: captioned clips (B, C, T, H, W), batch = f(seed, step).

A clip is a scene of which every group of alike things has one motion, named in the caption. All is a function
of the clip's own time, 0 at the first frame and 1 at the last; more frames show the same more finely.
Speeds are per clip: sides of the picture for move and bounce, turns for spin. All numbers are ours.

    "a red circle moving quickly to the right"      "a blue star spinning and two green squares growing"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch

from ..types import Batch
from .captions import Group, article, listing, noun_phrase
from .render import Scene, Thing, draw
from .scenes import HELD_OUT, World, sample, truth

MOVING_WORLD = World(most=3, empty=0.0, textures=("plain", "striped"), held_out=HELD_OUT)
OPENINGS = ("", "", "", "a video of ", "a clip of ")

_HALF = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "to the right": (1.0, 0.0),
    "to the left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up and to the right": (_HALF, -_HALF),
    "up and to the left": (-_HALF, -_HALF),
    "down and to the right": (_HALF, _HALF),
    "down and to the left": (-_HALF, _HALF),
}
TURNS = {"clockwise": 1.0, "counterclockwise": -1.0}
ADVERBS = {"slow": "slowly", "quick": "quickly"}
MOVE = {"slow": (0.15, 0.25), "quick": (0.45, 0.6)}
# under 36 degrees, half the symmetry of a star, between two of eight frames: one can see which way it turns
SPIN = {"slow": (0.15, 0.25), "quick": (0.5, 0.65)}
# further than any picture is wide inside its borders, so that every bouncing thing does bounce
BOUNCE = (1.2, 1.5)
GROW, SHRINK = (1.5, 1.8), (0.5, 0.6)
MARGIN = 0.01  # from a thing to the border
# how often each is tried; what does not fit becomes a bounce or still
KINDS = {"still": 1, "move": 5, "bounce": 1, "spin": 3, "grow": 4, "shrink": 1, "appear": 1}


@dataclass(frozen=True)
class Motion:
    """``way``: of DIRECTIONS or TURNS. ``amount``: sides or turns per clip, or last radius over first."""

    kind: str = "still"
    way: str = ""
    speed: str = ""  # slow | quick
    amount: float = 0.0


@dataclass(frozen=True)
class Clip:
    scene: Scene  # the first frame; its caption tells the motions
    motions: tuple[Motion, ...]  # one per thing

    def frames(self, count: int) -> list[Scene]:
        """The clip as ``count`` scenes."""
        return [self.frame(i / max(1, count - 1)) for i in range(count)]

    def frame(self, time: float) -> Scene:
        things = zip(self.scene.things, self.motions, strict=True)
        return replace(self.scene, things=tuple(at(thing, motion, time) for thing, motion in things))


def fold(x: float, low: float, high: float) -> float:
    """A straight path reflected at ``low`` and ``high``."""
    span = high - low
    return low + span - abs((x - low) % (2 * span) - span)


def at(thing: Thing, motion: Motion, time: float) -> Thing:
    """``thing`` at ``time`` of the clip, 0 to 1."""
    if motion.kind in ("move", "bounce"):
        (dx, dy), far, edge = DIRECTIONS[motion.way], motion.amount * time, thing.radius + MARGIN
        return replace(
            thing, x=fold(thing.x + far * dx, edge, 1 - edge), y=fold(thing.y + far * dy, edge, 1 - edge)
        )
    if motion.kind == "spin":
        return replace(thing, angle=thing.angle + 2 * math.pi * TURNS[motion.way] * motion.amount * time)
    if motion.kind in ("grow", "shrink"):
        return replace(thing, radius=thing.radius * (1 + (motion.amount - 1) * time))
    if motion.kind == "appear":
        # unseen in the first quarter of the clip, all there in the last
        return replace(thing, opacity=min(1.0, max(0.0, 2 * time - 0.5)))
    return thing


def room(thing: Thing) -> float:
    """How far the border is from the centre."""
    return min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) - MARGIN


def stays(thing: Thing, way: str, amount: float) -> bool:
    """Whether ``thing`` can go there without meeting the border."""
    (dx, dy), edge = DIRECTIONS[way], thing.radius + MARGIN
    return all(edge <= p <= 1 - edge for p in (thing.x + amount * dx, thing.y + amount * dy))


def turns(thing: Thing) -> bool:
    """Whether turning it can be seen."""
    return thing.shape not in ("circle", "ring") or thing.texture == "striped"


def choose(things: Sequence[Thing], rng: Random) -> Motion:
    """A motion that every one of ``things`` can do."""
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    speeds = rng.sample(("slow", "quick"), 2)
    if kind == "move":
        for speed in speeds:
            amount = rng.uniform(*MOVE[speed])
            if ways := [w for w in DIRECTIONS if all(stays(t, w, amount) for t in things)]:
                return Motion("move", rng.choice(ways), speed, amount)
    if kind in ("move", "bounce"):
        return Motion("bounce", rng.choice(tuple(DIRECTIONS)), "", rng.uniform(*BOUNCE))
    if kind == "spin" and all(map(turns, things)):
        return Motion("spin", rng.choice(tuple(TURNS)), speeds[0], rng.uniform(*SPIN[speeds[0]]))
    if kind == "grow":
        amount = rng.uniform(*GROW)
        if all(t.radius * amount <= room(t) for t in things):
            return Motion("grow", amount=amount)
    if kind == "shrink":
        return Motion("shrink", amount=rng.uniform(*SHRINK))
    return Motion("appear" if kind == "appear" else "still")


def phrase(motion: Motion, rng: Random) -> str:
    """As in "moving slowly to the left", "spinning clockwise"; speed and turn are not always told."""
    adverb = ADVERBS[motion.speed] if motion.speed and rng.random() < 0.6 else ""
    if motion.kind == "move":
        words = ["moving", adverb, motion.way]
    elif motion.kind == "bounce":
        dx, dy = DIRECTIONS[motion.way]
        path = "around" if dx and dy else "left and right" if dx else "up and down"
        words = ["bouncing", path if rng.random() < 0.6 else ""]
    elif motion.kind == "spin":
        words = [rng.choice(("spinning", "turning")), adverb, motion.way if rng.random() < 0.4 else ""]
    elif motion.kind == "still":
        words = [rng.choice(("standing still", "not moving"))]
    else:
        words = [{"grow": "growing", "shrink": "shrinking", "appear": "appearing"}[motion.kind]]
    return " ".join(w for w in words if w)


def animate(world: World, rng: Random) -> Clip:
    """One clip with its caption."""
    scene = sample(world, rng)
    alike: dict[tuple[str, str], list[Thing]] = {}
    for thing in scene.things:
        alike.setdefault((thing.shape, thing.colour), []).append(thing)
    motion = {key: choose(things, rng) for key, things in alike.items()}
    scene = replace(scene, caption=_caption(scene, alike, motion, world, rng) if alike else scene.caption)
    return Clip(scene, tuple(motion[t.shape, t.colour] for t in scene.things))


def _caption(
    scene: Scene,
    alike: dict[tuple[str, str], list[Thing]],
    motion: dict[tuple[str, str], Motion],
    world: World,
    rng: Random,
) -> str:
    # things that share a shape can only be told apart by colour
    distinct = len({shape for shape, _ in alike}) == len(alike)
    colours, textures = not distinct or rng.random() < world.tell_colour, rng.random() < world.tell_texture
    phrases = []
    for (shape, colour), things in rng.sample(list(alike.items()), len(alike)):
        group = Group(len(things), shape, colour if colours else "", things[0].texture if textures else "")
        phrases.append(f"{noun_phrase(group, rng)} {phrase(motion[shape, colour], rng)}")
    back = scene.background
    told = back.kind != "gradient" and rng.random() < world.tell_backdrop
    end = f" on {article(back.colour)} {back.colour} background" if told else ""
    return rng.choice(OPENINGS) + listing(phrases) + end


@dataclass(frozen=True)
class Clips:
    """``Clips(...)(seed, step) -> Batch`` of pixels (B, 3, T, H, W), captions and the instances of frame 0.

    What is yet to appear is among the instances, with an empty mask. ``specs`` has the truth of every frame.
    """

    world: World = MOVING_WORLD
    batch: int = 8
    size: int | tuple[int, int] = 64
    frames: int = 16
    device: torch.device | str = "cpu"

    def specs(self, seed: int, step: int) -> list[Clip]:
        rng = Random(f"{seed}/{step}")
        return [animate(self.world, rng) for _ in range(self.batch)]

    def __call__(self, seed: int, step: int) -> Batch:
        clips = self.specs(seed, step)
        x, masks = draw([f for c in clips for f in c.frames(self.frames)], self.size, self.device)
        x = x.unflatten(0, (self.batch, self.frames)).transpose(1, 2)  # (B, 3, T, H, W)
        firsts = truth([c.frame(0) for c in clips], masks[:: self.frames])
        return Batch(x.contiguous(), [c.scene.caption for c in clips], firsts)
