"""Crops of what is held out and of what is not, from pictures in which every pixel tells where it is."""

import sys
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion.data import photos
from pocketdiffusion.data.photos import COLOUR, GREY, Photos, cut, regions, shipped


def put(folder, name, width=90, height=70, **options):
    """Red tells the column, green the row."""
    x = np.zeros((height, width, 3), dtype=np.uint8)
    x[..., 0], x[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **options)
    return path


def places(x):
    """Columns and rows of a batch from such pictures: (B, 2, H, W)."""
    return ((x[:, :2] + 1) * 127.5).round()


@pytest.mark.parametrize("width, height", [(64, 64), (101, 67), (40, 99)])
def test_train_and_test_share_no_pixel_and_together_are_all(width, height):
    seen = {}
    for split in ("train", "test", "all"):
        seen[split] = torch.zeros(height, width, dtype=torch.bool)
        for left, upper, right, lower in regions(width, height, split):
            seen[split][upper:lower, left:right] = True
    assert not (seen["train"] & seen["test"]).any()
    assert torch.equal(seen["train"] | seen["test"], seen["all"]) and seen["all"].all()
    assert seen["test"].float().mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_crops_stay_where_they_belong_and_reach_all_of_it(split):
    boxes, size, rng = regions(100, 80, split), (12, 8), Random(0)
    allowed, seen = torch.zeros(2, 80, 100, dtype=torch.bool)
    for left, upper, right, lower in boxes:
        allowed[upper:lower, left:right] = True
    sides = set()
    for _ in range(2000):
        left, upper, right, lower = cut(boxes, size, 3.0, rng)
        assert 0 <= left < right <= 100 and 0 <= upper < lower <= 80
        assert allowed[upper:lower, left:right].all()
        seen[upper:lower, left:right] = True
        sides.add(lower - upper)
        assert (right - left) / (lower - upper) == pytest.approx(8 / 12, abs=0.1)
    # all but the outermost pixels at the corners, which one crop in many hits
    assert seen.sum() > 0.97 * allowed.sum()
    assert min(sides) == 12 and 34 <= max(sides) <= 36


def test_pixels_of_the_two_splits_differ(tmp_path):
    put(tmp_path, "a.png")
    train, test = (Photos(64, 16, s, tmp_path, scale=1)(0, 0).x for s in ("train", "test"))
    columns, rows = places(test).unbind(1)
    assert columns.min() >= 45 and rows.min() >= 35
    columns, rows = places(train).unbind(1)
    assert ((columns < 45) | (rows < 35)).all()
    # both arms of the L are used, and half of the crops are mirrored
    assert (rows[:, 0, 0] > 40).any() and (columns.amin((1, 2)) > 50).any()
    mirrored = columns[:, 0, 0] > columns[:, 0, -1]
    assert 16 < mirrored.sum() < 48
    assert not (places(test)[:, 0, 0, 0] > places(test)[:, 0, 0, -1]).any()


def test_a_crop_at_scale_one_is_exact_and_a_larger_one_is_reduced(tmp_path):
    put(tmp_path, "a.png", 200, 200)
    x = places(Photos(8, 16, "all", tmp_path, scale=1)(0, 0).x)
    assert (x[:, 0].diff(dim=-1) == 1).all() and (x[:, 1].diff(dim=-2) == 1).all()
    steps = places(Photos(64, 16, "all", tmp_path, scale=4)(0, 0).x)[:, 0].diff(dim=-1).mean((1, 2))
    assert 1 <= steps.min() < 1.3 and 3.3 < steps.max() <= 4.05


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
    for i in range(5):
        put(tmp_path, f"{i}.png")
    a, b = (Photos(3, (8, 12), "train", tmp_path) for _ in range(2))
    b(0, 0)
    batch = a(3, 7)
    assert batch.x.shape == (3, 3, 8, 12) and list(batch.text) == ["", "", ""]
    assert batch.x.min() >= -1 and batch.x.max() <= 1
    assert torch.equal(batch.x, b(3, 7).x)
    assert not torch.equal(batch.x, a(4, 7).x) and not torch.equal(batch.x, a(3, 8).x)
    # every file once per epoch
    used = [crop[0] for step in range(5) for crop in a.crops(0, step)]
    assert all(used.count(path) == 3 for path, _ in a.items)


def test_bad_files_and_small_ones_are_named_and_left_out(tmp_path, capsys):
    put(tmp_path, "deep/good.PNG")
    put(tmp_path, "small.png", 31, 200)
    put(tmp_path, ".hidden.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = put(tmp_path, "cut.jpg", 200, 200).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    data = Photos(4, 32, "test", tmp_path)
    assert [p.name for p, _ in data.items] == ["good.PNG"]
    why = {p.name: told for p, told in data.bad}
    assert set(why) == {"small.png", "text.jpg", "empty.png", "cut.jpg"}
    assert why["small.png"] == "31 x 200 pixels, whose test part is too small for 32 x 32"
    assert why["text.jpg"] == "not a picture" and "decoded" in why["cut.jpg"]
    told = capsys.readouterr().out
    assert "1 pictures; 4 left out" in told and all(name in told for name in why)
    assert data(0, 0).x.shape == (4, 3, 32, 32)


def test_pictures_on_their_side_are_turned_before_they_are_cut(tmp_path):
    exif = Image.Exif()
    exif[photos.ORIENTATION] = 6  # the camera was turned: shown upright this is 40 wide and 200 high
    put(tmp_path, "a.png", 200, 40, exif=exif)
    data = Photos(16, 16, "test", tmp_path, scale=1)
    assert data.items[0][1] == [(20, 100, 40, 200)]
    x = places(data(0, 0).x)
    # down the upright picture run the columns of the file; nothing is black, as beyond an edge it would be
    assert (x[:, 0].diff(dim=-2) == 1).all() and x[:, 0].min() >= 100


@pytest.mark.parametrize(
    "given, message",
    [
        ({"split": "valid"}, "split 'valid': expected train, test, all"),
        ({"path": "/no/such"}, "/no/such: no such folder"),
        ({"batch": 0}, "expected 1 or more"),
        ({"size": 64}, "no pictures .* the first: .*a.png: 90 x 70 pixels"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, given, message):
    put(tmp_path, "a.png")
    with pytest.raises(ValueError, match=message):
        Photos(**{"path": tmp_path} | given)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        Photos(path=tmp_path)


def test_the_photographs_of_scikit_image_are_inside_its_wheel():
    from importlib.metadata import files

    inside = {f.name for f in files("scikit-image") or () if f.parent.name == "data"}
    assert set(COLOUR) | set(GREY) <= inside
    assert all(path.is_file() for path in shipped(grey=True))
    assert [p.name for p in shipped()] == sorted(COLOUR)


def test_nothing_is_downloaded(monkeypatch):
    from skimage.data import _fetchers

    def refuse(*_args, **_kwargs):
        raise AssertionError("asked for a download")

    monkeypatch.setattr(_fetchers, "_fetch", refuse)
    data = Photos(7, 128, "test")
    assert not data.bad and len(data) == len(COLOUR)
    x = data(0, 0).x
    assert x.shape == (7, 3, 128, 128) and (x.std((1, 2, 3)) > 0.02).sum() >= 6
    assert data.name == "photos"


def test_grey_ones_on_request():
    data = Photos(len(COLOUR) + len(GREY), 32, grey=True)
    spread = data(0, 0).x.std(1).mean((1, 2))
    assert (spread == 0).sum() == len(GREY)


def test_without_scikit_image_the_error_is_that_of_the_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ModuleNotFoundError, match="skimage"):
        Photos()
