"""Text encoders of transformers as ours: CLIP, T5, Gemma, Qwen, joined as a family does.

    embed(texts) -> Cond          tokens (B, N, D), mask (B, N), pooled (B, P) or None; frozen, in fp32
    forward(ids, mask) -> Cond    the same from token numbers (words.py)

A Rule says which encoders a family has and how what they say becomes one Cond:

    tokens = cat over rows of pad(cat of the row's encoders on channels; D) on tokens,  D the widest row
    pooled = cat of pooled vectors: CLIP at the end of the text, projected where the encoder has a projection

The mask is True everywhere for families whose denoisers attend to padding too, which are most of them.
In training every encoder can be dropped by itself, so that any of them may be absent later (SD3, SnapGen):

    dropped(cond, rates, generator)      its tokens and pooled vector are zeros, masked where the family masks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import Cond
from .words import Reading, Words

# of the published encoders' tokens and pooled vectors, for those that are absent
WIDTHS = {"clip_l": 768, "clip_g": 1280, "t5": 4096, "gemma": 2304, "qwen": 3584}
DROP = 0.464  # SD3, of each of three encoders, so that a tenth of the prompts is empty (number from memory)


@dataclass(frozen=True)
class Part:
    """One encoder. ``layer``: "last", after the final norm, or "penultimate", what the last is given."""

    reading: Reading
    layer: str = "last"
    masked: bool = False  # the encoder itself is told which tokens are padding
    skip: int = 0  # tokens at the beginning that are left out
    keep: int = 0  # if set: the first token and the last ``keep`` - 1 of the others


@dataclass(frozen=True)
class Rule:
    """``parts`` in the order of a pipeline's text_encoder, text_encoder_2 ...; ``rows`` name them."""

    parts: Mapping[str, Part]
    rows: tuple[tuple[str, ...], ...]
    pooled: tuple[str, ...] = ()
    masked: bool = False  # the denoiser is told which tokens are padding


def clip(layer: str = "last") -> Part:
    return Part(Reading(77), layer)


def sigma(length: int) -> Rule:
    """PixArt: T5 alone, which is told what is padding, as is the denoiser; prompts in lower case."""
    return Rule({"t5": Part(Reading(length, lower=True), masked=True)}, (("t5",),), masked=True)


_BOTH = {"clip_l": clip("penultimate"), "clip_g": clip("penultimate")}
# 34 tokens of the template come before the prompt
_QWEN = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
_CHAT = Reading(1024 + 34, _QWEN, "<|im_end|>\n<|im_start|>assistant\n", always=True, longest=True)
RULES: dict[str, Rule] = {
    "sd1.5": Rule({"clip_l": clip()}, (("clip_l",),)),
    "sdxl": Rule(_BOTH, (("clip_l", "clip_g"),), ("clip_g",)),
    "sd3": Rule({**_BOTH, "t5": Part(Reading(256))}, (("clip_l", "clip_g"), ("t5",)), ("clip_l", "clip_g")),
    "flux": Rule({"clip_l": clip(), "t5": Part(Reading(512))}, (("t5",),), ("clip_l",)),
    "pixart-alpha": sigma(120),
    "pixart-sigma": sigma(300),
    # of a prompt with Sana's instruction before it (``instruction``), the first and the last 299 tokens
    "sana": Rule(
        {"gemma": Part(Reading(300, lower=True), masked=True, keep=300)}, (("gemma",),), masked=True
    ),
    # Gemma's length: Mobile-VTON has 256, ours is 128 (chosen)
    "snapgen": Rule(
        {**_BOTH, "gemma": Part(Reading(128), masked=True)},
        (("clip_l", "clip_g"), ("gemma",)),
        ("clip_l", "clip_g"),
        masked=True,
    ),
    "qwen-image": Rule({"qwen": Part(_CHAT, masked=True, skip=34)}, (("qwen",),), masked=True),
}


@dataclass(frozen=True)
class Config:
    dim: int  # of tokens
    pooled: int
    length: int  # token numbers of one prompt, of all encoders
    vocab: int  # token numbers below it are known to every encoder
    rule: dict[str, Any]
    widths: dict[str, int]  # of every encoder's tokens, absent ones too
    foreign: dict[str, Any] = field(default_factory=dict)  # transformers' own configs, by part


