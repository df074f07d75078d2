"""Counters: pictures and phrases -> masks of the instances, by any detector.

    count = DetectorCounter(SceneDetector(), WORDS)
    count(pictures, ["red circle", "star"]) -> [{"red circle": [mask, ...], "star": []}, ...]

An instance answers to a phrase when it has every word of it that describes what detectors see (shape, colour,
texture); words of size and the like are not looked at. A noun that the detector does not know is an error.
Lenient, for pictures that are not finished: an instance that answers to no phrase belongs to the one whose
colour it has, or that names no colour, if there is one such phrase alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from ..types import Detector, Instance

# what a detector of the scenes world can tell: the words of every kind
Words = Mapping[str, Sequence[str]]


class Counter(Protocol):
    """Pictures (B, 3, H, W) in [-1, 1]; masks (H, W) bool. ``check``: ValueError for what it cannot count."""

    def check(self, phrases: Sequence[str]) -> None: ...
    def __call__(self, pictures: Tensor, phrases: Sequence[str]) -> list[dict[str, list[Tensor]]]: ...


class DetectorCounter:
    """``words``: "shape", "colour" and "texture" -> what the detector knows of each."""

    def __init__(self, detector: Detector, words: Words, lenient: bool = False):
        self.detector, self.words = detector, {kind: set(known) for kind, known in words.items()}
        self.lenient = lenient

    def check(self, phrases: Sequence[str]) -> None:
        """ValueError for a noun that cannot be counted."""
        nouns = self.words["shape"]
        for phrase in phrases:
            if phrase.split()[-1] not in nouns:
                raise ValueError(f"the counter does not know {phrase!r}; it knows {', '.join(sorted(nouns))}")

    def answers(self, instance: Instance, phrase: str, kinds: Sequence[str] | None = None) -> bool:
        for word in phrase.split():
            for kind in kinds or self.words:
                if word in self.words[kind] and getattr(instance, kind) != word:
                    return False
        return True

    def named(self, instance: Instance, phrases: Sequence[str]) -> list[str]:
        """The phrases that ``instance`` counts for."""
        found = [p for p in phrases if self.answers(instance, p)]
        if found or not self.lenient:
            return found
        coloured = [p for p in phrases if self.answers(instance, p, ["colour"])]
        return coloured if len(coloured) == 1 else []

    def __call__(self, pictures: Tensor, phrases: Sequence[str]) -> list[dict[str, list[Tensor]]]:
        self.check(phrases)
        found = []
        for instances in self.detector(pictures):
            masks: dict[str, list[Tensor]] = {p: [] for p in phrases}
            for instance in instances:
                if instance.mask is not None:
                    for phrase in self.named(instance, phrases):
                        masks[phrase].append(instance.mask)
            found.append(masks)
        return found
