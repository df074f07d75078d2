"""Line and bar charts and maps of squares as inline SVG, written by hand.

Text and axes take the colour of the page (currentColor), so a chart is at home on light and dark. Sizes are
in units of the view box, 460 wide: small enough that the text stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape

PALETTE = ("#3b7de0", "#e07a2f", "#2fa377", "#a35fd0", "#d24a5f", "#8a8f98")
WIDTH, HEIGHT = 460, 270
LETTER = 7.0  # width of a character, on average, at 13 units
BAR = 18  # thickness

Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) from at or below ``low`` to at or above ``high``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"cannot draw an axis from {low} to {high}")
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """Short: 0.25, 1200, 15k, 2.5M."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= factor:
            return f"{value / (1e3 if suffix == 'k' else factor):.4g}{suffix}"
    return f"{value:.4g}"


def label(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, strength: float = 0.15) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="{strength}"/>'


def svg(parts: Sequence[str], height: float, title: str) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
    style = 'font-size="13" font-family="system-ui, sans-serif" fill="currentColor"'
    return f'{head} aria-label="{escape(title)}" {style}>{"".join(parts)}</svg>'


def legend(names: Sequence[str], left: float) -> tuple[list[str], float]:
    """Swatches and names in as many lines as they need, from the top; and the height they take."""
    if len(names) < 2:
        return [], 0.0
    parts, x, y = [], left, 12.0
    for i, name in enumerate(names):
        width = 24 + LETTER * len(name)
        if x + width > WIDTH and x > left:
            x, y = left, y + 18
        colour = PALETTE[i % len(PALETTE)]
        parts.append(f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(label(x + 15, y, name))
        x += width
    return parts, y + 8


def lines(
    series: Mapping[str, Points],
    x: str = "",
    y: str = "",
    title: str = "chart",
    dashed: Collection[str] = (),
) -> str:
    """``series``: name -> points (x, y); ``x`` and ``y`` name the axes.

    Later lines lie over earlier ones: a ``dashed`` one shows what it lies on.
    """
    points = [p for line in series.values() for p in line]
    if not points:
        raise ValueError("a chart needs at least one point")
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    xs = ticks(first, last)
    if first < last:
        # the axis ends with the data and not at the next round number
        xs = [v for v in xs if v <= last + 1e-9 * (last - first)]
    else:
        last = xs[-1]
    ys = ticks(min(p[1] for p in points), max(p[1] for p in points))
    parts, top = legend(list(series), 4)
    top += 12 + (16 if y else 0)
    left = 14 + LETTER * max(len(number(v)) for v in ys)
    right, bottom = WIDTH - 16, HEIGHT - 24 - (18 if x else 0)

    def place(px: float, py: float) -> tuple[float, float]:
        across = (px - xs[0]) / (last - xs[0])
        return left + across * (right - left), bottom - (py - ys[0]) / (ys[-1] - ys[0]) * (bottom - top)

    for v in ys:
        level = place(xs[0], v)[1]
        parts += [rule(left, level, right, level), label(left - 7, level + 4.5, number(v), "end")]
    for v in xs:
        across = place(v, ys[0])[0]
        parts += [
            rule(across, bottom, across, bottom + 4, 0.5),
            label(across, bottom + 18, number(v), "middle"),
        ]
    parts.append(rule(left, bottom, right, bottom, 0.5))
    if y:
        parts.append(label(4, top - 14, y, extra=' opacity="0.7"'))
    if x:
        parts.append(label((left + right) / 2, HEIGHT - 6, x, "middle", ' opacity="0.7"'))
    for i, (name, line) in enumerate(series.items()):
        parts += stroke([place(*p) for p in line], PALETTE[i % len(PALETTE)], name in dashed)
    return svg(parts, HEIGHT, title)


def stroke(spots: Points, colour: str, dashed: bool = False) -> list[str]:
    """A line through the spots, which are marked when they are few."""
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in spots)
    style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"'
    style += ' stroke-dasharray="3 6"' if dashed else ""
    marks = [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in spots]
    return [f'<polyline points="{path}" {style}/>', *(marks if len(spots) <= 24 else [])]


