"""A detector for the scenes world that looks at pixels only.

    background   one plane per channel, fitted to the light and unsaturated pixels
    pieces       connected pixels far from it, divided where two palette colours meet
    colour       paint lies between a palette colour and its lighter second tone: the nearest such line
    shape        coverage = how far a pixel is on its way from background to paint; then ``silhouettes.name``

It is a judge, so it is strict: what agrees too little with every template, or with every colour, is not
reported. Pictures are first averaged down to 64 to 127 pixels along the shorter side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.shapes import COLOURS, LIGHT
from ..types import Instance
from .silhouettes import name

BASE = np.array(list(COLOURS.values()), dtype=np.float32)
NAMES = tuple(COLOURS)
# RGB distance from the background; the faintest second tone is at 0.19 from the nearest backdrop
FAR = 0.10
# pixels in a piece, at the resolution looked at
LEAST = 9


@dataclass(frozen=True)
class _Piece:
    mask: np.ndarray  # (H, W) bool
    colour: int
    tone: np.ndarray  # (H, W) 0 = palette colour, 1 = second tone; NaN outside and along the edge
    error: float  # mean distance of the inner pixels from the line of its colour


def _planes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Background (B, H, W, 3) of pictures in [0, 1], and which pictures (B,) have one at all."""
    b, h, w, _ = x.shape
    gy, gx = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    basis = np.stack([np.ones_like(gx), gx, gy], -1).reshape(-1, 3).astype(np.float32)
    pixels = x.reshape(b, -1, 3)
    light = (pixels.min(-1) > 0.62) & (np.ptp(pixels, axis=-1) < 0.32)
    use = light
    for width in (0.3, 0.15, 0.15):
        gram = np.einsum("bn,ni,nj->bij", use, basis, basis, optimize=True) + 1e-3 * np.eye(3)
        plane = basis @ np.linalg.solve(gram, np.einsum("bn,ni,bnc->bic", use, basis, pixels, optimize=True))
        use = light & (np.square(pixels - plane).sum(-1) < width**2)
    return plane.reshape(x.shape).astype(np.float32), use.mean(1) > 0.25


def _inner(mask: np.ndarray) -> np.ndarray:
    """The pixels whose four neighbours are in the mask too."""
    p = np.pad(mask, 1)
    return mask & p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:]


