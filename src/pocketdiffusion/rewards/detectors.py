"""Counters for photographs: Grounding DINO and OWLv2 of transformers, with SAM's masks.

    count = load("grounding-dino-base", segmenter="sam-vit-huge")      # folders or hub ids
    count(pictures, ["red car", "dog"]) -> [{"red car": [mask, ...], "dog": []}, ...]

    boxes      OWL: those whose best phrase scores ``threshold`` or more
               Grounding DINO: those of which some token scores that much; the phrase is the one whose tokens
               score most on average, and at least ``text``
    instances  of boxes that overlap by more than ``overlap`` (IoU), whatever their phrases, the one that
               scores most: a thing counts once
    masks      what SAM finds in the box and believes most in; without it, the box

Thresholds of Grounding DINO and overlap are those of a prototype of CountDiffusion, OWL's is its processor's;
that a phrase's tokens are averaged, and that boxes of different phrases exclude each other, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

DINO = ("grounding-dino", "mm-grounding-dino")
OWL = ("owlv2", "owlvit")
THRESHOLDS = dict.fromkeys(DINO, 0.3) | dict.fromkeys(OWL, 0.1)


class Box(NamedTuple):
    """``corners``: left, top, right, bottom in pixels."""

    corners: Tensor
    score: float
    phrase: int


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Of boxes (N, 4) and (M, 4): (N, M)."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(-1) for x in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both).clamp(min=1e-9)


def apart(boxes: Sequence[Box], overlap: float) -> list[Box]:
    """Greedy non-maximum suppression over all phrases, best first."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: -b.score):
        there = [k.corners for k in kept]
        if not there or float(iou(box.corners[None], torch.stack(there)).max()) <= overlap:
            kept.append(box)
    return kept


def tokens_of(offsets: Sequence[tuple[int, int]], phrases: Sequence[str]) -> list[list[int]]:
    """Which tokens make up each phrase of "one. another." (``offsets`` in characters of it)."""
    found, start = [], 0
    for phrase in phrases:
        end = start + len(phrase)
        found.append([i for i, (a, b) in enumerate(offsets) if b > a and a < end and b > start])
        start = end + 2
    return found


def grounded(
    logits: Tensor, corners: Tensor, tokens: Sequence[Sequence[int]], threshold: float, text: float
) -> list[Box]:
    """Grounding DINO's queries of one picture, logits (Q, T) and corners (Q, 4), as boxes of phrases."""
    scores = logits.float().sigmoid()
    every = scores[:, sorted({i for own in tokens for i in own})].max(-1).values
    means = torch.stack([scores[:, list(own)].mean(-1) for own in tokens], -1)
    best, phrase = means.max(-1)
    kept = (every >= threshold) & (best >= text)
    return [Box(corners[i], float(every[i]), int(phrase[i])) for i in kept.nonzero()[:, 0].tolist()]


