"""Names a silhouette: coverage in a standard frame, compared with rendered templates.

A silhouette is a map of coverage, 0 to 1. Its centroid goes to the middle of the frame and its area to 1,
which leaves the outline and the holes. Two standard silhouettes lie apart by one minus their soft
intersection over union,

    d(a, b) = 1 - sum min(a, b) / sum max(a, b)

and the score of a name is how clearly it beats the next: 1 - d(nearest shape) / d(second nearest shape), near
1 for what the renderer draws and near 0 for a blob that might be two things or is none.

Templates come from the renderer, through the same standardisation, at several radii, tilts and sub-pixel
places.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from ..data.render import Thing, layers
from ..data.shapes import SHAPES

FRAME = 24  # cells along a side of the standard frame
REACH = 1.1  # from its middle to its sides, in square roots of the area; a star's tips lie at 0.9
RADII = (4.0, 6.0, 8.0, 11.0, 15.0)  # pixels
TILTS = (-0.14, -0.07, 0.0, 0.07, 0.14)  # radians
CANVAS = 44  # pixels, room for the largest radius


class Standard(NamedTuple):
    frames: np.ndarray  # (N, FRAME * FRAME)
    centroid: np.ndarray  # (N, 2) x, y in pixels
    unit: np.ndarray  # (N,) square root of the area


class Named(NamedTuple):
    shape: str
    score: float
    x: float  # centre of the object, which is not its centroid for a triangle
    y: float
    radius: float


def standardise(cover: np.ndarray) -> Standard:
    """Coverage (N, H, W) moved and scaled to the standard frame by bilinear sampling; of nothing, nothing."""
    n, h, w = cover.shape
    area = np.maximum(cover.sum((1, 2)), 1e-6)
    cx = cover.sum(1) @ np.arange(w) / area
    cy = cover.sum(2) @ np.arange(h) / area
    unit = np.sqrt(area)
    cells = ((np.arange(FRAME) + 0.5) / FRAME * 2 - 1) * REACH
    # one empty pixel all round, and everything further out falls on it
    padded = np.pad(cover, ((0, 0), (1, 1), (1, 1)))
    gx = np.clip(cx[:, None] + unit[:, None] * cells + 1, 0, w + 0.999)[:, None, :]
    gy = np.clip(cy[:, None] + unit[:, None] * cells + 1, 0, h + 0.999)[:, :, None]
    x0, y0 = gx.astype(int), gy.astype(int)
    fx, fy = (gx - x0).astype(np.float32), (gy - y0).astype(np.float32)
    row = np.arange(n)[:, None, None]
    top = padded[row, y0, x0] * (1 - fx) + padded[row, y0, x0 + 1] * fx
    bottom = padded[row, y0 + 1, x0] * (1 - fx) + padded[row, y0 + 1, x0 + 1] * fx
    frames = top * (1 - fy) + bottom * fy
    return Standard(frames.reshape(n, -1), np.stack([cx + 0.5, cy + 0.5], 1), unit)


class _Bank(NamedTuple):
    frames: np.ndarray  # (M, FRAME * FRAME)
    energy: np.ndarray  # (M,)
    offset: np.ndarray  # (M, 2) from centroid to centre, in units
    radius: np.ndarray  # (M,) in units


@lru_cache(maxsize=1)
def _bank() -> _Bank:
    middle = CANVAS / 2
    poses = list(product(SHAPES, RADII, TILTS, (0.0, 0.5), (0.0, 0.5)))
    things = [
        Thing(shape, "black", (middle + dx) / CANVAS, (middle + dy) / CANVAS, r / CANVAS, angle=angle)
        for shape, r, angle, dx, dy in poses
    ]
    cover = layers(things, CANVAS, CANVAS)[1].numpy()
    standard = standardise(cover)
    centre = np.array([(middle + dx, middle + dy) for *_, dx, dy in poses])
    return _Bank(
        standard.frames,
        np.square(standard.frames).sum(1),
        (centre - standard.centroid) / standard.unit[:, None],
        np.array([p[1] for p in poses]) / standard.unit,
    )


def name(cover: np.ndarray) -> list[Named]:
    """What every silhouette (N, H, W) resembles most; an empty one nothing, with a score of 0."""
    bank, own = _bank(), standardise(cover)
    n, kinds = len(cover), len(SHAPES)
    # the best pose of every shape by a product, which is quick; then the exact distance of those few
    cross = own.frames @ bank.frames.T
    alike = cross / (np.square(own.frames).sum(1)[:, None] + bank.energy - cross)
    poses = alike.reshape(n, kinds, -1).argmax(2) + np.arange(kinds) * (alike.shape[1] // kinds)
    a, b = own.frames[:, None], bank.frames[poses]
    both = np.minimum(a, b).sum(2)
    apart = 1 - both / (a.sum(2) + b.sum(2) - both)
    order, row = apart.argsort(1), np.arange(n)
    score = 1 - apart[row, order[:, 0]] / apart[row, order[:, 1]]
    best = poses[row, order[:, 0]]
    centre = own.centroid + own.unit[:, None] * bank.offset[best]
    radius = own.unit * bank.radius[best]
    shapes = [list(SHAPES)[i] for i in order[:, 0]]
    return [Named(k, *map(float, v)) for k, *v in zip(shapes, score, *centre.T, radius)]
