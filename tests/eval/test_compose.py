import math
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch

from pocketdiffusion.data.captions import Group
from pocketdiffusion.data.render import Scene, Thing, draw
from pocketdiffusion.data.scenes import HELD_OUT, SIZES
from pocketdiffusion.data.shapes import COLOURS, SHAPES
from pocketdiffusion.eval import prompts
from pocketdiffusion.eval.compose import PROMPTS, evaluate, interval, judge, sides
from pocketdiffusion.eval.prompts import CATEGORIES, Prompt
from pocketdiffusion.types import Instance

BY_TEXT = {p.text: p for p in PROMPTS}
SPOTS = {"left": (0.2, 0.5), "right": (0.8, 0.5), "above": (0.5, 0.2), "below": (0.5, 0.8)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def things(prompt: Prompt, seed: int = 0) -> list[Thing]:
    """What the prompt asks for, each in a place of its own."""
    rng = Random(seed)
    if prompt.relation:
        spots = [SPOTS[prompt.relation], SPOTS[OPPOSITE[prompt.relation]]]
    else:
        spots = rng.sample([(x, y) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)], 9)
    wanted = [g for g in prompt.groups for _ in range(g.count)]
    return [
        Thing(g.shape, g.colour or rng.choice(tuple(COLOURS)), *spot, rng.uniform(*SIZES["small"]))
        for g, spot in zip(wanted, spots)
    ]


def see(pictured: list[Thing]) -> list[Instance]:
    return [Instance(t.shape, t.colour, "plain", t.x * 64, t.y * 64, t.radius * 64) for t in pictured]


class Oracle:
    """Generates what is asked for after ``change``, and detects it by heart: pictures carry only an index."""

    def __init__(self, change=lambda prompt, pictured: pictured):
        self.change, self.drawn = change, []

    def generate(self, texts, seeds):
        first = len(self.drawn)
        self.drawn += [self.change(BY_TEXT[t], things(BY_TEXT[t], s)) for t, s in zip(texts, seeds)]
        return torch.arange(first, len(self.drawn)).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)

    def detect(self, pictures):
        return [see(self.drawn[int(i)]) for i in pictures[:, 0, 0, 0]]

    def result(self, **settings):
        return evaluate(self.generate, self.detect, **settings)


