import json

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion.data import files
from pocketdiffusion.data.files import Folder, read_picture, read_prompts, rows

RED = (255, 0, 0)


def put(folder, name, caption="a thing", colour=RED, size=(20, 16), **options):
    """A plain picture (size: width, height) and its caption."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def ten(tmp_path):
    """Ten grey pictures; the caption tells the level."""
    for i in range(10):
        put(tmp_path, f"{i}.png", str(i), (i * 20,) * 3)
    return tmp_path


def test_every_picture_comes_once_per_epoch_with_its_caption(ten):
    data = Folder(ten, batch=4, size=8)
    batches = [data(0, step) for step in range(5)]
    assert batches[0].x.shape == (4, 3, 8, 8)
    told = [int(c) for b in batches for c in b.text]
    assert sorted(told[:10]) == sorted(told[10:]) == list(range(10)) and told[:10] != told[10:]
    x = torch.cat([b.x for b in batches])
    torch.testing.assert_close(x, (torch.tensor(told) * 20 / 127.5 - 1)[:, None, None, None].expand_as(x))


def test_a_batch_is_a_function_of_seed_and_step(ten):
    a, b = Folder(ten, batch=4, size=8), Folder(ten, batch=4, size=8)
    b(0, 0)
    assert torch.equal(a(3, 7).x, b(3, 7).x) and a(3, 7).text == b(3, 7).text
    assert a(3, 7).text != a(4, 7).text


def test_a_batch_may_be_larger_than_the_folder():
    assert sorted(rows(3, 6, seed=0, step=0)) == [0, 0, 1, 1, 2, 2]


def test_metadata_wins_over_text_files_and_subfolders_count(tmp_path):
    put(tmp_path, "a.png", "from the text file")
    put(tmp_path, "deep/b.jpg", None)
    lines = [
        {"file_name": "a.png", "text": "from the metadata"},
        {"file_name": "deep/b.jpg", "text": "two\nlines"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    data = Folder(tmp_path, size=8)
    assert [caption for _, caption in data.items] == ["from the metadata", "two lines"]
    assert not data.bad


def test_bad_files_are_named_counted_and_left_out(tmp_path, capsys):
    put(tmp_path, "good.png")
    put(tmp_path, "uncaptioned.png", None)
    put(tmp_path, "blank.png", " \n")
    put(tmp_path, "latin.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    put(tmp_path, "empty.png").write_bytes(b"")
    put(tmp_path, "text.jpg").write_text("not a picture at all")
    for name in ("cut.png", "cut.jpg"):
        path = tmp_path / name
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        path.with_suffix(".txt").write_text("cut")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}\n{"file_name": 3\n[]\n')
    (tmp_path / ".hidden.png").write_text("left by some other program")
    data = Folder(tmp_path, batch=2, size=8)
    why = {path.name + ("" if "line" not in told else told[:6]): told for path, told in data.bad}
    assert len(why) == len(data.bad) == 10 and len(data) == 1
    assert why["uncaptioned.png"] == "no caption" and why["blank.png"] == "empty caption"
    assert why["empty.png"] == "zero bytes" and why["text.jpg"] == "not a picture"
    assert why["gone.png"] == "no such file" and "cannot be read" in why["latin.png"]
    assert "cannot be decoded" in why["cut.png"] and "cannot be decoded" in why["cut.jpg"]
    assert "line 2" in why["metadata.jsonlline 2"] and "line 3" in why["metadata.jsonlline 3"]
    shown = capsys.readouterr().out
    assert "1 pictures; 10 left out" in shown and all(path.name in shown for path, _ in data.bad)
    assert data(0, 0).text == ["a thing", "a thing"]
    assert not capsys.readouterr().out


def test_a_long_list_of_bad_files_is_cut_on_the_terminal(tmp_path, capsys):
    put(tmp_path, "good.png")
    for i in range(files.SHOWN + 5):
        put(tmp_path, f"bad{i}.png", None)
    data = Folder(tmp_path, size=8)
    assert "and 5 more" in capsys.readouterr().out and len(data.bad) == files.SHOWN + 5


def test_a_folder_that_cannot_be_used_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{tmp_path}: no pictures"):
        Folder(tmp_path)
    put(tmp_path, "a.png", None)
    with pytest.raises(ValueError, match=r"1 left out, the first: .*a.png: no caption"):
        Folder(tmp_path)
    with pytest.raises(ValueError, match=r"a.png: not a folder"):
        Folder(tmp_path / "a.png")


def test_the_centre_is_cut(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = RED
    Image.fromarray(pixels).save(tmp_path / "a.png")
    x = read_picture(tmp_path / "a.png", (10, 10))
    assert torch.equal(x, torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 10, 10))


def test_sizes_may_be_rectangles(ten):
    assert Folder(ten, batch=2, size=(8, 12))(0, 0).x.shape == (2, 3, 8, 12)


def test_a_picture_is_turned_as_the_camera_was(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    x = read_picture(tmp_path / "a.jpg", (16, 16))
    assert x[:, :, :7].max() < -0.9 and x[:, :, 9:].min() > 0.9


def corner(path):
    return ((read_picture(path, (8, 8))[:, 0, 0] + 1) * 127.5).round().int().tolist()


def test_transparency_lies_on_white(tmp_path):
    for mode, clear in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        Image.new(mode, (8, 8), clear).save(tmp_path / f"{mode}.png")
        assert corner(tmp_path / f"{mode}.png") == [255, 255, 255]
    Image.new("RGBA", (8, 8), (0, 0, 255, 51)).save(tmp_path / "half.png")
    assert corner(tmp_path / "half.png") == [204, 204, 255]


def test_palettes(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "plain.gif")
    image.save(tmp_path / "clear.png", transparency=1)
    assert corner(tmp_path / "plain.png") == corner(tmp_path / "plain.gif") == [10, 200, 30]
    assert corner(tmp_path / "clear.png") == [255, 255, 255]


def test_grey_bits_and_print_colours(tmp_path):
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    Image.new("1", (8, 8), 1).save(tmp_path / "bit.png")
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "print.tif")
    assert corner(tmp_path / "grey.png") == [77] * 3
    assert corner(tmp_path / "bit.png") == corner(tmp_path / "print.tif") == [255] * 3


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    Image.fromarray(np.full((8, 8), 200 * 257, np.uint16)).save(tmp_path / name)
    assert corner(tmp_path / name) == [200] * 3


def test_flip_is_off_unless_asked_for(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("white on the right")
    straight = Folder(tmp_path, batch=32, size=8)(0, 0).x
    assert (straight[:, :, :, -1] == 1).all()
    flipped = Folder(tmp_path, batch=32, size=8, flip=True)
    right = (flipped(0, 0).x[:, 0, 0, -1] == 1).sum()
    assert 8 < right < 24 and torch.equal(flipped(0, 0).x, flipped(0, 0).x)


def test_prompts_are_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\ufefftwo stars\r\n\n  a \u2764 heart \n")
    assert read_prompts(path) == ["two stars", "a \u2764 heart"]
    path.write_text("\n \n")
    with pytest.raises(ValueError, match=r"prompts.txt: no prompts"):
        read_prompts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"prompts.txt: cannot be read"):
        read_prompts(path)
    with pytest.raises(ValueError, match=r"nothing.txt: cannot be read"):
        read_prompts(tmp_path / "nothing.txt")
