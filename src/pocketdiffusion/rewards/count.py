"""Counters: pictures and phrases -> masks of the instances, by any detector.

    count = Counter(SceneDetector(), WORDS)
    count(pictures, ["red circle", "star"]) -> [{"red circle": [mask, ...], "star": []}, ...]

An instance answers to a phrase when it has every word of it that describes what detectors see (shape, colour,
texture); words of size and the like are not looked at. A noun that the detector does not know is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..types import Detector, Instance

# what a detector of the scenes world can tell: the words of every kind
Words = Mapping[str, Sequence[str]]


class Counter:
    """``words``: "shape", "colour" and "texture" -> what the detector knows of each."""

    def __init__(self, detector: Detector, words: Words):
        self.detector, self.words = detector, {kind: set(known) for kind, known in words.items()}

    def check(self, phrases: Sequence[str]) -> None:
        """ValueError for a noun that cannot be counted."""
        nouns = self.words["shape"]
        for phrase in phrases:
            if phrase.split()[-1] not in nouns:
                raise ValueError(f"the counter does not know {phrase!r}; it knows {', '.join(sorted(nouns))}")

    def answers(self, instance: Instance, phrase: str) -> bool:
        for word in phrase.split():
            for kind, known in self.words.items():
                if word in known and getattr(instance, kind) != word:
                    return False
        return True

    def __call__(self, pictures: Tensor, phrases: Sequence[str]) -> list[dict[str, list[Tensor]]]:
        self.check(phrases)
        found = []
        for instances in self.detector(pictures):
            masks = {
                p: [i.mask for i in instances if self.answers(i, p) and i.mask is not None] for p in phrases
            }
            found.append(masks)
        return found
