"""Text embeddings on the disk: read once, the same afterwards, apart for every encoder."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parent))
import tiny_text as tiny

from pocketdiffusion.teachers.encoders import load
from pocketdiffusion.teachers.kept import Kept

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder_of("sd3", tmp_path_factory.mktemp("kept") / "sd3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_caption_is_read_once_and_comes_back_as_it_was(folder, tmp_path, dtype, monkeypatch):
    text, asked = load(folder, dtype=dtype), []
    embed = text.embed
    monkeypatch.setattr(text, "embed", lambda texts: asked.append(list(texts)) or embed(texts))
    kept = Kept(text, tmp_path)
    said = ["a red star", "", "a red star", "two circles"]
    first = kept.embed(said)
    assert asked == [["a red star", "", "two circles"]]
    second = Kept(text, tmp_path).embed(["", "two circles"])
    assert len(asked) == 1
    wanted = embed(["a red star", "", "two circles"])
    for key in ("tokens", "mask", "pooled"):
        a, b, c = (getattr(cond, key) for cond in (first, second, wanted))
        assert torch.equal(a[[0, 1, 3]], c) and torch.equal(a[0], a[2]) and torch.equal(b, c[1:])
        assert a.dtype == c.dtype
    assert kept.embed(first) is first


def test_other_encoders_have_a_place_of_their_own(folder, tmp_path):
    text, half = load(folder), load(folder, dtype=torch.bfloat16)
    a, b = Kept(text, tmp_path), Kept(half, tmp_path)
    assert not torch.equal(a.embed(["a star"]).tokens, b.embed(["a star"]).tokens)
    assert len(list(tmp_path.iterdir())) == 2
    a.place("a star").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"safetensors: not a whole embedding .*; delete it"):
        a.embed(["a star"])