def filled(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """A box as a mask (H, W)."""
    left, top, right, bottom = corners.round().int().tolist()
    mask = torch.zeros(size, dtype=torch.bool)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    return mask


class OpenVocabulary:
    """Counts whatever it is told; ``processor`` and ``segmenter`` (model, processor) are of transformers."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        segmenter: tuple[Any, Any] | None = None,
        threshold: float | None = None,
        text: float = 0.2,
        overlap: float = 0.5,
    ):
        kind = model.config.model_type
        if kind not in THRESHOLDS:
            raise ValueError(f"a {kind} detector, expected one of {', '.join(THRESHOLDS)}")
        self.model, self.processor, self.segmenter = model.eval(), processor, segmenter
        self.threshold = THRESHOLDS[kind] if threshold is None else threshold
        self.text, self.overlap, self.kind = text, overlap, kind

    def check(self, phrases: Sequence[str]) -> None:
        """Every noun may be asked for."""

    def boxes(self, pictures: Sequence[np.ndarray], phrases: Sequence[str]) -> list[list[Box]]:
        """Of pictures (H, W, 3) in bytes, before overlapping ones are dropped."""
        sizes = [p.shape[:2] for p in pictures]
        if self.kind in OWL:
            asked = [[f"a photo of a {p}" for p in phrases]] * len(pictures)
            given = self.processor(images=list(pictures), text=asked, return_tensors="pt")
            out = self.model(**given.to(self.model.device))
            found = self.processor.post_process_grounded_object_detection(
                out, threshold=self.threshold, target_sizes=sizes
            )
            rows = [zip(f["boxes"].cpu(), f["scores"].tolist(), f["labels"].tolist()) for f in found]
            return [[Box(*row) for row in own] for own in rows]
        sentence = ". ".join(phrases).lower() + "."
        given = self.processor(images=list(pictures), text=[sentence] * len(pictures), return_tensors="pt")
        told = self.processor.tokenizer(sentence, return_offsets_mapping=True)["offset_mapping"]
        tokens = tokens_of(told, phrases)
        out = self.model(**given.to(self.model.device))
        made = []
        for logits, centred, (h, w) in zip(out.logits.cpu(), out.pred_boxes.float().cpu(), sizes):
            middle, half = centred[:, :2], centred[:, 2:] / 2
            corners = torch.cat([middle - half, middle + half], -1) * torch.tensor([w, h, w, h])
            made.append(grounded(logits, corners, tokens, self.threshold, self.text))
        return made

    def masks(self, picture: np.ndarray, boxes: Sequence[Box]) -> list[Tensor]:
        size: tuple[int, int] = (picture.shape[0], picture.shape[1])
        if not boxes or self.segmenter is None:
            return [filled(b.corners, size) for b in boxes]
        model, processor = self.segmenter
        asked = [[b.corners.tolist() for b in boxes]]
        given = processor(images=picture, input_boxes=asked, return_tensors="pt").to(model.device)
        sizes = [given.pop(name) for name in ("original_sizes", "reshaped_input_sizes")]
        given["input_boxes"] = given["input_boxes"].float()
        out = model(**given)
        every = processor.image_processor.post_process_masks(out.pred_masks.cpu(), *(s.cpu() for s in sizes))
        best = out.iou_scores[0].argmax(-1).cpu()
        return [m[i] for m, i in zip(every[0], best)]

    @torch.no_grad()
    def __call__(self, pictures: Tensor, phrases: Sequence[str]) -> list[dict[str, list[Tensor]]]:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        levels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
        given = list(levels.byte().permute(0, 2, 3, 1).numpy())
        made = []
        for picture, found in zip(given, self.boxes(given, phrases)):
            kept = apart(found, self.overlap)
            named: dict[str, list[Tensor]] = {p: [] for p in phrases}
            for box, mask in zip(kept, self.masks(picture, kept)):
                if mask.any():
                    named[phrases[box.phrase]].append(mask)
            made.append(named)
        return made


def load(
    name: str | Path, segmenter: str | Path | None = None, device: torch.device | str = "cpu", **settings: Any
) -> OpenVocabulary:
    """A detector, and SAM, by folder or hub id. ValueError where one of them is something else."""
    from transformers import AutoConfig, AutoModel, AutoModelForZeroShotObjectDetection, AutoProcessor

    def kind(source: str | Path, known: Sequence[str]) -> None:
        try:
            found = AutoConfig.from_pretrained(source).model_type
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: no model of transformers ({str(error).splitlines()[0]})") from None
        if found not in known:
            raise ValueError(f"{source}: a {found}, expected one of {', '.join(known)}")

    kind(name, [*THRESHOLDS])
    second = None
    if segmenter is not None:
        kind(segmenter, ["sam"])
        network = AutoModel.from_pretrained(segmenter).to(device).eval()
        second = network, AutoProcessor.from_pretrained(segmenter)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(name).to(device)
    return OpenVocabulary(model, AutoProcessor.from_pretrained(name), second, **settings)