def bars(series: Mapping[str, Mapping[str, float]], x: str = "", title: str = "chart") -> str:
    """``series``: name -> {category: value}; ``x`` names the axis. Horizontal, for long names."""
    categories = list(dict.fromkeys(c for values in series.values() for c in values))
    if not categories:
        raise ValueError("a chart needs at least one bar")
    every = [v for values in series.values() for v in values.values()]
    xs = ticks(min(0.0, *every), max(0.0, *every))
    parts, top = legend(list(series), 4)
    left = min(12 + LETTER * max(map(len, categories)), 0.45 * WIDTH)
    # room for the number at the end of the longest bar
    right = WIDTH - 8 - LETTER * max(len(number(v)) for v in every)
    step = BAR * len(series) + 10
    bottom = top + 6 + step * len(categories)

    def place(v: float) -> float:
        return left + (v - xs[0]) / (xs[-1] - xs[0]) * (right - left)

    for v in xs:
        parts += [
            rule(place(v), top + 4, place(v), bottom),
            label(place(v), bottom + 18, number(v), "middle"),
        ]
    for i, category in enumerate(categories):
        y = top + 11 + i * step
        parts.append(label(left - 8, y + BAR * len(series) / 2 + 3.5, category, "end"))
        for j, values in enumerate(series.values()):
            if category in values:
                parts += bar(place(0.0), place(values[category]), y + BAR * j, values[category], j)
    parts.append(rule(place(0.0), top + 4, place(0.0), bottom, 0.5))
    if x:
        parts.append(label((left + right) / 2, bottom + 38, x, "middle", ' opacity="0.7"'))
    return svg(parts, bottom + (46 if x else 26), title)


def heat(rows: Mapping[str, Sequence[float]], x: str = "", title: str = "map") -> str:
    """``rows``: name -> shares from 0 (empty) to 1 (full colour), a square each; ``x`` names the columns."""
    wide = max(map(len, rows.values()), default=0)
    if not wide:
        raise ValueError("a map needs at least one square")
    left = min(12 + LETTER * max(map(len, rows)), 0.45 * WIDTH)
    side = min(BAR, (WIDTH - left - 8) / wide)
    parts = []
    for i, (name, shares) in enumerate(rows.items()):
        y = 6 + i * side
        parts.append(label(left - 8, y + 0.7 * side, name, "end", f' font-size="{min(13.0, side):.1f}"'))
        for j, share in enumerate(shares):
            shape = (
                f'x="{left + j * side:.1f}" y="{y:.1f}" width="{0.9 * side:.1f}" height="{0.9 * side:.1f}"'
            )
            parts.append(f'<rect {shape} fill="{PALETTE[0]}" fill-opacity="{0.08 + 0.92 * share:.2f}"/>')
    bottom = 6 + len(rows) * side
    for j in range(0, wide, max(1, round(wide / 8))):
        parts.append(label(left + (j + 0.45) * side, bottom + 14, str(j + 1), "middle", ' font-size="11"'))
    if x:
        parts.append(label(left + wide * side / 2, bottom + 32, x, "middle", ' opacity="0.7"'))
    return svg(parts, bottom + (40 if x else 20), title)


def bar(zero: float, end: float, y: float, value: float, colour: int) -> list[str]:
    shape = f'x="{min(zero, end):.1f}" y="{y:.1f}" width="{abs(end - zero):.1f}" height="{BAR - 3}" rx="2"'
    # a negative bar has its number at its root, where there is room
    beside = label(max(zero, end) + 5, y + BAR - 6, number(value), extra=' font-size="12"')
    return [f'<rect {shape} fill="{PALETTE[colour % len(PALETTE)]}"/>', beside]
