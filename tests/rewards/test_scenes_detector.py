import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.data.render import Background, Scene, Thing, backgrounds, draw, layers
from pocketdiffusion.data.scenes import EVAL_WORLD, Scenes, World
from pocketdiffusion.data.shapes import BACKDROPS, COLOURS, SHAPES, TEXTURES
from pocketdiffusion.eval.detection import accuracy
from pocketdiffusion.rewards.scenes import SceneDetector
from pocketdiffusion.rewards.silhouettes import name
from pocketdiffusion.types import Instance

pytest.importorskip("scipy")

DETECTOR = SceneDetector()


def soften(x: torch.Tensor, sigma: float, noise: float = 0.0) -> torch.Tensor:
    """A Gaussian blur and some noise, in place of an autoencoder."""
    reach = math.ceil(3 * sigma)
    k = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    k = (k[:, None] * k / k.sum() ** 2).expand(3, 1, -1, -1)
    x = F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), k, groups=3)
    grain = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return (x + 2 * noise * grain).clamp(-1, 1)


def look(*things: Thing) -> list[Instance]:
    return DETECTOR(draw([Scene(things)])[0])[0]


@pytest.mark.slow
def test_whole_scenes_of_the_evaluation_world():
    measured = accuracy(DETECTOR, EVAL_WORLD, n=500, seed=1)
    assert measured["scenes"] >= 0.99
    assert measured["precision"] >= 0.995
    assert measured["texture"] >= 0.9


@pytest.mark.slow
def test_soft_and_grainy_scenes_of_the_evaluation_world():
    measured = accuracy(DETECTOR, EVAL_WORLD, n=500, seed=2, change=lambda x: soften(x, 0.6, 0.02))
    assert measured["scenes"] >= 0.97
    assert measured["precision"] >= 0.995


@pytest.mark.slow
def test_things_of_the_full_world():
    measured = accuracy(DETECTOR, World(), n=300, seed=3)
    assert measured["recall"] >= 0.98
    assert measured["precision"] >= 0.99