def test_the_committed_prompts_are_the_generated_ones(tmp_path):
    prompts.write(prompts.make(), tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == prompts.FILE.read_bytes()
    assert prompts.make() == list(PROMPTS)


def test_the_prompts_are_many_different_and_balanced():
    assert len(BY_TEXT) == len(PROMPTS)
    assert Counter(p.category for p in PROMPTS) == dict.fromkeys(CATEGORIES, 60)
    counts = Counter(g.count for p in PROMPTS if p.category == "counting" for g in p.groups)
    assert set(counts) == {2, 3, 4} and min(counts.values()) >= 16
    assert min(Counter(p.relation for p in PROMPTS if p.relation).values()) >= 14
    for category in CATEGORIES:
        shapes = Counter(g.shape for p in PROMPTS if p.category == category for g in p.groups)
        assert set(shapes) == set(SHAPES)


def test_held_out_pairs_are_flagged_and_about_one_in_eight():
    for p in PROMPTS:
        assert p.held_out == any((g.colour, g.shape) in HELD_OUT for g in p.groups)
    for category in ("colors", "position", "color_attr"):
        flags = [p.held_out for p in PROMPTS if p.category == category]
        assert 0.10 <= sum(flags) / len(flags) <= 0.15


def test_the_text_says_what_is_required():
    for p in PROMPTS:
        for g in p.groups:
            noun = g.shape if g.count == 1 else g.shape + ("es" if g.shape == "cross" else "s")
            assert noun in p.text.split()
            assert not g.colour or g.colour in p.text
        assert len({g.shape for g in p.groups}) == len(p.groups)


@pytest.mark.parametrize("category", CATEGORIES)
def test_what_is_asked_for_is_right(category):
    assert all(judge(p, see(things(p))) for p in PROMPTS if p.category == category)


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_empty_picture_is_wrong(category):
    assert not any(judge(p, []) for p in PROMPTS if p.category == category)


def test_a_wrong_count_is_wrong_either_way():
    for p in PROMPTS:
        if p.category == "counting":
            seen = see(things(p))
            assert not judge(p, seen[1:])
            assert not judge(p, [*seen, seen[0]])
            assert judge(p, [*seen, Instance("other", "red")])


def test_elsewhere_more_than_asked_for_is_right():
    single = next(p for p in PROMPTS if p.category == "single_object")
    assert judge(single, see(things(single)) * 2)


def test_a_wrong_colour_is_wrong():
    for p in PROMPTS:
        if any(g.colour for g in p.groups):
            shifted = dict(zip(COLOURS, [*COLOURS][1:] + [*COLOURS][:1]))
            assert not judge(p, see([replace(t, colour=shifted[t.colour]) for t in things(p)]))


def test_swapped_colours_are_wrong():
    for p in PROMPTS:
        if p.category == "color_attr":
            a, b = things(p)
            assert not judge(p, see([replace(a, colour=b.colour), replace(b, colour=a.colour)]))


def test_the_colour_is_that_of_the_surest_thing():
    p = Prompt("colors", "a red star", (Group(1, "star", "red"),))
    red, blue = Instance("star", "red", score=0.9), Instance("star", "blue", score=0.8)
    assert judge(p, [blue, red])
    assert not judge(p, [red, replace(blue, score=0.95)])


def test_the_other_side_is_wrong():
    for p in PROMPTS:
        if p.relation:
            a, b = things(p)
            assert not judge(p, see([replace(a, x=b.x, y=b.y), replace(b, x=a.x, y=a.y)]))


def test_sides_have_a_margin_and_diagonals_two():
    a = Instance("star", "red", x=20, y=32, radius=8)
    assert sides(a, replace(a, x=40)) == {"left"}
    assert sides(replace(a, x=40), a) == {"right"}
    assert sides(a, replace(a, y=50)) == {"above"}
    assert sides(a, replace(a, x=40, y=12)) == {"left", "below"}
    # a tenth of the two extents of 16 pixels
    assert sides(a, replace(a, x=23.1)) == set()
    assert sides(a, replace(a, x=23.3)) == {"left"}


def test_a_perfect_generator_scores_one():
    result = Oracle().result(per_prompt=2)
    assert result.overall == 1 and result.seen == 1 and result.held_out == 1
    assert result.scores == dict.fromkeys(CATEGORIES, 1.0)
    assert result.pictures == 720
    assert all(low > 0.95 and high == pytest.approx(1) for low, high in result.intervals.values())


def test_shuffled_prompts_score_low():
    texts = [p.text for p in PROMPTS]
    wrong = dict(zip(texts, Random(0).sample(texts, len(texts))))
    oracle = Oracle()
    result = evaluate(
        lambda asked, seeds: oracle.generate([wrong[t] for t in asked], seeds), oracle.detect, per_prompt=1
    )
    assert result.overall < 0.1


def test_categories_fail_on_their_own():
    def one_less(prompt, pictured):
        return pictured[1:] if prompt.category == "counting" else pictured

    result = Oracle(one_less).result(per_prompt=1)
    assert result.scores == {c: float(c != "counting") for c in CATEGORIES}
    assert result.overall == pytest.approx(5 / 6)


def test_held_out_pairs_are_scored_apart():
    def never(prompt, pictured):
        return [] if prompt.held_out else pictured

    result = Oracle(never).result(per_prompt=1)
    assert (result.held_out, result.seen) == (0, 1)


def test_batches_seeds_and_progress():
    calls, done = [], []
    oracle = Oracle()

    def generate(texts, seeds):
        calls.append(seeds)
        return oracle.generate(texts, seeds)

    few = PROMPTS[:7]
    result = evaluate(generate, oracle.detect, 3, few, batch=5, progress=lambda *p: done.append(p))
    assert [s for seeds in calls for s in seeds] == list(range(21)) and max(map(len, calls)) == 5
    assert done[-1] == (21, 21)
    assert result.right == ((True,) * 3,) * 7
    assert math.isnan(result.held_out)


def test_nothing_to_do_and_missing_pictures_are_refused():
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Oracle().result(per_prompt=0)
    with pytest.raises(ValueError, match="got 1"):
        evaluate(lambda texts, seeds: torch.zeros(1, 3, 8, 8), Oracle().detect)


def test_interval_is_wilsons_and_widens_when_a_prompt_decides():
    alone = [(i < 5,) for i in range(10)]
    assert interval(alone) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    low, high = interval([(i < 5,) * 4 for i in range(10)])
    assert (low, high) == pytest.approx(interval(alone), abs=0.01)
    mixed = interval([(True, True, False, False)] * 10)
    assert mixed[1] - mixed[0] < 0.6 * (high - low)


def test_the_table_has_every_category_and_the_whole():
    table = Oracle().result(per_prompt=1).table()
    for word in (*CATEGORIES, "overall", "held out", "360 pictures"):
        assert word in table


@pytest.mark.slow
def test_drawn_pictures_judged_by_the_detector_score_one():
    pytest.importorskip("scipy")
    from pocketdiffusion.rewards.scenes import SceneDetector

    def generate(texts, seeds):
        return draw([Scene(tuple(things(BY_TEXT[t], s))) for t, s in zip(texts, seeds)])[0]

    assert evaluate(generate, SceneDetector(), per_prompt=1).overall >= 0.995
