"""Count correction: masks by the rules, what is kept, what a step does, nothing for nothing."""

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.count import (
    Masks,
    Settings,
    correct,
    intensity,
    loss,
    masks,
    nudged,
    on_grid,
    seen,
    smoothed,
    window,
)
from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.samplers import euler, heun, run
from pocketdiffusion.diffusion.times import grid
from pocketdiffusion.models import dit, unet
from pocketdiffusion.nn.attention.maps import crossing, finest, watched

each = pytest.mark.parametrize
LEVELS = grid(8)


def box(y, x, h, w, size=32):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y : y + h, x : x + w] = True
    return mask


FOUR = [box(0, 0, 4, 4), box(0, 16, 6, 6), box(16, 0, 8, 8), box(16, 16, 10, 10)]


def test_too_many_lose_small_ones_but_never_the_smallest():
    made = masks({"star": FOUR}, {"star": 2}, (32, 32))
    assert not made.add and torch.equal(made.remove["star"], FOUR[1] | FOUR[2])
    assert torch.equal(made.every, FOUR[1] | FOUR[2])


def test_none_wanted_removes_all():
    made = masks({"star": FOUR}, {"star": 0}, (32, 32))
    assert torch.equal(made.remove["star"], torch.stack(FOUR).any(0))


def test_what_is_missing_gets_free_windows():
    g = torch.Generator().manual_seed(0)
    made = masks({"star": FOUR[:2]}, {"star": 4}, (32, 32), g)
    side = int(1.3 * 4)
    assert made.add["star"].sum() == 2 * side * side, "windows overlap"
    assert not (made.add["star"] & (FOUR[0] | FOUR[1])).any(), "a window lies on a thing"
    # where there is none to measure: 15 of 64 cells
    made = masks({}, {"star": 1}, (32, 32), g)
    assert made.add["star"].sum() == 8 * 8


def test_other_things_are_kept_clear():
    """What is right is not covered, what goes makes room."""
    much = box(0, 0, 32, 20)
    made = masks({"ring": [much]}, {"ring": 1, "star": 1}, (32, 32), torch.Generator().manual_seed(1))
    assert not (made.add["star"] & much).any()
    rings = [box(0, 0, 32, 16), box(0, 16, 32, 16)]
    made = masks({"ring": rings}, {"ring": 1, "star": 1}, (32, 32), torch.Generator().manual_seed(1))
    assert (made.add["star"] & made.remove["ring"]).sum() == made.add["star"].sum()


def test_all_right_is_nothing():
    made = masks({"star": FOUR}, {"star": 4}, (16, 16))
    assert not made.remove and not made.add


def test_cells_of_a_mask():
    assert torch.equal(on_grid(box(8, 8, 8, 8), (4, 4)), box(1, 1, 1, 1, 4))
    # a thing smaller than a cell still has one
    assert on_grid(box(9, 9, 2, 2), (4, 4)).sum() == 1


def test_windows_take_the_emptiest_place():
    busy = torch.ones(8, 8, dtype=torch.bool)
    busy[5:8, 2:5] = False
    assert torch.equal(window(busy, 3, None), box(5, 2, 3, 3, 8))
    assert window(busy, 20, None).all()


def test_maps_of_phrases():
    a = torch.rand(64, 6)
    assert seen(a, [2], (8, 8)).shape == (8, 8)
    torch.testing.assert_close(seen(a, [1, 3], (8, 8)), smoothed(a[:, [1, 3]].mean(1).view(8, 8)))
    flat = torch.full((8, 8), 0.3)
    torch.testing.assert_close(smoothed(flat), flat)
    mask = box(0, 0, 2, 5, 8)
    values = torch.arange(64.0).view(8, 8)
    assert intensity(values, mask, 0.8) == values[mask].sort().values[2:].mean()


def test_the_loss_weighs_what_is_missing_twice():
    a, where = torch.rand(64, 4), box(0, 0, 3, 3, 8)
    words = {"x": [1], "y": [2]}
    made = loss(a, Masks({"x": where}, {"y": where}), words, (8, 8), Settings())
    one, two = (intensity(seen(a, words[p], (8, 8)), where, 0.8) for p in "xy")
    torch.testing.assert_close(made, one - 2 * two)


