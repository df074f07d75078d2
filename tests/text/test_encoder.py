import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.text.encoder import PRESETS, TextTransformer
from pocketdiffusion.text.tokenizer import Tokenizer

TEXTS = ["three red circles and a blue square", "a star", ""]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextTransformer(PRESETS["smoke"], Tokenizer.train(TEXTS * 10, length=32)).eval()


@torch.no_grad()
def test_embed(encoder):
    cond = encoder.embed(TEXTS)
    assert cond.tokens.shape == (*cond.mask.shape, 32)
    assert cond.pooled.shape == (3, 32)
    assert cond.mask.sum(1).tolist() == [9, 4, 2]
    assert cond.tokens.isfinite().all()


@torch.no_grad()
def test_an_embedding_does_not_depend_on_its_padding(encoder):
    ids, mask = encoder.tokenizer(["a star"])
    short = encoder(ids, mask)
    long = encoder(torch.cat([ids, ids.new_zeros(1, 24)], 1), torch.cat([mask, mask.new_zeros(1, 24)], 1))
    n = mask.sum()
    torch.testing.assert_close(long.tokens[:, :n], short.tokens[:, :n], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(long.pooled, short.pooled, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_an_embedding_does_not_depend_on_its_neighbours(encoder):
    together, alone = encoder.embed(TEXTS), encoder.embed(TEXTS[1:2])
    n = alone.mask.sum()
    torch.testing.assert_close(together.tokens[1, :n], alone.tokens[0, :n], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.pooled[1], alone.pooled[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_order_of_words_matters(encoder):
    a, b = encoder.embed(["red star", "star red"]).pooled
    assert (a - b).abs().max() > 1e-4


def test_pooled_is_the_mean_of_real_tokens(encoder):
    cond = encoder.embed(TEXTS)
    for i in range(3):
        torch.testing.assert_close(cond.pooled[i], cond.tokens[i][cond.mask[i]].mean(0))


def test_gradient_reaches_the_embedding(encoder):
    encoder.embed(TEXTS).pooled.sum().backward()
    assert encoder.tokens.weight.grad.any()


@torch.no_grad()
def test_save_and_load(encoder, tmp_path):
    store.save(encoder, tmp_path / "text")
    encoder.tokenizer.save(tmp_path / "tokenizer")
    again = store.load(tmp_path / "text")
    again.tokenizer = Tokenizer.load(tmp_path / "tokenizer", again.config.length)
    assert torch.equal(again.embed(TEXTS).tokens, encoder.embed(TEXTS).tokens)


def test_without_a_tokenizer_there_are_no_texts():
    with pytest.raises(AssertionError, match="tokenizer"):
        TextTransformer(PRESETS["smoke"]).embed(TEXTS)