def _outer(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    p = np.pad(mask, 1)
    p = p[:-2] | p[1:-1] | p[2:]
    return p[:, :-2] | p[:, 1:-1] | p[:, 2:]


def _lines(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pixels (M, 3): the distance from every colour's paint (M, 10), and the tone that is nearest."""
    way = LIGHT * (1 - BASE)
    tone = np.clip((p @ way.T - (BASE * way).sum(1)) / np.square(way).sum(1), 0, 1)
    gap = p[:, None] - BASE - tone[..., None] * way
    return np.sqrt(np.square(gap).sum(-1)), tone


def _pieces(x: np.ndarray, background: np.ndarray) -> list[_Piece]:
    """Candidate objects of one picture (H, W, 3)."""
    from scipy import ndimage

    rest = x - background
    # the local mean does not see the grain of a noisy background, the pixel itself does not blur the outline
    mean = ndimage.uniform_filter(rest, (3, 3, 0))
    far = (np.square(rest).sum(-1) > FAR**2) & (np.square(mean).sum(-1) > (0.8 * FAR) ** 2)
    labels, n = ndimage.label(far)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    out = []
    for i, box in enumerate(ndimage.find_objects(labels), 1):
        if sizes[i] >= LEAST:
            whole = np.zeros(far.shape, bool)
            whole[box] = labels[box] == i
            out += _divide(whole, x)
    return out


def _divide(mask: np.ndarray, x: np.ndarray) -> list[_Piece]:
    """A connected piece by its colours: usually one, more where different things touch."""
    from scipy import ndimage

    inner = _inner(mask)
    if inner.sum() < 4:
        return []
    distance, tone = _lines(x[inner])
    nearest = distance.argmin(1)
    row = np.arange(len(nearest))
    # only the palette colour itself is evidence: second tones of different colours look alike
    sure = (tone[row, nearest] < 0.5) & (distance[row, nearest] < 0.2)
    votes = np.bincount(nearest[sure], minlength=len(NAMES))
    colours = np.flatnonzero(votes >= max(4, 0.1 * len(row)))
    if len(colours) == 0:
        return []
    best = colours[distance[:, colours].argmin(1)]
    shade = np.full(mask.shape, np.nan, np.float32)
    shade[inner] = tone[row, best]
    error = np.zeros(mask.shape, np.float32)
    error[inner] = distance[row, best]
    if len(colours) == 1:
        return [_Piece(mask, int(colours[0]), shade, float(error[inner].mean()))]
    owner = np.full(mask.shape, -1)
    owner[inner] = best
    # the edge belongs to the nearest inner pixel
    y, z = ndimage.distance_transform_edt(~inner, return_distances=False, return_indices=True)
    owner = np.where(mask, owner[y, z], -1)
    out = []
    for c in map(int, colours):
        labels, n = ndimage.label(owner == c)
        for i in range(1, n + 1):
            part = labels == i
            if (part & inner).sum() >= 4:
                out.append(_Piece(part, c, np.where(part, shade, np.nan), float(error[part & inner].mean())))
    return out


def _part(piece: _Piece) -> list[_Piece]:
    """Two alike things that touch at a corner fall apart when the edge is taken off; others stay whole."""
    from scipy import ndimage

    labels, _ = ndimage.label(_inner(_inner(piece.mask)))
    labels[np.isin(labels, np.flatnonzero(np.bincount(labels.ravel()) < LEAST))] = 0
    y, x = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    owner = np.where(piece.mask, labels[y, x], 0)
    parts = [owner == i for i in np.unique(labels[labels > 0])]
    return [replace(piece, mask=m) for m in parts] if len(parts) > 1 else [piece]


def _pattern(piece: _Piece) -> str:
    """Stripes, if rows explain the light inner pixels and columns do not; dots, if about a quarter is light,
    which is what dots cover; else plain. A soft smear, which fades towards its rim, has neither."""
    inner = _inner(piece.mask)
    # after the cut at a corner a piece may be all edge, and only its colour is known
    if not np.isfinite(piece.tone[inner]).any():
        return "plain"
    tone = np.where(inner, piece.tone, np.nan)[np.ix_(inner.any(1), inner.any(0))]
    light = np.mean(piece.tone[inner] > 0.5)
    if light < 0.15:
        return "plain"
    in_rows, in_columns = (np.nanvar(tone - np.nanmean(tone, axis=i, keepdims=True)) for i in (1, 0))
    return "striped" if in_rows < 0.65 * in_columns else "dotted" if light < 0.45 else "plain"


def _covers(pieces: list[_Piece], x: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Coverage (3, N, H, W) of every piece if only its colour covers fully, if the paint is as light as it is
    along the row, and if the second tone covers fully, too; none of it on another piece."""
    from scipy import ndimage

    colour = BASE[[p.colour for p in pieces]]
    # products with (colour - background), the way from the background to the paint, per piece and pixel
    own = np.square(background).sum(-1)
    on_colour = np.moveaxis(background @ colour.T, -1, 0)
    length = np.square(colour).sum(-1)[:, None, None] - 2 * on_colour + own
    rest = x - background
    plain = (np.moveaxis(rest @ colour.T, -1, 0) - (rest * background).sum(-1)) / length
    lift = LIGHT * (1 - colour)
    light = 1 + ((lift * colour).sum(-1)[:, None, None] - np.moveaxis(background @ lift.T, -1, 0)) / length
    light = np.clip(light, 0.2, 1)
    # along a stripe the tone does not change, so the furthest pixel nearby in the row is the paint
    row = plain / np.clip(ndimage.maximum_filter1d(plain, 5, axis=-1), light, 1)
    masks = np.stack([p.mask for p in pieces])
    near = np.stack([_outer(m) for m in masks])
    return np.clip([plain, row, plain / light], 0, 1) * (near & ~(masks.any(0) & ~masks))


@dataclass(frozen=True)
class SceneDetector:
    """``detector(pictures) -> list[list[Instance]]``, best first; pictures are (B, 3, H, W) in [-1, 1].

    ``score`` is the least lead of the nearest shape over the next (0 = a tie, 1 = perfect), ``error`` the
    largest mean RGB distance from the named colour's paint.
    """

    score: float = 0.42
    error: float = 0.16

    def __call__(self, pictures: Tensor) -> list[list[Instance]]:
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"expected pictures (B, 3, H, W), got {tuple(pictures.shape)}")
        unit = ((pictures.detach().float().cpu() + 1) / 2).clamp(0, 1)
        shrink = max(1, min(unit.shape[-2:]) // 64)
        x = F.avg_pool2d(unit, shrink).permute(0, 2, 3, 1).numpy()
        background, clear = _planes(x)
        found = [self._look(p, b) if ok else [] for p, b, ok in zip(x, background, clear)]
        return [[_enlarge(i, shrink, pictures.shape[-2:]) for i in seen] for seen in found]

    def _look(self, x: np.ndarray, background: np.ndarray) -> list[Instance]:
        pieces = [p for p in _pieces(x, background) if p.error <= self.error]
        if not pieces:
            return []
        seen = _recognise(pieces, x, background)
        parts = [q for p, s in zip(pieces, seen) for q in ([p] if s.score >= self.score else _part(p))]
        if len(parts) > len(pieces):
            seen = _recognise(parts, x, background)
        return sorted((s for s in seen if s.score >= self.score), key=lambda s: -s.score)


def _enlarge(i: Instance, times: int, size: Sequence[int]) -> Instance:
    """From the pixels looked at to those of the picture."""
    assert i.mask is not None
    mask = F.interpolate(i.mask[None, None].float(), tuple(size))[0, 0].bool()
    return replace(i, x=i.x * times, y=i.y * times, radius=i.radius * times, mask=mask)


def _recognise(pieces: list[_Piece], x: np.ndarray, background: np.ndarray) -> list[Instance]:
    """What every piece resembles most, however little."""
    covers = _covers(pieces, x, background)
    n = len(pieces)
    guesses = name(covers.reshape(-1, *x.shape[:2]))
    out = []
    for i, piece in enumerate(pieces):
        texture = _pattern(piece)
        best = max(range(2 if texture == "plain" else 3), key=lambda k: guesses[k * n + i].score)
        if guesses[best * n + i].score < guesses[i].score + 0.05:
            best, texture = 0, "plain"
        named = guesses[best * n + i]
        mask = torch.from_numpy(covers[best, i] > 0.5)
        colour = NAMES[piece.colour]
        out.append(Instance(named.shape, colour, texture, named.x, named.y, named.radius, mask, named.score))
    return out
