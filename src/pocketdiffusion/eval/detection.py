"""How often a detector is right, in worlds whose truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from time import process_time

from torch import Tensor

from ..data.scenes import Scenes, World
from ..types import Detector

BATCH = 25


def accuracy(
    detector: Detector,
    world: World,
    n: int = 500,
    seed: int = 0,
    size: int = 64,
    change: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Over ``n`` scenes, after ``change`` (say, an autoencoder round trip) if one is given:

    scenes      the share whose (shape, colour) multiset is exactly right
    recall      things found, of those there
    precision   things there, of those found
    texture     right textures, of the things found that are there
    ms          of processor time a picture
    """
    whole = there = found = both = told = same = 0
    spent = 0.0
    for step in range(-(-n // BATCH)):
        batch = Scenes(world, min(BATCH, n - step * BATCH), size)(seed, step)
        pictures = change(batch.x) if change else batch.x
        start = process_time()
        everything = detector(pictures)
        spent += process_time() - start
        for seen, truth in zip(everything, batch.truth or ()):
            a, b = (Counter((i.shape, i.colour) for i in things) for things in (seen, truth))
            textures = {(i.shape, i.colour): i.texture for i in truth}
            named = [i for i in seen if (i.shape, i.colour) in textures]
            whole += a == b
            there, found, both = there + len(truth), found + len(seen), both + (a & b).total()
            told += len(named)
            same += sum(textures[i.shape, i.colour] == i.texture for i in named)
    return {
        "scenes": whole / n,
        "recall": both / max(there, 1),
        "precision": both / max(found, 1),
        "texture": same / max(told, 1),
        "ms": 1000 * spent / n,
    }