@pytest.mark.parametrize("size", [96, 131, 256, (64, 96)])
def test_other_resolutions(size):
    batch = Scenes(EVAL_WORLD, 40, size)(4, 0)
    right = 0
    for seen, truth in zip(DETECTOR(batch.x), batch.truth):
        right += Counter((i.shape, i.colour) for i in seen) == Counter((i.shape, i.colour) for i in truth)
        assert all(i.mask.shape == batch.x.shape[-2:] for i in seen)
    assert right >= 39


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_every_colour(shape):
    things = [Thing(shape, colour, 0.41, 0.56, 0.13) for colour in COLOURS]
    backs = [Background("plain", name) for name in BACKDROPS]
    seen = DETECTOR(draw([Scene((t,), b) for t in things for b in backs])[0])
    assert [[(i.shape, i.colour) for i in s] for s in seen] == [
        [(shape, t.colour)] for t in things for _ in backs
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_place_size_texture_and_mask(shape, texture):
    thing = Thing(shape, "blue", 0.6, 0.37, 0.22, texture)
    x, masks = draw([Scene((thing,))])
    (seen,) = DETECTOR(x)[0]
    assert (seen.shape, seen.colour, seen.texture) == (shape, "blue", texture)
    assert math.hypot(seen.x - 0.6 * 64, seen.y - 0.37 * 64) < 0.6
    assert seen.radius == pytest.approx(0.22 * 64, rel=0.05)
    truth = masks[0][0]
    assert (seen.mask & truth).sum() / (seen.mask | truth).sum() > 0.85
    assert 0.5 < seen.score <= 1


def test_the_surest_thing_comes_first():
    for seen in DETECTOR(Scenes(World(), 20)(5, 0).x):
        assert [i.score for i in seen] == sorted((i.score for i in seen), reverse=True)


def test_different_things_that_touch_are_told_apart():
    seen = look(Thing("circle", "red", 0.36, 0.5, 0.15), Thing("square", "blue", 0.62, 0.5, 0.15))
    assert {(i.shape, i.colour) for i in seen} == {("circle", "red"), ("square", "blue")}


def test_alike_things_that_touch_at_a_corner_are_told_apart():
    seen = look(Thing("square", "red", 0.35, 0.35, 0.15), Thing("square", "red", 0.596, 0.596, 0.15))
    assert [i.shape for i in seen] == ["square", "square"]


def noises(n: int = 16) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shape = (n, 3, 64, 64)
    grain = torch.randn(shape, generator=g)
    return {
        "gaussian": grain.clamp(-1, 1),
        "uniform": torch.rand(shape, generator=g) * 2 - 1,
        "grain on light": (0.8 + 0.2 * grain).clamp(-1, 1),
        "strong grain on light": (0.7 + 0.5 * grain).clamp(-1, 1),
        "grain on grey": 0.3 * grain,
        "not a number": torch.full(shape, torch.nan),
    }


@pytest.mark.parametrize("kind", noises())
def test_nothing_is_seen_in_noise(kind):
    assert not any(DETECTOR(noises()[kind]))


def test_nothing_is_seen_in_blanks():
    colours = [*COLOURS.values(), *BACKDROPS.values(), (0.0,) * 3, (0.5,) * 3, (1.0,) * 3]
    assert not any(DETECTOR(torch.tensor(colours)[:, :, None, None].expand(-1, -1, 64, 64) * 2 - 1))


@pytest.mark.parametrize("kind", ["plain", "gradient", "noise"])
def test_nothing_is_seen_in_backgrounds(kind):
    backs = [Background(kind, a, b, i, i) for i, a in enumerate(BACKDROPS) for b in BACKDROPS]
    assert not any(DETECTOR(backgrounds(backs, 64, 64) * 2 - 1))


@pytest.mark.parametrize("cells", [3, 6, 12])
@pytest.mark.parametrize("steep", [1.5, 20.0])
def test_nothing_is_seen_in_blobs_of_background_colours(cells, steep):
    waves = torch.randn(36, 1, cells, cells, generator=torch.Generator().manual_seed(cells))
    mix = F.interpolate(waves, (64, 64), mode="bicubic").mul(steep).sigmoid()
    pairs = torch.tensor([(a, b) for a in BACKDROPS.values() for b in BACKDROPS.values()])
    a, b = pairs[..., None, None].unbind(1)
    assert not any(DETECTOR(a.lerp(b, mix) * 2 - 1))


def silhouettes(cover: torch.Tensor, colour: str = "red") -> torch.Tensor:
    """Pictures in which (N, H, W) of one colour covers white."""
    return (1 + (torch.tensor(COLOURS[colour])[:, None, None] - 1) * cover[:, None]) * 2 - 1


def test_malformed_things_are_not_seen():
    g = torch.Generator().manual_seed(0)
    gy, gx = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    around, away = torch.atan2(gy, gx), torch.hypot(gx, gy)
    edge = torch.full((100, 1, 1), 0.3)
    for k in range(2, 6):
        size, turn = torch.randn(100, 1, 1, generator=g), torch.rand(100, 1, 1, generator=g)
        edge = edge + 0.09 * size / k**0.5 * torch.cos(k * around + 2 * math.pi * turn)
    wobbly = silhouettes((0.5 + 32 * (edge - away)).clamp(0, 1))
    assert sum(map(len, DETECTOR(wobbly))) <= 8


@pytest.mark.parametrize(("one", "other"), [("square", "star"), ("heart", "diamond"), ("star", "triangle")])
def test_something_halfway_between_two_shapes_is_neither(one, other):
    gx = (torch.arange(64) + 0.5 - 32) / 11
    x, y = gx.expand(64, 64), gx[:, None].expand(64, 64)
    halfway = (SHAPES[one](x, y) + SHAPES[other](x, y)) / 2
    assert not any(DETECTOR(silhouettes((0.5 - 11 * halfway).clamp(0, 1)[None])))


def test_half_a_thing_is_not_seen():
    cover = layers([Thing(s, "red", 0.5, 0.5, 0.2) for s in ("star", "heart", "ring", "cross")], 64, 64)[1]
    cover[:, :, 34:] = 0
    assert not any(DETECTOR(silhouettes(cover)))


def test_soft_smears_are_not_seen():
    plain = replace(EVAL_WORLD, textured=0.0)
    batch = Scenes(plain, 60)(6, 0)
    seen = sum(map(len, DETECTOR(soften(batch.x, 3.0))))
    assert seen < 0.06 * sum(map(len, batch.truth))


def test_a_colour_outside_the_palette_is_not_seen():
    cover = layers([Thing("circle", "red", 0.5, 0.5, 0.2)], 64, 64)[1]
    for rgb in [(0.5, 0.5, 0.1), (0.3, 0.5, 0.6), (0.9, 0.2, 0.9)]:
        odd = (1 + (torch.tensor(rgb)[:, None, None] - 1) * cover[:, None]) * 2 - 1
        assert not any(DETECTOR(odd))


def test_pictures_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        DETECTOR(torch.zeros(3, 64, 64))


def test_a_piece_that_its_colour_nowhere_covers():
    """As a lenient detector may find one; it resembles nothing and breaks nothing."""
    empty = np.zeros((2, 16, 16), dtype=np.float32)
    empty[1, 4:12, 4:12] = 1
    nothing, square = name(empty)
    assert nothing.score == 0 and np.isfinite([nothing.x, nothing.y, nothing.radius]).all()
    assert square.shape == "square" and square.score > 0.5
