import warnings

import pytest
import torch
from tokenizers import decoders

from pocketdiffusion.text.tokenizer import BEGIN, END, FILE, PAD, Tokenizer

CORPUS = ["three red circles and a blue square", "a green star above two yellow hearts"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CORPUS, vocab=400, length=32)


def words(tokenizer, ids):
    pieces = [tokenizer.inner.id_to_token(i) for i in ids.tolist()]
    return decoders.ByteLevel().decode([p for p in pieces if p not in (PAD, BEGIN, END)]).strip()


def test_round_trip(tokenizer):
    ids, mask = tokenizer(["three red circles"])
    assert words(tokenizer, ids[0]) == "three red circles"
    assert ids[0, 0] == tokenizer.begin
    assert ids[0, mask[0]][-1] == tokenizer.end
    assert len(tokenizer) <= 400


def test_known_words_are_short(tokenizer):
    _, mask = tokenizer(["three red circles"])
    assert mask.sum() == 5  # <s>, three words, </s>


@pytest.mark.parametrize("text", ["\U0001f98a\U0001f680", "xylophone zebra", "\u00fc\u00df\u4f60\u597d"])
def test_what_was_never_seen_falls_back_to_bytes(tokenizer, text):
    ids, _ = tokenizer([text])
    assert words(tokenizer, ids[0]) == text
    assert ids.max() < len(tokenizer)


def test_the_empty_string_is_begin_and_end(tokenizer):
    ids, mask = tokenizer([""])
    assert ids[0, mask[0]].tolist() == [tokenizer.begin, tokenizer.end]
    assert ids[0, ~mask[0]].tolist() == [0] * 6


@pytest.mark.parametrize("text", ["Three RED circles", " three  red\tcircles\n"])
def test_case_and_white_space_do_not_matter(tokenizer, text):
    assert torch.equal(tokenizer([text])[0], tokenizer(["three red circles"])[0])


@pytest.mark.parametrize("text", [" ", "\n\t "])
def test_nothing_but_white_space_is_the_empty_string(tokenizer, text):
    assert torch.equal(tokenizer([text])[0], tokenizer([""])[0])


def test_ten_thousand_characters_are_cut_with_a_warning(tokenizer):
    with pytest.warns(UserWarning, match="cut to 32 tokens"):
        ids, mask = tokenizer(["red " * 2500])
    assert ids.shape == (1, 32) and mask.all()
    assert ids[0, -1] == tokenizer.end


def test_what_fits_gives_no_warning(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer(["red " * 30])


def test_padding(tokenizer):
    ids, mask = tokenizer(["", "red " * 10])
    assert ids.shape == mask.shape == (2, 16)  # 12, rounded up to a multiple of 8
    assert mask.sum(1).tolist() == [2, 12]
    assert not ids[~mask].any()


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new")
    again = Tokenizer.load(tmp_path / "new", 32)
    assert torch.equal(again(CORPUS[:2])[0], tokenizer(CORPUS[:2])[0])
    assert [p.name for p in (tmp_path / "new").iterdir()] == [FILE]


@pytest.mark.parametrize("content", [None, "", "not json", '{"version": "1.0"}'])
def test_a_bad_file_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=FILE.replace(".", r"\.")):
        Tokenizer.load(tmp_path, 32)
