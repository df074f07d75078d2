import math
import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.data import captions
from pocketdiffusion.data.render import Background, Scene, Thing, draw, layers
from pocketdiffusion.data.scenes import (
    COUNT_WORLD,
    EVAL_WORLD,
    HELD_OUT,
    SIZES,
    TRAIN_WORLD,
    Scenes,
    World,
    truth,
)
from pocketdiffusion.data.shapes import BACKDROPS, COLOURS, KINDS_OF_BACKGROUND, SHAPES, TEXTURES

WORLDS = {"all": World(), "evaluation": EVAL_WORLD, "training": TRAIN_WORLD, "counts": COUNT_WORLD}
# in units of the radius, squared
AREAS = {
    "circle": math.pi * 0.92**2,
    "square": 1.64**2,
    "triangle": 0.979 * 1.78,
    "diamond": 1.5,
    "star": 5 * 0.42 * math.sin(math.pi / 5),
    "cross": 2 * 1.9 * 0.68 - 0.68**2,
    "ring": math.pi * (0.95**2 - 0.45**2),
}


def scenes(world: World, n: int) -> list[Scene]:
    return Scenes(world, n).specs(0, 0)


def plane(n: int, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * reach - reach
    return g.expand(n, n), g[:, None].expand(n, n)


# shapes


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_negative_inside_and_positive_outside(shape):
    x, y = plane(41, 0.1)
    middle = SHAPES[shape](x, y)
    assert (middle > 0).all() if shape == "ring" else (middle < 0).all()
    corners = torch.tensor([-1.1, 1.1]), torch.tensor([[-1.1], [1.1]])
    assert (SHAPES[shape](*torch.broadcast_tensors(*corners)) > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_a_distance_near_its_edge(shape):
    x, y = (v.clone().requires_grad_() for v in plane(400, 1.2))
    distance = SHAPES[shape](x, y)
    slope = torch.hypot(*torch.autograd.grad(distance.sum(), (x, y)))[distance.abs() < 0.03]
    assert len(slope) > 1000
    assert ((slope - 1).abs() < 0.02).double().mean() > 0.97


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("angle", [0.0, 0.13])
def test_coverage_adds_up_to_the_area(shape, angle):
    thing = Thing(shape, "red", 0.47, 0.53, 0.27, angle=angle)
    cover = layers([thing], 64, 64)[1]
    assert cover.sum().item() == pytest.approx(AREAS[shape] * (0.27 * 64) ** 2, rel=0.015)
    assert ((cover > 0.05) & (cover < 0.95)).sum() > 20


# pictures


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_what_is_drawn(shape):
    scene = Scene((Thing(shape, "blue", 0.4, 0.6, 0.21),), Background("plain", "white"))
    x, masks = draw([scene])
    white, blue = (2 * torch.tensor(c)[:, None, None] - 1 for c in (BACKDROPS["white"], COLOURS["blue"]))
    # how far every pixel has come from white to blue
    drawn = ((x[0] - white) * (blue - white)).sum(0) / (blue - white).square().sum()
    assert torch.equal(masks[0][0], drawn > 0.5)
    torch.testing.assert_close(x[0], white.lerp(blue, drawn[None].expand(3, -1, -1)))


def test_later_things_hide_earlier_ones_and_masks_are_what_is_visible():
    pair = (Thing("square", "red", 0.45, 0.5, 0.25), Thing("circle", "blue", 0.6, 0.5, 0.2))
    x, (masks,) = draw([Scene(pair)])
    assert not (masks[0] & masks[1]).any()
    inner = -F.max_pool2d(-masks[:, None].float(), 3, 1, 1)[:, 0] > 0
    for thing, mask in zip(pair, inner):
        colour = 2 * torch.tensor(COLOURS[thing.colour]) - 1
        torch.testing.assert_close(x[0][:, mask], colour[:, None].expand(-1, int(mask.sum())))


@pytest.mark.parametrize("texture", ["striped", "dotted"])
def test_a_texture_has_the_colour_and_a_lighter_second_tone(texture):
    x, masks = draw([Scene((Thing("square", "blue", 0.5, 0.5, 0.3, texture),))], 128)
    red = (x[0, 0][masks[0][0]] + 1) / 2
    base = COLOURS["blue"][0]
    dark, light = (red < base + 0.01).double().mean(), (red > base + 0.5 * (1 - base)).double().mean()
    assert dark > 0.3 and light > 0.05


@pytest.mark.parametrize("size", [32, 64, 96, (48, 80)])
@pytest.mark.parametrize("world", WORLDS)
def test_any_resolution(world, size):
    batch = Scenes(WORLDS[world], 6, size)(1, 0)
    h, w = (size, size) if isinstance(size, int) else size
    assert batch.x.shape == (6, 3, h, w)
    assert batch.x.min() >= -1 and batch.x.max() <= 1
    for things in batch.truth:
        for t in things:
            assert t.mask.shape == (h, w) and t.mask.any()
            assert t.radius < t.x < w - t.radius
            ys, xs = t.mask.nonzero().double().mean(0).tolist()
            assert math.hypot(xs + 0.5 - t.x, ys + 0.5 - t.y) < 0.35 * t.radius


def test_resolutions_show_the_same_scene():
    plain = replace(EVAL_WORLD, textured=0.0)
    fine, coarse = (Scenes(plain, 12, size)(2, 0) for size in (128, 64))
    assert fine.text == coarse.text
    assert (F.avg_pool2d(fine.x, 2) - coarse.x).abs().mean() < 0.004


def test_batches_do_not_matter():
    specs = Scenes(World(), 10).specs(3, 0)
    together, masks = draw(specs)
    for i, spec in enumerate(specs):
        alone, (own,) = draw([spec])
        torch.testing.assert_close(alone[0], together[i])
        assert torch.equal(own, masks[i])


def test_an_empty_scene_is_its_background():
    x, (masks,) = draw([Scene((), Background("plain", "beige"))], (20, 30))
    assert masks.shape == (0, 20, 30)
    torch.testing.assert_close(x[0, :, 7, 11], 2 * torch.tensor(BACKDROPS["beige"]) - 1)


# worlds


def test_the_same_seed_and_step_give_the_same_batch_bit_for_bit():
    source = Scenes(World(), 8)
    a, b = source(5, 7), source(5, 7)
    assert torch.equal(a.x, b.x) and a.text == b.text
    assert [[replace(t, mask=None) for t in s] for s in a.truth] == [
        [replace(t, mask=None) for t in s] for s in b.truth
    ]
    for other in (source(5, 8), source(6, 7)):
        assert not torch.equal(a.x, other.x) and a.text != other.text


def test_everything_occurs():
    specs = scenes(World(), 4000)
    things = [t for s in specs for t in s.things]
    assert {len(s.things) for s in specs} == set(range(10))
    assert {(t.shape, t.colour) for t in things} == {(s, c) for s in SHAPES for c in COLOURS}
    assert {t.texture for t in things} == set(TEXTURES)
    assert {s.background.kind for s in specs} == set(KINDS_OF_BACKGROUND)
    assert {s.background.colour for s in specs} == set(BACKDROPS)


def test_the_evaluation_world_is_what_it_says():
    specs = scenes(EVAL_WORLD, 2000)
    things = [t for s in specs for t in s.things]
    assert {t.texture for t in things} == {"plain", "striped"}
    assert {s.background.kind for s in specs} == {"plain", "gradient"}
    assert {len(s.things) for s in specs} == set(range(6))
    assert min(t.radius for t in things) * 64 >= 6
    assert {t.angle for t in things} == {0.0}


def test_held_out_pairs_are_never_in_the_training_world_and_sometimes_in_the_others():
    def pairs(world: World) -> set[tuple[str, str]]:
        return {(t.colour, t.shape) for s in scenes(world, 3000) for t in s.things}

    assert (
        len(HELD_OUT) == 8
        and {c for c, _ in HELD_OUT} < set(COLOURS)
        and {s for _, s in HELD_OUT} == set(SHAPES)
    )
    assert not pairs(TRAIN_WORLD) & HELD_OUT
    assert pairs(EVAL_WORLD) >= HELD_OUT


@pytest.mark.parametrize("world", WORLDS)
def test_things_keep_their_distance(world):
    for scene in scenes(WORLDS[world], 150):
        for i, a in enumerate(scene.things):
            for b in scene.things[:i]:
                gap = math.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius
                assert gap >= WORLDS[world].gap
        if scene.things:
            assert ((layers(scene.things, 64, 64)[1] > 0.5).sum(0) <= 1).all()


def test_things_overlap_when_asked():
    specs = scenes(replace(World(), overlap=True, singles=0.0), 50)
    assert any(((layers(s.things, 64, 64)[1] > 0.5).sum(0) > 1).any() for s in specs if s.things)


def test_a_world_without_room_is_refused():
    with pytest.raises(ValueError, match="no room"):
        Scenes(World(gap=2.0, singles=0.0, groups=(0, 0, 1), empty=0.0), 1).specs(0, 0)


def test_the_truth_is_in_pixels():
    scene = Scene((Thing("star", "red", 0.25, 0.5, 0.2, "striped"),))
    ((seen,),) = truth([scene], draw([scene], (40, 80))[1])
    assert (seen.shape, seen.colour, seen.texture) == ("star", "red", "striped")
    assert (seen.x, seen.y, seen.radius) == (20, 20, 8)


# captions


SIDES = {phrase: side for side, phrases in captions.RELATIONS.items() for phrase in phrases}
EMPTY = ("nothing", "an empty picture", "no shapes")


def parse_noun(phrase: str) -> captions.Group:
    """ "two small striped red circles" -> Group; fails on a wrong article or plural."""
    first, *words = phrase.split()
    if first in ("a", "an"):
        count = 1
        assert first == ("an" if words[0][0] in "aeiou" else "a"), phrase
    else:
        count = int(first) if first.isdigit() else captions.NUMBERS.index(first)
    told = {}
    for key, values in (("size", SIZES), ("texture", TEXTURES), ("colour", COLOURS)):
        told[key] = words.pop(0) if words[0] in values else ""
    (noun,) = words
    (shape,) = [s for s in SHAPES if noun == (s if count == 1 else captions.plural(s))]
    return captions.Group(count, shape, **told)


def parse(caption: str) -> tuple[list[captions.Group], str, str]:
    """Groups, relation, backdrop."""
    body, backdrop = caption, ""
    if found := re.fullmatch(r"(.*) on (an?) ([a-z ]+) background", caption):
        body, article, backdrop = found.groups()
        assert article == captions.article(backdrop)
    body = re.sub("^(a picture of|an image of) ", "", body)
    if body in EMPTY:
        return [], "", backdrop
    for phrase in sorted(SIDES, key=len, reverse=True):
        if f" {phrase} " in body:
            return [parse_noun(p) for p in body.split(f" {phrase} ")], SIDES[phrase], backdrop
    return [parse_noun(p) for p in re.split(", | and ", body)], "", backdrop


@pytest.mark.parametrize("world", WORLDS)
def test_captions_tell_the_truth(world):
    for scene in scenes(WORLDS[world], 1500):
        groups, relation, backdrop = parse(scene.caption)
        assert backdrop in ("", scene.background.colour)
        assert sum(g.count for g in groups) == len(scene.things)
        members = []
        for g in groups:
            members.append([t for t in scene.things if t.shape == g.shape and g.colour in ("", t.colour)])
            assert len(members[-1]) == g.count, scene.caption
            for t in members[-1]:
                assert g.texture in ("", t.texture)
                assert not g.size or SIZES[g.size][0] <= t.radius <= SIZES[g.size][1]
        if relation:
            (a,), (b,) = members
            dx, dy = a.x - b.x, a.y - b.y
            along = {"left": -dx, "right": dx, "above": -dy, "below": dy}[relation]
            assert along > 0.8 * math.hypot(dx, dy)


def test_captions_vary():
    texts = [s.caption for s in scenes(World(), 4000)]
    parsed = [parse(t) for t in texts]
    assert {relation for _, relation, _ in parsed} == {"", *captions.RELATIONS}
    assert {backdrop for *_, backdrop in parsed} == {"", *BACKDROPS}
    groups = [g for groups, *_ in parsed for g in groups]
    assert {g.size for g in groups} == {"", "small", "large"}
    assert {g.texture for g in groups} == {"", "striped", "dotted"}
    assert {g.count for g in groups} == set(range(1, 10))
    words = Counter(w for t in texts for w in t.split())
    for word in (*captions.NUMBERS[1:], *"123456789", "an", "picture", "image", "nothing"):
        assert words[word], word
    for phrase in SIDES:
        assert any(phrase in t for t in texts), phrase


def test_relations_are_told_from_either_side():
    a, b = captions.Group(1, "star", "red"), captions.Group(1, "ring")
    told = {captions.relate(a, b, "left", Random(i)) for i in range(200)}
    assert "a red star to the left of a ring" in told
    assert "a ring right of a red star" in told
    assert not any(re.match("(a picture of )?a red star .*right", t) for t in told)