def network(module=dit, cls=dit.DiT):
    torch.manual_seed(0)
    model = cls(module.PRESETS["smoke"]).eval().requires_grad_(False)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.2)
    return model


@each("module, cls", [(dit, dit.DiT), (unet, unet.UNet)])
def test_looking_changes_nothing(module, cls):
    model = network(module, cls)
    inputs = model.example()
    names = finest(model, inputs, crossing(model))
    assert names and set(names) <= set(crossing(model))
    v, a = watched(model, names)(*inputs)
    torch.testing.assert_close(v, model(*inputs), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    assert not a[1, :, 7:].any(), "words that are masked are looked at"
    if module is unet:
        with pytest.raises(ValueError, match="grids of different sizes"):
            watched(model, crossing(model))(*inputs)


SIDE = 4  # the smoke DiT has 4 x 4 tokens


def setting(found, wanted, settings=None, guidance=0.0, step=euler):
    """One picture, counted as ``found`` whatever it shows."""
    model = network()
    x, _, cond = model.example(1)
    names = finest(model, model.example(1), crossing(model))
    null = cond.map(torch.zeros_like)
    guided = cfg(model, null, guidance) if guidance else model
    words = {phrase: [1 + i] for i, phrase in enumerate(wanted)}
    made = correct(
        guided, watched(model, names), step, x, LEVELS, cond, lambda z: z, lambda pictures: [found], wanted,
        words, (SIDE, SIDE), settings, torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        kept = [x, *(step.x for step in run(step, guided, x, LEVELS, cond))]
    return made, kept


@each("guidance", [0.0, 2.0])
def test_a_right_count_changes_no_bit(guidance):
    made, kept = setting({"star": [box(0, 0, 4, 4, 8)]}, {"star": 1}, guidance=guidance)
    assert torch.equal(made.x, kept[-1]) and made.masks is None and made.calls == 8


@each("step, through", [(euler, "state"), (heun, "state"), (heun, "prediction")])
@each("guidance", [0.0, 2.0])
def test_no_step_and_everything_free_is_the_same_trajectory(guidance, step, through):
    everything = box(0, 0, 8, 8, 8)
    settings = Settings(size=0.0, through=through)
    made, kept = setting({"star": [everything] * 2}, {"star": 0}, settings, guidance, step)
    assert made.masks.every.all()
    torch.testing.assert_close(made.x, kept[-1], atol=1e-5, rtol=1e-4)


@pytest.fixture
def seen_x(monkeypatch):
    """What every guided step begins with."""
    found = []

    def note(look, x, *rest):
        found.append(x)
        return nudged(look, x, *rest)

    monkeypatch.setattr("pocketdiffusion.diffusion.count.nudged", note)
    return found


def test_outside_the_mask_the_kept_latents_stand(seen_x):
    """At every corrected step the denoiser sees what was there before, but inside M."""
    small = [box(0, 0, 2, 2, 8), box(4, 4, 4, 4, 8)]
    made, kept = setting({"star": small}, {"star": 1}, Settings(middle=0.75, until=0.75, size=1.0))
    inside = nn.functional.interpolate(made.masks.every[None, None].float(), (8, 8)).bool()
    assert len(seen_x) == 4 and 0 < inside.sum() < inside.numel()
    for i, x in enumerate(seen_x, 2):
        assert torch.equal(x[~inside.expand_as(x)], kept[i][~inside.expand_as(x)])
    assert not torch.equal(seen_x[-1], kept[5]) and made.calls == 8 + 2 * 4
    # counted late and guided early: six steps, two again with two calls each, four as always
    seen_x.clear()
    made, _ = setting({"star": small}, {"star": 1}, Settings(middle=0.75, until=0.5, size=1.0))
    assert len(seen_x) == 2 and made.calls == 6 + 2 * 2 + 4
    with pytest.raises(ValueError, match="until 1: expected more than 0"):
        Settings(until=1)


def test_several_phrases_apart(seen_x):
    """Each alone from the same start, with its own mask, and the mean of what comes of them."""
    found = {"star": [box(0, 0, 2, 2, 8), box(4, 4, 4, 4, 8)], "ring": []}
    made, kept = setting(found, {"star": 1, "ring": 1}, Settings(middle=0.75, several="apart"))
    assert len(seen_x) == 2 * 2 and made.calls == 6 + 2 * 2 * 2 + 4
    for i, mask in ((0, made.masks.remove["star"]), (2, made.masks.add["ring"])):
        assert torch.equal(seen_x[i], kept[2]), "both begin where the other did"
        outside = ~nn.functional.interpolate(mask[None, None].float(), (8, 8)).bool().expand_as(kept[3])
        assert torch.equal(seen_x[i + 1][outside], kept[3][outside])
    together, _ = setting(found, {"star": 1, "ring": 1}, Settings(middle=0.75))
    assert together.calls == 6 + 2 * 2 + 4 and not torch.equal(together.x, made.x)
    one = {"star": found["star"]}
    same = [
        setting(one, {"star": 1}, Settings(middle=0.75, several=how))[0].x for how in ("apart", "together")
    ]
    assert torch.equal(*same), "one phrase alone has no other"
    with pytest.raises(ValueError, match="several 'both': expected together or apart"):
        Settings(several="both")


@each("kind, falls", [("remove", True), ("add", False)])
def test_one_step_moves_the_attention(kind, falls):
    model = network()
    x, t, cond = model.example(1)
    look = watched(model, finest(model, model.example(1), crossing(model)))
    where, words = box(0, 0, 2, 2, SIDE), {"star": [1]}
    wrong = Masks(**{kind: {"star": where}})

    def looked_at(x):
        with torch.no_grad():
            return float(intensity(seen(look(x, t, cond)[1][0], [1], (SIDE, SIDE)), where, 0.8))

    moved = nudged(look, x, t, cond, wrong, words, (SIDE, SIDE), Settings(size=0.05))
    assert (looked_at(moved) < looked_at(x)) == falls
    torch.testing.assert_close((moved - x).square().mean().sqrt(), 0.05 * x.std())


@each("through", ["prediction", "state"])
def test_both_ways_to_bend(through):
    made, kept = setting({"star": FOUR[:2]}, {"star": 1}, Settings(through=through))
    assert made.x.isfinite().all() and not torch.equal(made.x, kept[-1])
    assert made.found == {"star": 2} and set(made.masks.remove) == {"star"}


def test_the_last_preview_is_the_picture():
    made, kept = setting({"star": [box(0, 0, 4, 4, 8)]}, {"star": 1}, Settings(middle=0.99))
    made_early, _ = setting({"star": [box(0, 0, 4, 4, 8)]}, {"star": 1}, Settings(middle=0.4))

    def gap(m):
        return (m.preview - kept[-1]).square().mean()

    assert gap(made) < gap(made_early)


def test_calls_are_those_of_the_sampler():
    made, _ = setting({"star": [box(0, 0, 4, 4, 8)]}, {"star": 1}, step=heun)
    assert made.calls == 15 and made.masks is None, "two each, and one for the last of eight steps"
    with pytest.raises(ValueError, match="first 9: expected less than 7"):
        setting({"star": FOUR[:2]}, {"star": 1}, Settings(first=9))


def test_what_is_refused():
    for changes in ({"first": -1}, {"top": 2.0}, {"size": -0.1}):
        with pytest.raises(ValueError, match="expected 0 or more, and a share above 0 for top"):
            Settings(**changes)
    for changes, message in (({"middle": 1.1}, "middle 1.1"), ({"through": "x"}, "through 'x'")):
        with pytest.raises(ValueError, match=message):
            Settings(**changes)
    with pytest.raises(ValueError, match="expected an attention layer"):
        watched(network(), ["blocks.0.mlp"])


def test_counting_on_the_finished_picture(seen_x):
    """The prototype's way: all steps first, and then those from ``first`` on once more."""
    star = [box(0, 0, 4, 4, 8)]
    made, kept = setting({"star": star}, {"star": 1}, Settings(middle=1.0))
    assert torch.equal(made.preview, kept[-1]) and torch.equal(made.x, kept[-1]) and made.calls == 8
    made, kept = setting({"star": FOUR[:2]}, {"star": 1}, Settings(middle=1.0))
    assert torch.equal(made.preview, kept[-1]) and torch.equal(seen_x[0], kept[2])
    assert made.calls == 8 + 2 * 2 + 4 and not torch.equal(made.x, kept[-1])
