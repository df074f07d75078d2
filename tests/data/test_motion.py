import math
import re
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch

from pocketdiffusion.data import motion
from pocketdiffusion.data.motion import ADVERBS, DIRECTIONS, Clip, Clips, Motion, animate, phrase
from pocketdiffusion.data.render import Background, Scene, Thing, draw
from pocketdiffusion.data.shapes import COLOURS

TIMES = 9


def clip(shape="square", x=0.5, y=0.5, radius=0.12, **how):
    things = (Thing(shape, "red", x, y, radius),)
    return Clip(Scene(things, Background()), (Motion(**how),))


def masks(clip, size=64, count=TIMES):
    """The first thing in every frame, (T, H, W)."""
    return torch.stack([m[0] for m in draw(clip.frames(count), size)[1]])


def centres(mask):
    """(T, 2): x and y as fractions of the picture."""
    h, w = mask.shape[-2:]
    y, x = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
    area = mask.sum((1, 2))
    return torch.stack([(mask * x).sum((1, 2)) / area, (mask * y[:, None]).sum((1, 2)) / area], 1)


@pytest.fixture(scope="module")
def specs():
    rng = Random(0)
    return [animate(motion.MOVING_WORLD, rng) for _ in range(600)]


@pytest.mark.parametrize("way", DIRECTIONS)
def test_things_move_the_way_and_as_far_as_they_say(way):
    path = centres(masks(clip(kind="move", way=way, speed="quick", amount=0.3)))
    far = torch.tensor(DIRECTIONS[way]) * 0.3
    torch.testing.assert_close(path[-1] - path[0], far, atol=0.01, rtol=0)
    torch.testing.assert_close(path.diff(dim=0), (far / (TIMES - 1)).expand(TIMES - 1, 2), atol=0.01, rtol=0)


def test_what_captions_say_of_moves_is_so(specs):
    said = 0
    for spec in specs:
        if len(set(spec.motions)) != 1 or spec.motions[0].kind != "move":
            continue
        found = re.search(r" moving (slowly |quickly )?(.*?)( on an? .* background)?$", spec.scene.caption)
        path = centres(masks(spec, count=2))
        dx, dy = (path[1] - path[0]).tolist()
        words = (["down"] if dy > 0.05 else ["up"] if dy < -0.05 else []) + (
            ["to the right"] if dx > 0.05 else ["to the left"] if dx < -0.05 else []
        )
        if len(spec.scene.things) == 1:
            assert found[2] == " and ".join(words)
            assert found[1] is None or (found[1] == "quickly ") == (math.hypot(dx, dy) > 0.35)
            said += 1
    assert said > 20


def test_moving_things_keep_off_the_border_and_bouncing_ones_meet_it(specs):
    seen = {"move": 0, "bounce": 0}
    for spec in specs:
        frames = spec.frames(33)
        for i, how in enumerate(spec.motions):
            path = [(f.things[i].x, f.things[i].y) for f in frames]
            radius = spec.scene.things[i].radius
            for f in frames:
                thing = f.things[i]
                assert all(thing.radius <= p <= 1 - thing.radius for p in (thing.x, thing.y)), how
            if how.kind in seen:
                seen[how.kind] += 1
                turned = [any(a * b < 0 for a, b in pairwise(s)) for s in map(steps, zip(*path))]
                assert any(turned) == (how.kind == "bounce"), (how, radius)
    assert min(seen.values()) > 50


def steps(values):
    return [b - a for a, b in pairwise(values) if abs(b - a) > 1e-9]


def test_a_bounce_is_a_reflection():
    path = centres(masks(clip(x=0.3, kind="bounce", way="to the left", amount=1.2), size=128, count=121))
    edge = 0.12 + motion.MARGIN
    # 0.3 -> edge -> 1 - edge: 0.17 to the left, 0.74 to the right, then left again
    assert path[:, 0].min().item() == pytest.approx(edge, abs=0.01)
    assert path[17, 0].item() == pytest.approx(edge, abs=0.01)
    assert path[17 + 74, 0].item() == pytest.approx(1 - edge, abs=0.01)
    torch.testing.assert_close(path[:, 1], torch.full((121,), 0.5), atol=0.005, rtol=0)


@pytest.mark.parametrize("way", ["clockwise", "counterclockwise"])
def test_spin_turns_the_thing(way):
    spin = clip("triangle", radius=0.3, kind="spin", way=way, speed="slow", amount=0.25)
    first, last = masks(spin, 65, 2)
    # a quarter turn clockwise, seen with y downwards, is rot90 with k = -1
    turned = torch.rot90(first, -1 if way == "clockwise" else 1)
    assert (turned ^ last).sum() < 0.02 * first.sum()
    assert (first ^ last).sum() > 0.2 * first.sum()


