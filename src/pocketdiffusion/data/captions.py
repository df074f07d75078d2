"""Puts a scene into words: articles, numbers, attributes, relations, several phrasings.

"three red circles and a blue square"      "a picture of 2 small stars on a white background"
"a blue square to the left of a striped green heart"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OPENINGS = ("", "", "", "a picture of ", "an image of ")
RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Group:
    """Things that are alike, and which of their attributes the caption tells (empty = not told)."""

    count: int
    shape: str
    colour: str = ""
    texture: str = ""
    size: str = ""


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def number(count: int, rng: Random) -> str:
    return NUMBERS[count] if rng.random() < 0.75 else str(count)


def noun_phrase(group: Group, rng: Random) -> str:
    """ "a small red circle", "one red circle", "3 striped stars"."""
    texture = "" if group.texture == "plain" else group.texture
    noun = group.shape if group.count == 1 else plural(group.shape)
    words = [w for w in (group.size, texture, group.colour, noun) if w]
    if group.count == 1 and rng.random() < 0.85:
        return " ".join([article(words[0]), *words])
    return " ".join([number(group.count, rng), *words])


def listing(phrases: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def describe(groups: Sequence[Group], rng: Random, backdrop: str = "") -> str:
    """Everything that is in the scene, in random order."""
    end = f" on {article(backdrop)} {backdrop} background" if backdrop else ""
    if not groups:
        return rng.choice(("nothing", "an empty picture", "no shapes")) + end
    order = rng.sample(list(groups), len(groups))
    return rng.choice(OPENINGS) + listing([noun_phrase(g, rng) for g in order]) + end


def relate(a: Group, b: Group, relation: str, rng: Random, backdrop: str = "") -> str:
    """``a`` stands left | right | above | below of ``b``; told from either side."""
    if rng.random() < 0.5:
        a, b, relation = b, a, OPPOSITE[relation]
    end = f" on {article(backdrop)} {backdrop} background" if backdrop else ""
    phrase = f"{noun_phrase(a, rng)} {rng.choice(RELATIONS[relation])} {noun_phrase(b, rng)}"
    return rng.choice(OPENINGS) + phrase + end
