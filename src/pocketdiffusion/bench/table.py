"""Prints rows of results as aligned plain text or as markdown.

A row is a mapping from column to value; the first row decides the columns. Numbers stand to the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def short(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 3241000 -> "3.24 M", and "3.24 MB" with a unit."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # what rounds up to 1000 gets the next prefix
        if abs(number) >= 0.9995 * factor:
            return f"{number / factor:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _cells(rows: Rows) -> tuple[list[list[str]], list[bool], list[int]]:
    """Header and cells as strings, which columns are numbers, and their widths."""
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(rows[0])
    cells = [columns, *([cell(row.get(c)) for c in columns] for row in rows)]
    numeric = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    return cells, numeric, [max(len(line[i]) for line in cells) for i in range(len(columns))]


def _line(line: Sequence[str], numeric: Sequence[bool], widths: Sequence[int]) -> list[str]:
    return [c.rjust(w) if right else c.ljust(w) for c, right, w in zip(line, numeric, widths)]


def text(rows: Rows) -> str:
    cells, numeric, widths = _cells(rows)
    lines = [_line(line, numeric, widths) for line in cells]
    lines.insert(1, ["-" * w for w in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown(rows: Rows) -> str:
    """A pipe within a cell is escaped."""
    safe = [{k.replace("|", "\\|"): cell(v).replace("|", "\\|") for k, v in row.items()} for row in rows]
    cells, _, widths = _cells(safe)
    numeric = _cells(rows)[1]
    widths = [max(3, w) for w in widths]
    lines = [_line(line, numeric, widths) for line in cells]
    lines.insert(1, ["-" * (w - 1) + (":" if right else "-") for w, right in zip(widths, numeric)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
