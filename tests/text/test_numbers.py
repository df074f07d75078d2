"""What prompts ask for."""

import random

import pytest

from pocketdiffusion.data.scenes import TRAIN_WORLD, Scenes
from pocketdiffusion.text.numbers import Target, given, places, singular, targets

each = pytest.mark.parametrize


@each(
    "prompt, wanted",
    [
        ("three red circles and a blue square", {"red circle": 3, "blue square": 1}),
        ("a picture of 2 small stars on a white background", {"small star": 2}),
        ("an image of one heart, no crosses and 12 rings", {"heart": 1, "cross": 0, "ring": 12}),
        ("a pair of shoes next to two dozen eggs", {"shoe": 2, "egg": 24}),
        ("a couple of puppies", {"puppy": 2}),
        ("A Blue Square to the left of a striped green heart", {"blue square": 1, "striped green heart": 1}),
        ("four wooden boxes with six glasses inside", {"wooden box": 4, "glasses": 6}),
        ("five people and three children", {"person": 5, "child": 3}),
        ("a cat and a cat", {"cat": 2}),
        ("fifteen red circles and twenty-one stars", {"red circle": 15, "star": 21}),
        ("fifty stars, thirty one rings", {"star": 50, "ring": 31}),
        ("sunset over the sea", {}),
        ("", {}),
    ],
)
def test_targets(prompt, wanted):
    assert {t.phrase: t.count for t in targets(prompt)} == wanted


def test_where_the_noun_stands():
    prompt = "Two Red circles and one Green ring"
    assert [prompt[slice(*t.where)] for t in targets(prompt)] == ["circles", "ring"]


def test_where_a_noun_without_a_number_stands():
    assert places("Red Circles on grey", "circle") == [(4, 11)] and places("red circles", "star") == []
    both = "red circles and blue circles"
    assert places(both, "blue circle") == [(21, 28)] and places(both, "circle") == [(4, 11), (21, 28)]
    assert places(both, "green circle") == []


def test_order_and_noun():
    found = targets("two stars, one red ring")
    assert found == [Target("star", 2), Target("red ring", 1)] and found[1].noun == "ring"


@each(
    "plural, one",
    [
        ("crosses", "cross"),
        ("buses", "bus"),
        ("berries", "berry"),
        ("ties", "tie"),
        ("bus", "bus"),
        ("houses", "house"),
    ],
)
def test_singular(plural, one):
    assert singular(plural) == one


def test_every_caption_of_the_world_is_read_right():
    """The drawn world knows what it says."""
    world, wrong = Scenes(TRAIN_WORLD, 64, 64), []
    for step in range(4):
        for spec in world.specs(random.Random(0).randint(0, 99), step):
            wanted = len(spec.things)
            if sum(t.count for t in targets(spec.caption)) != wanted:
                wrong.append(spec.caption)
    assert not wrong


def test_counts_that_are_given():
    assert given(["red circles=3", "Stars = 0"]) == [Target("red circle", 3), Target("star", 0)]
    for flag in ("circles", "=3", "circles=many", "circles=-1"):
        with pytest.raises(ValueError, match="expected NAME=NUMBER"):
            given([flag])


@pytest.mark.parametrize(
    "prompt, found",
    [
        ("a hundred stars", {"star": 100}),
        ("1,000 stars", {"star": 1000}),
        ("two hundred and five red circles", {"red circle": 205}),
        ("a hundred and twenty one stars, two circles", {"star": 121, "circle": 2}),
        ("a dozen stars", {"star": 12}),
        ("dozen stars and two dozen circles", {"star": 12, "circle": 24}),
        ("two pairs of shoes", {"shoe": 4}),
        ("a couple of stars", {"star": 2}),
        ("a few red circles", {}),
        ("dozens of stars", {}),
        ("several stars and a lot of circles", {}),
        ("five red circles in a row", {"red circle": 5}),
        ("a group of three circles", {"circle": 3}),
        ("a grid of nine blue squares", {"blue square": 9}),
        ("three stars, 2 circles", {"star": 3, "circle": 2}),
    ],
)
def test_large_and_vague_numbers(prompt, found):
    assert {t.phrase: t.count for t in targets(prompt)} == found
