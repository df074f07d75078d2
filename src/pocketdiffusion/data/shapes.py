"""The vocabulary of the scenes world: shapes as signed distances, colours, textures.

A shape is a function of object coordinates (x right, y down, the object's radius is 1) and negative inside.
Distances are exact near the edge, which is all that anti-aliasing needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

RGB = tuple[float, float, float]


def circle(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt() - 0.92


def square(x: Tensor, y: Tensor) -> Tensor:
    return x.abs().maximum(y.abs()) - 0.82


def triangle(x: Tensor, y: Tensor) -> Tensor:
    return (0.876 * x.abs() - 0.482 * y - 0.482).maximum(y - 0.78)


def diamond(x: Tensor, y: Tensor) -> Tensor:
    return 0.8 * x.abs() + 0.6 * y.abs() - 0.6


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five points, inner radius 0.42: the angle is folded into half a point, then one edge decides."""
    sector = 2 * math.pi / 5
    angle = (x.atan2(-y).remainder(sector) - sector / 2).abs()
    r = (x.square() + y.square()).sqrt()
    px, py = r * angle.cos(), r * angle.sin()
    # the edge from the inner corner (0.42, 0) to the tip at angle sector / 2
    tx, ty = math.cos(sector / 2), math.sin(sector / 2)
    ex, ey = tx - 0.42, ty
    n = math.hypot(ex, ey)
    return ((px - 0.42) * ey - py * ex) / n


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Two discs over a corner (the exact distance is not needed below the edge)."""
    ax, up = x.abs() / 1.55, (0.92 - y) / 1.55
    lobe = ((ax - 0.25).square() + (up - 0.75).square()).sqrt() - 0.35355
    diag = 0.5 * (ax + up).clamp(min=0)
    side = ((ax - diag).square() + (up - diag).square()).sqrt() * (ax - up).sign()
    return lobe.where(ax + up > 1, side) * 1.55


def cross(x: Tensor, y: Tensor) -> Tensor:
    a, b = x.abs(), y.abs()
    return (a - 0.95).maximum(b - 0.34).minimum((b - 0.95).maximum(a - 0.34))


def ring(x: Tensor, y: Tensor) -> Tensor:
    return ((x.square() + y.square()).sqrt() - 0.70).abs() - 0.25


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "diamond": diamond,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
}

COLOURS: dict[str, RGB] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (1.00, 0.54, 0.04),
    "yellow": (0.98, 0.86, 0.08),
    "green": (0.12, 0.62, 0.22),
    "cyan": (0.08, 0.76, 0.84),
    "blue": (0.12, 0.28, 0.86),
    "purple": (0.52, 0.16, 0.72),
    "pink": (1.00, 0.40, 0.70),
    "brown": (0.45, 0.26, 0.12),
    "black": (0.08, 0.08, 0.09),
}

# Light and unsaturated, so that every colour above stands out on every one of them.
BACKDROPS: dict[str, RGB] = {
    "white": (0.97, 0.97, 0.97),
    "grey": (0.80, 0.80, 0.81),
    "beige": (0.94, 0.90, 0.82),
    "pale blue": (0.80, 0.87, 0.94),
    "pale green": (0.83, 0.91, 0.83),
    "lavender": (0.88, 0.85, 0.94),
}

TEXTURES = ("plain", "striped", "dotted")
KINDS_OF_BACKGROUND = ("plain", "gradient", "noise")
LIGHT = 0.55  # how far towards white the second tone of a texture lies


def texture(kind: str, x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    """Where the second tone shows, 0 to 1, in object coordinates; ``period`` in the same units."""
    if kind == "striped":
        phase = (y / period).remainder(1.0)
        return (2.5 * (0.2 - (phase - 0.5).abs()) / 0.2 + 0.5).clamp(0, 1)
    if kind == "dotted":
        px, py = (x / period).remainder(1.0) - 0.5, (y / period).remainder(1.0) - 0.5
        return (6.0 * (0.28 - (px.square() + py.square()).sqrt()) + 0.5).clamp(0, 1)
    return x.new_zeros(()).expand_as(x)