def test_only_what_can_be_seen_to_turn_spins(specs):
    spun = [t for s in specs for t, m in zip(s.scene.things, s.motions) if m.kind == "spin"]
    assert spun and not [t for t in spun if t.shape in ("circle", "ring") and t.texture == "plain"]


@pytest.mark.parametrize(("kind", "amount"), [("grow", 1.6), ("shrink", 0.5)])
def test_grow_and_shrink_change_the_area_and_not_the_place(kind, amount):
    mask = masks(clip("circle", 0.4, 0.6, kind=kind, amount=amount), 128)
    area = mask.sum((1, 2)).float()
    assert (area.diff() > 0).all() if kind == "grow" else (area.diff() < 0).all()
    assert (area[-1] / area[0]).item() == pytest.approx(amount**2, rel=0.03)
    torch.testing.assert_close(centres(mask), torch.tensor([[0.4, 0.6]]).expand(TIMES, 2), atol=0.005, rtol=0)


def test_appear_goes_from_nothing_to_opaque():
    spec = clip("square", 0.5, 0.5, kind="appear")
    pixels = draw(spec.frames(TIMES))[0][:, :, 32, 32]
    paper = draw([Scene(())])[0][0, :, 32, 32]
    red = torch.tensor(COLOURS["red"]) * 2 - 1
    share = ((pixels - paper) / (red - paper)).mean(1)
    torch.testing.assert_close(share, (2 * torch.linspace(0, 1, TIMES) - 0.5).clamp(0, 1))


def test_still_is_still():
    frames = draw(clip(kind="still").frames(3))[0]
    assert torch.equal(frames[0], frames[1]) and torch.equal(frames[0], frames[2])


def test_clips_are_a_function_of_seed_and_step():
    source = Clips(batch=3, frames=4, size=32)
    a, b = source(1, 5), source(1, 5)
    assert torch.equal(a.x, b.x) and a.text == b.text and a.x.shape == (3, 3, 4, 32, 32)
    assert a.x.abs().max() <= 1
    assert not torch.equal(a.x, source(1, 6).x) and not torch.equal(a.x, source(2, 5).x)


def test_the_first_frame_is_a_scene_and_the_truth_is_its():
    source = Clips(batch=8, frames=4)
    batch, specs = source(0, 0), source.specs(0, 0)
    pictures, seen = draw([s.frame(0) for s in specs])
    assert torch.equal(batch.x[:, :, 0], pictures)
    assert [len(t) for t in batch.truth] == [len(s.scene.things) for s in specs]
    for instances, visible in zip(batch.truth, seen):
        assert all(torch.equal(i.mask, m) for i, m in zip(instances, visible))


def test_more_frames_look_more_closely_at_the_same_clip():
    few, many = Clips(batch=4, frames=3, size=32)(0, 0), Clips(batch=4, frames=5, size=32)(0, 0)
    torch.testing.assert_close(few.x, many.x[:, :, ::2])
    assert few.text == many.text


def test_pictures_need_not_be_square():
    assert Clips(batch=2, frames=2, size=(32, 48))(0, 0).x.shape == (2, 3, 2, 32, 48)


def test_every_motion_is_in_the_caption(specs):
    words = {"move": "moving ", "bounce": "bouncing", "grow": "growing", "shrink": "shrinking"}
    words |= {"appear": "appearing", "spin": "spinning|turning", "still": "standing still|not moving"}
    for spec in specs:
        for how in spec.motions:
            assert re.search(words[how.kind], spec.scene.caption), (how, spec.scene.caption)
    assert {m.kind for s in specs for m in s.motions} == set(motion.KINDS)
    assert {m.way for s in specs for m in s.motions if m.kind == "move"} == set(DIRECTIONS)


def test_phrases():
    rng = Random(0)
    told = {phrase(Motion("move", "up and to the left", "slow", 0.2), rng) for _ in range(50)}
    assert told == {"moving up and to the left", f"moving {ADVERBS['slow']} up and to the left"}
    assert {phrase(Motion("bounce", "up"), rng) for _ in range(50)} == {"bouncing", "bouncing up and down"}


def test_a_world_without_things_has_its_own_caption():
    assert animate(replace(motion.MOVING_WORLD, empty=1.0), Random(0)).motions == ()
