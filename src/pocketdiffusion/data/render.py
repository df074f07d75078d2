"""Draws scenes: things -> pixels and visible masks, in batch, on any device.

Positions are fractions of the picture's width and height, radii of its shorter side, so a scene can be drawn
at any resolution. Things are painted in order; coverage = clamp(1/2 - signed distance in pixels, 0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shapes import BACKDROPS, COLOURS, LIGHT, SHAPES, texture


@dataclass(frozen=True)
class Thing:
    """One object. ``x``, ``y``: centre as a fraction of the picture; ``radius``: of its shorter side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    texture: str = "plain"
    angle: float = 0.0  # radians
    opacity: float = 1.0


@dataclass(frozen=True)
class Background:
    kind: str = "plain"  # plain | gradient | noise
    colour: str = "white"
    second: str = "white"  # the far end of a gradient
    angle: float = 0.0  # radians
    seed: int = 0  # of the noise


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: Background = Background()
    caption: str = ""


def backgrounds(backs: Sequence[Background], h: int, w: int, device: torch.device | str = "cpu") -> Tensor:
    """(B, 3, H, W) in [0, 1]."""

    def colours(names: list[str]) -> Tensor:
        return torch.tensor([BACKDROPS[n] for n in names], device=device)[:, :, None, None]

    a, b = colours([s.colour for s in backs]), colours([s.second for s in backs])
    angle = torch.tensor([s.angle for s in backs], device=device)[:, None, None]
    gy, gx = torch.linspace(-1, 1, h, device=device)[:, None], torch.linspace(-1, 1, w, device=device)
    ramp = (0.5 + 0.36 * (gx * angle.cos() + gy * angle.sin())).clamp(0, 1)[:, None]
    smooth = torch.tensor([s.kind == "gradient" for s in backs], device=device)[:, None, None, None]
    out = torch.where(smooth, a + (b - a) * ramp, a.expand(-1, -1, h, w)).contiguous()
    for i, s in enumerate(backs):
        if s.kind == "noise":
            # drawn on the CPU, so that a seed means the same picture on every device
            grain = torch.randn(3, h, w, generator=torch.Generator().manual_seed(s.seed))
            out[i] += 0.06 * grain.to(device)
    return out.clamp(0, 1)


def layers(
    things: Sequence[Thing], h: int, w: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Paint (N, 3, H, W) and coverage (N, H, W) of every thing on its own."""
    side = min(h, w)
    geometry = torch.tensor(
        [(t.x * w, t.y * h, t.radius * side, t.angle, t.opacity) for t in things], device=device
    )
    cx, cy, r, angle, opacity = geometry[:, :, None, None].unbind(1)
    gx = torch.arange(w, device=device) + 0.5 - cx
    gy = (torch.arange(h, device=device) + 0.5)[:, None] - cy
    cos, sin = angle.cos() / r, angle.sin() / r
    x, y = gx * cos + gy * sin, gy * cos - gx * sin  # (N, H, W), the radius is 1
    distance, second = torch.empty_like(x), torch.zeros_like(x)
    # stripes of at least 5 pixels at 64, so that an f4 autoencoder can keep them
    period = (0.6 * r).clamp(min=5 / 64 * side) / r
    for name, sdf in SHAPES.items():
        if rows := [i for i, t in enumerate(things) if t.shape == name]:
            distance[rows] = sdf(x[rows], y[rows])
    for name in ("striped", "dotted"):
        if rows := [i for i, t in enumerate(things) if t.texture == name]:
            second[rows] = texture(name, x[rows], y[rows], period[rows])
    base = torch.tensor([COLOURS[t.colour] for t in things], device=device)[:, :, None, None]
    paint = base + LIGHT * (1 - base) * second[:, None]
    return paint, (0.5 - distance * r).clamp(0, 1) * opacity


def draw(
    scenes: Sequence[Scene], size: int | tuple[int, int] = 64, device: torch.device | str = "cpu"
) -> tuple[Tensor, list[Tensor]]:
    """Pictures (B, 3, H, W) in [-1, 1], and per picture the visible masks (N_i, H, W) of its things."""
    h, w = (size, size) if isinstance(size, int) else size
    canvas = backgrounds([s.background for s in scenes], h, w, device)
    masks = [torch.zeros(len(s.things), h, w, dtype=torch.bool, device=device) for s in scenes]
    for slot in range(max((len(s.things) for s in scenes), default=0)):
        rows = [i for i, s in enumerate(scenes) if slot < len(s.things)]
        paint, cover = layers([scenes[i].things[slot] for i in rows], h, w, device)
        canvas[rows] = canvas[rows].lerp(paint, cover[:, None])
        for i, inside in zip(rows, cover > 0.5):
            masks[i][:slot] &= ~inside
            masks[i][slot] = inside
    return canvas * 2 - 1, masks
