"""SceneEval: the six categories of GenEval in the scenes world, judged by a detector.

The rules are GenEval's (Ghosh et al., 2023, arXiv:2310.11513): a count is exact; everywhere else at least
what is named must be there, and the colour and the place are those of the surest things of the named shape.
Which side one thing is on is read from centres, after a margin of a tenth of the two extents. The score is
the mean of the six.

    result = evaluate(lambda texts, seeds: ..., SceneDetector())
    print(result.table())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from torch import Tensor

from ..types import Detector, Instance
from .prompts import CATEGORIES, Prompt, read

MARGIN = 0.1  # of the sum of two extents; GenEval's POSITION_THRESHOLD
PROMPTS = tuple(read())

Generate = Callable[[list[str], list[int]], Tensor]


def sides(a: Instance, b: Instance) -> set[str]:
    """On which sides of ``b`` is ``a``: none, one, or two where the direction is diagonal."""
    margin = MARGIN * 2 * (a.radius + b.radius)
    dx, dy = (math.copysign(max(abs(d) - margin, 0.0), d) for d in (a.x - b.x, a.y - b.y))
    far = math.hypot(dx, dy) or 1.0
    where = {"left": -dx, "right": dx, "above": -dy, "below": dy}
    return {side for side, d in where.items() if d / far > 0.5}


def judge(requirement: Prompt, instances: Sequence[Instance]) -> bool:
    """Whether a picture in which a detector saw ``instances`` shows what the prompt asks for."""
    groups = []
    for g in requirement.groups:
        alike = sorted((i for i in instances if i.shape == g.shape), key=lambda i: -i.score)
        if len(alike) < g.count or (requirement.category == "counting" and len(alike) > g.count):
            return False
        surest = alike[: g.count]
        if g.colour and any(i.colour != g.colour for i in surest):
            return False
        groups.append(surest)
    if requirement.relation:
        first, second = groups
        return all(requirement.relation in sides(a, b) for a in first for b in second)
    return True


@dataclass(frozen=True)
class Result:
    """``right[i][j]``: whether the ``j``-th picture of the ``i``-th prompt shows what was asked for."""

    prompts: tuple[Prompt, ...]
    right: tuple[tuple[bool, ...], ...]

    def _rows(self, keep: Callable[[Prompt], bool]) -> list[tuple[bool, ...]]:
        return [row for p, row in zip(self.prompts, self.right) if keep(p)]

    def category(self, name: str) -> list[tuple[bool, ...]]:
        return self._rows(lambda p: p.category == name)

    @property
    def scores(self) -> dict[str, float]:
        return {c: _mean(self.category(c)) for c in CATEGORIES if self.category(c)}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % per category."""
        return {c: interval(self.category(c)) for c in self.scores}

    @property
    def overall(self) -> float:
        return fmean(self.scores.values())

    @property
    def held_out(self) -> float:
        """The score on prompts with a (colour, shape) pair that training never showed; NaN without any."""
        return _mean(self._rows(lambda p: p.held_out))

    @property
    def seen(self) -> float:
        """The score on all other prompts that name a colour."""
        return _mean(self._rows(lambda p: not p.held_out and any(g.colour for g in p.groups)))

    @property
    def pictures(self) -> int:
        return sum(map(len, self.right))

    def table(self) -> str:
        """Markdown, and readable as it is."""
        lines = [
            "| category      | score | 95 % interval | prompts |",
            "|---------------|------:|--------------:|--------:|",
        ]
        intervals = self.intervals
        for c, score in self.scores.items():
            low, high = intervals[c]
            lines.append(f"| {c:13s} | {score:5.3f} | {low:.3f} - {high:.3f} | {len(self.category(c)):7d} |")
        lines.append(f"| overall       | {self.overall:5.3f} | {'':13s} | {len(self.prompts):7d} |")
        ends = (
            f"{self.pictures} pictures; pairs held out of training {self.held_out:.3f}, seen {self.seen:.3f}"
        )
        return "\n".join([*lines, "", ends])


def _mean(rows: Sequence[Sequence[bool]]) -> float:
    return fmean(v for row in rows for v in row) if rows else math.nan


def interval(rows: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean. Pictures of one prompt succeed together, so they count for fewer:
    their number is divided by the design effect, the variance of the prompts' means over that of independent
    pictures."""
    p, n = _mean(rows), float(sum(map(len, rows)))
    if len(rows) > 1 and 0 < p < 1:
        each = n / len(rows)
        spread = variance([fmean(row) for row in rows])
        n /= min(max(spread * each / (p * (1 - p)), 1.0), each)
    z2 = 1.96**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    generate: Generate,
    detector: Detector,
    per_prompt: int = 4,
    prompts: Sequence[Prompt] = PROMPTS,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """``generate(texts, seeds)`` -> pictures (B, 3, H, W) in [-1, 1], at most ``batch`` at a time; every
    picture has its own seed. ``progress(done, total)`` is called after each batch."""
    if per_prompt < 1 or batch < 1 or not prompts:
        raise ValueError(
            f"nothing to evaluate: {len(prompts)} prompts x {per_prompt} pictures, batch {batch}"
        )
    asked = [p for p in prompts for _ in range(per_prompt)]
    right: list[bool] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        pictures = generate([p.text for p in part], list(range(start, start + len(part))))
        if len(pictures) != len(part):
            raise ValueError(f"asked for {len(part)} pictures, got {len(pictures)}")
        right += [judge(p, seen) for p, seen in zip(part, detector(pictures))]
        if progress:
            progress(len(right), len(asked))
    rows = (tuple(right[i : i + per_prompt]) for i in range(0, len(right), per_prompt))
    return Result(tuple(prompts), tuple(rows))