class ForeignText(nn.Module):
    """``encoders`` and ``tokenizers`` of transformers by the rule's names; a ``types.TextEncoder``.

    An encoder that is None is absent: its tokens and pooled vector are zeros where they would be, as of one
    that is dropped; ``widths`` says how wide they are (default: as published). ``width``: of the tokens,
    where absent encoders are the widest. ``offload``: a device to which each encoder goes while it is at
    work; it rests on the CPU. ``zeros``: the empty prompt is zeros (SDXL).
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module | None],
        tokenizers: Mapping[str, Any],
        rule: Rule,
        width: int | None = None,
        offload: torch.device | str | None = None,
        zeros: bool = False,
        widths: Mapping[str, int] | None = None,
    ):
        super().__init__()
        here = {name: encoder for name, encoder in encoders.items() if encoder is not None}
        for name, encoder in here.items():
            if rule.parts[name].layer == "penultimate" and name not in rule.pooled:
                shorten(encoder)
        self.encoders = nn.ModuleDict(here).requires_grad_(False).eval()
        self.rule, self.offload, self.zeros = rule, offload, zeros
        self.tokenizer = Words(tokenizers, {name: rule.parts[name].reading for name in here})
        self.pads = {name: tokenizers[name].pad_token_id or 0 for name in here}
        configs: dict[str, Any] = {name: encoder.config for name, encoder in here.items()}
        self.vocabs: dict[str, int] = {name: config.vocab_size for name, config in configs.items()}
        known = {**WIDTHS, **(widths or {}), **{name: c.hidden_size for name, c in configs.items()}}
        self.widths: dict[str, int] = {name: known.get(name, 0) for name in rule.parts}
        self.pools: dict[str, int] = {
            name: pooled_width(here[name]) if name in here else self.widths[name] for name in rule.pooled
        }
        # who knows the width knows better than we do how wide a row is that is absent altogether
        rows = [row for row in rule.rows if width is None or set(row) & set(here)]
        widest = max((sum(self.widths[name] for name in row) for row in rows), default=0)
        self.width = max(widest, width or 0)

    def train(self, mode: bool = True) -> ForeignText:
        """Frozen: dropout stays off."""
        return super().train(False)

    @property
    def config(self) -> Config:
        foreign = {}
        for name, encoder in self.encoders.items():
            told: dict[str, Any] = encoder.config.to_dict()  # type: ignore[union-attr,operator]
            # what depends on the library's version or on where the files lay
            loose = ("transformers_version", "dtype", "torch_dtype")
            foreign[name] = {k: v for k, v in told.items() if not k.startswith("_") and k not in loose}
        vocab = min(self.vocabs.values())
        pooled = sum(self.pools.values())
        length, rule = self.tokenizer.length, asdict(self.rule)
        return Config(self.width, pooled, length, vocab, rule, self.widths, foreign)

    @property
    def spoken(self) -> int:
        """Tokens of one prompt that come out, at most."""
        return sum(count(self.rule.parts[row[0]]) for row in self.rule.rows)

    @property
    def device(self) -> torch.device:
        return torch.device(self.offload) if self.offload else next(self.parameters()).device

    @torch.no_grad()
    def embed(self, texts: Sequence[str] | Cond) -> Cond:
        """Embeddings that were cached pass through."""
        if isinstance(texts, Cond):
            return texts
        ids, mask = self.tokenizer(texts)
        return self(ids.to(self.device), mask.to(self.device))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where in ``text`` each token of ``embed`` comes from, up to the last that does."""
        found: list[tuple[int, int]] = []
        start = 0
        for row in self.rule.rows:
            part = self.rule.parts[row[0]]
            if part.skip or part.keep:
                raise ValueError(f"{row[0]}: what it reads stands elsewhere in what comes out")
            if (first := next((name for name in row if name in self.encoders), None)) is not None:
                found += [(0, 0)] * (start - len(found)) + self.tokenizer.spans(first, text)
            start += count(part)
        return found

    def forward(self, ids: Tensor, mask: Tensor) -> Cond:
        """From the numbers and masks of ``tokenizer``, (B, N) of all encoders side by side."""
        said: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
        start = 0
        for name, reading in self.tokenizer.readings.items():
            # an encoder that pads to the longest is alone
            n = ids.shape[1] if reading.longest else reading.length
            said[name] = self.encode(name, ids[:, start : start + n], mask[:, start : start + n])
            start += n
        rows = [self.row(row, said, ids) for row in self.rule.rows]
        tokens = torch.cat([x for x, _ in rows], 1)
        real = torch.cat([m for _, m in rows], 1)
        vectors: list[Any] = [
            said[name][2] if name in said else tokens.new_zeros(len(tokens), width)
            for name, width in self.pools.items()
        ]
        pooled = torch.cat(vectors, -1) if vectors else None
        if self.zeros:
            full = (mask.sum(1, keepdim=True) > self.tokenizer.special).to(tokens.dtype)
            tokens = tokens * full[..., None]
            pooled = None if pooled is None else pooled * full
        return Cond(tokens, real, pooled)

    def encode(self, name: str, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, mask and pooled vector of one encoder."""
        part, encoder = self.rule.parts[name], self.encoders[name]
        ids = torch.where(mask, ids, self.pads[name])
        if self.offload:
            encoder.to(self.offload)
        more = {"output_hidden_states": True} if part.layer == "penultimate" else {}
        found: Any = encoder(input_ids=ids, attention_mask=mask.long() if part.masked else None, **more)
        if self.offload:
            encoder.to("cpu")
        # without a pooled vector there is no last layer (shorten)
        before = -2 if name in self.rule.pooled else -1
        x = found.hidden_states[before] if part.layer == "penultimate" else found.last_hidden_state
        pooled = None
        if name in self.rule.pooled:
            pooled = found.get("text_embeds") if "text_embeds" in found else found.pooler_output
            pooled = pooled.float()
        if part.keep:
            x = torch.cat([x[:, :1], x[:, 1 - part.keep :]], 1)
            mask = torch.cat([mask[:, :1], mask[:, 1 - part.keep :]], 1)
        return x[:, part.skip :].float(), mask[:, part.skip :], pooled

    def row(self, names: Sequence[str], said: Mapping[str, Any], like: Tensor) -> tuple[Tensor, Tensor]:
        """Encoders joined on channels, zeros up to the width; absent ones are zeros."""
        there = [said[name] for name in names if name in said]
        if not there:
            shape = (like.shape[0], count(self.rule.parts[names[0]]))
            none = torch.full(shape, not self.rule.masked, device=like.device)
            return torch.zeros(*shape, self.width, device=like.device), none
        x = there[0][0]
        found = [
            said[name][0] if name in said else x.new_zeros(*x.shape[:2], self.widths[name]) for name in names
        ]
        x = torch.cat(found, -1)
        mask = there[0][1] if self.rule.masked else torch.ones_like(there[0][1])
        return F.pad(x, (0, self.width - x.shape[-1])), mask

    def dropped(self, cond: Cond, rates: Mapping[str, float], generator: torch.Generator) -> Cond:
        """``cond`` (from ``embed``, or cached) without some encoders: in every row each is dropped with
        probability ``rates[name]``, independently of the others. ``generator`` is on the CPU."""
        if unknown := set(rates) - set(self.encoders):
            raise ValueError(f"drop: no text encoder {min(unknown)!r}; there are {', '.join(self.encoders)}")
        batch, device = len(cond.tokens), cond.tokens.device
        # who is absent has been dropped before
        gone = dict.fromkeys(self.rule.parts, torch.ones(batch, dtype=torch.bool, device=device))
        for name in self.encoders:
            drawn = torch.rand(batch, generator=generator)
            gone[name] = (drawn < rates.get(name, 0.0)).to(device)
        tokens, mask, pooled = cond.tokens.clone(), cond.mask.clone(), cond.pooled
        start = 0
        for i, row in enumerate(self.rule.rows):
            last = i == len(self.rule.rows) - 1
            stop = tokens.shape[1] if last else start + count(self.rule.parts[row[0]])
            channel = 0
            for name in row:
                end = channel + self.widths[name]
                tokens[gone[name], start:stop, channel:end] = 0
                channel = end
            if self.rule.masked:
                every = torch.stack([gone[name] for name in row]).all(0)
                mask[every, start:stop] = False
            start = stop
        # attention over nothing is not defined
        mask[:, 0] |= ~mask.any(1)
        if pooled is not None:
            pooled, channel = pooled.clone(), 0
            for name, width in self.pools.items():
                pooled[gone[name], channel : channel + width] = 0
                channel += width
        return replace(cond, tokens=tokens, mask=mask, pooled=pooled)

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Token numbers and mask of two prompts that tests, bench and exporters use."""
        texts = ["two green stars", "a blue square to the left of a yellow heart"]
        ids, mask = self.tokenizer([texts[i % 2] for i in range(batch)], self.tokenizer.length)
        return ids.to(device), mask.to(device)


def count(part: Part) -> int:
    """Tokens that come out of an encoder, at most."""
    return part.keep or part.reading.length - part.skip


def shorten(encoder: Any) -> None:
    """Drop the last layer of a CLIP text model, which nothing reads."""
    inner = getattr(encoder, "text_model", encoder).encoder
    inner.layers = inner.layers[:-1]


def pooled_width(encoder: Any) -> int:
    """Channels of the pooled vector: of the projection, where there is one."""
    projection = getattr(encoder, "text_projection", None)
    return encoder.config.hidden_size if projection is None else projection.out_features
