"""Prompts -> token numbers and a mask, by the tokenizers of foreign text encoders.

    words(texts) -> ids (B, N), mask (B, N)      the encoders' numbers side by side, N the sum of lengths

A row of one encoder is [begin] prefix prompt suffix [end], cut to its length and padded on the right. Padding
is 0 with a mask of False: an encoder puts its own padding there. The same files and rules serve a bundle,
which has no transformers (runtime/bundle.py).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import renamed


@dataclass(frozen=True)
class Reading:
    """How one encoder reads a prompt. ``prefix`` and ``suffix`` stand around prompts that are not empty."""

    length: int  # tokens at most, special ones and prefix included
    prefix: str = ""
    suffix: str = ""
    always: bool = False  # prefix and suffix around the empty prompt too
    lower: bool = False  # lower case, without white space at the ends
    longest: bool = False  # padded to the longest of a batch, not to the length


def plain(tokenizer: Any) -> Any:
    """The core of a tokenizer of transformers: no special tokens, cut or padding of its own."""
    import tokenizers

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told |= {"post_processor": None, "truncation": None, "padding": None}
    return tokenizers.Tokenizer.from_str(json.dumps(told))


def ends(tokenizer: Any) -> tuple[int | None, int | None]:
    """The first and last token that a tokenizer of transformers puts around any text."""
    around = tokenizer("").input_ids
    if len(around) > 2:
        raise ValueError(
            f"{tokenizer.name_or_path}: puts {len(around)} tokens around a text, expected 0 to 2"
        )
    if len(around) == 2:
        return around[0], around[1]
    if not around:
        return None, None
    return (None, around[0]) if around[0] == tokenizer.eos_token_id else (around[0], None)


class Words:
    """``tokenizers`` of transformers, each with its ``Reading``."""

    def __init__(self, tokenizers: Mapping[str, Any], readings: Mapping[str, Reading]):
        self.readings = dict(readings)
        self.inner = {name: plain(tokenizers[name]) for name in readings}
        self.ends = {name: ends(tokenizers[name]) for name in readings}

    @property
    def length(self) -> int:
        return sum(reading.length for reading in self.readings.values())

    @property
    def special(self) -> int:
        """Tokens around a prompt, of all encoders."""
        return sum(token is not None for ends in self.ends.values() for token in ends)

    def __len__(self) -> int:
        return max(inner.get_vocab_size() for inner in self.inner.values())

    def __call__(self, texts: Sequence[str], multiple: int | None = None) -> tuple[Tensor, Tensor]:
        """Numbers and mask (B, N). ``multiple``: N of an encoder that pads to the longest is a multiple."""
        parts = [self.part(name, texts, multiple or 1) for name in self.readings]
        return torch.cat([ids for ids, _ in parts], 1), torch.cat([mask for _, mask in parts], 1)

    def part(self, name: str, texts: Sequence[str], multiple: int = 1) -> tuple[Tensor, Tensor]:
        """Those of one encoder."""
        rows = [self.row(name, text) for text in texts]
        reading, longest = self.readings[name], max(len(row) for row in rows)
        n = min(reading.length, -(-longest // multiple) * multiple) if reading.longest else reading.length
        ids = torch.tensor([row + [0] * (n - len(row)) for row in rows])
        return ids, torch.arange(n)[None] < torch.tensor([len(row) for row in rows])[:, None]

    def row(self, name: str, text: str) -> list[int]:
        reading, (begin, end) = self.readings[name], self.ends[name]
        ids = self.read(name, text)[0].ids
        room = reading.length - (begin is not None) - (end is not None)
        if len(ids) > room:
            has, limit = len(ids) + reading.length - room, reading.length
            warnings.warn(
                f"prompt cut to {limit} tokens of {name} (it has {has}): {text[:60]!r}", stacklevel=4
            )
        return [*([begin] * (begin is not None)), *ids[:room], *([end] * (end is not None))]

    def read(self, name: str, text: str) -> tuple[Any, int]:
        """The encoding of what an encoder is told, and where in that the prompt begins."""
        reading = self.readings[name]
        # bytes that are no text come from a shell as lone surrogates
        text = text.encode("utf-8", "replace").decode()
        said, start = text, 0
        if reading.lower:
            said, start = text.lower().strip(), len(text.lstrip()) - len(text)
        if said or reading.always:
            said, start = reading.prefix + said + reading.suffix, start + len(reading.prefix)
        return self.inner[name].encode(said, add_special_tokens=False), start

    def spans(self, name: str, text: str) -> list[tuple[int, int]]:
        """Where in ``text`` each token of an encoder comes from; (0, 0) for those of no letter of it."""
        encoding, start = self.read(name, text)
        room = self.readings[name].length - sum(token is not None for token in self.ends[name])
        own = [(max(0, a - start), max(0, min(b - start, len(text)))) for a, b in encoding.offsets[:room]]
        return [(0, 0)] * (self.ends[name][0] is not None) + own

    def described(self) -> dict[str, Any]:
        """What a manifest says of them (runtime/manifest.py)."""
        parts = []
        for i, (name, reading) in enumerate(self.readings.items()):
            begin, end = self.ends[name]
            told = {"tokenizer": file(i), "length": reading.length, "begin": begin, "end": end}
            around = {k: getattr(reading, k) for k in ("prefix", "suffix", "always", "lower")}
            parts.append(told | {k: v for k, v in around.items() if v})
        return {"length": self.length, "parts": parts}

    def save(self, folder: Path) -> None:
        for i, inner in enumerate(self.inner.values()):
            with renamed(folder / file(i)) as temporary:
                temporary.write_text(inner.to_str(), encoding="utf-8")


def file(i: int) -> str:
    return f"tokenizer_{i + 1}.json" if i else "tokenizer.json"
