"""Byte-level BPE: strings -> token numbers and a mask.

Words that were never seen fall back to their bytes, so any string has tokens. A sequence is <s> ... </s>, cut
to ``length`` and padded with zeros; the empty string is <s> </s> and serves as the unconditional prompt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..disk import renamed

if TYPE_CHECKING:
    import tokenizers

PAD, BEGIN, END = "<pad>", "<s>", "</s>"
FILE = "tokenizer.json"


class Tokenizer:
    def __init__(self, inner: tokenizers.Tokenizer, length: int):
        self.inner, self.length = inner, length
        self.begin, self.end = inner.token_to_id(BEGIN), inner.token_to_id(END)

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int = 512, length: int = 32) -> Tokenizer:
        """Learn the merges from ``texts``; 256 bytes and three special tokens are always there."""
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, trainers

        inner = tokenizers.Tokenizer(models.BPE())
        # runs of white space are one space, at the ends none: they mean nothing in a prompt
        spaces = [normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
        inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), *spaces])
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=[PAD, BEGIN, END], initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner, length)

    def __len__(self) -> int:
        return self.inner.get_vocab_size()

    def __call__(self, texts: Sequence[str], multiple: int = 8) -> tuple[Tensor, Tensor]:
        """Numbers and mask (B, N); N is the longest, rounded up to ``multiple``, at most ``length``."""
        rows = []
        # bytes that are no text come from a shell as lone surrogates
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        for encoding, text in zip(self.inner.encode_batch(clean), clean):
            ids = encoding.ids
            if len(ids) > self.length - 2:
                warnings.warn(
                    f"prompt cut to {self.length} tokens (it has {len(ids) + 2}): {text[:60]!r}...",
                    stacklevel=2,
                )
            rows.append([self.begin, *ids[: self.length - 2], self.end])
        longest = max(len(r) for r in rows)
        n = min(self.length, -(-longest // multiple) * multiple)
        padded = torch.tensor([r + [0] * (n - len(r)) for r in rows])
        return padded, torch.arange(n)[None] < torch.tensor([len(r) for r in rows])[:, None]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in ``text`` each token of its row comes from, in characters; of <s> and </s> nothing."""
        pieces = self.inner.encode(text).offsets[: self.length - 2]
        return [(0, 0), *pieces, (0, 0)]

    def save(self, folder: Path) -> None:
        with renamed(folder / FILE) as temporary:
            temporary.write_text(self.inner.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, length: int) -> Tokenizer:
        import tokenizers

        try:
            inner = tokenizers.Tokenizer.from_file(str(folder / FILE))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{folder / FILE}: not a readable tokenizer ({error})") from None
        if None in (inner.token_to_id(BEGIN), inner.token_to_id(END)):
            raise ValueError(
                f"{folder / FILE}: has no tokens {BEGIN} and {END}; it is of another text encoder"
            )
        return cls(inner, length)
