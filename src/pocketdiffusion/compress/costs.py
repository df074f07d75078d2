"""Cost tables: what a block or a branch takes on a device, in one JSON format.

    (op, shapes, precision, device) -> ms of one call, bytes of weights

An op is a class, its shapes are all else that decides the cost (ops.py). Pruning and search look up what is
not there yet, without weights:

    with torch.device("meta"):
        small = DiT(replace(config, depth=3, mlp=512))
    ms, size = table.total(calls(small, small.example(1, "meta"), blocks(small)))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from ..disk import renamed
from .ops import Call, Shapes

FORMAT = "pocketdiffusion costs 1"


class Key(NamedTuple):
    op: str
    shapes: Shapes
    precision: str
    device: str


@dataclass(frozen=True)
class Entry:
    op: str
    shapes: Shapes
    precision: str
    device: str  # and runtime: "iPhone 16, Core ML"
    ms: float
    bytes: int  # of weights as the runtime stores them: of a file that has little else, the whole file
    spread: tuple[float, float] | None = None  # p10 and p90 of ms
    contended: bool = False  # others were using the cores
    seen: tuple[str, ...] = ()  # names in the model that was measured; a note

    @property
    def key(self) -> Key:
        return Key(self.op, self.shapes, self.precision, self.device)

    def row(self) -> dict[str, Any]:
        """As it stands in the file."""
        row = asdict(self)
        shapes = row.pop("shapes")
        return {"op": row.pop("op"), "inputs": shapes["inputs"], "parts": dict(shapes["parts"]), **row}


@dataclass(frozen=True)
class Costs:
    entries: tuple[Entry, ...]

    @cached_property
    def rows(self) -> dict[Key, Entry]:
        return {e.key: e for e in self.entries}

    @property
    def devices(self) -> list[str]:
        return sorted({e.device for e in self.entries})

    def __call__(self, op: str, shapes: Shapes, precision: str = "fp32", device: str | None = None) -> Entry:
        """The row. ValueError says what the table has instead."""
        if device is None and len(self.devices) > 1:
            raise ValueError(f"the table is of several devices, name one of: {' | '.join(self.devices)}")
        device = device or (self.devices or [""])[0]
        if found := self.rows.get(Key(op, shapes, precision, device)):
            return found
        near = [e for e in self.entries if (e.op, e.precision, e.device) == (op, precision, device)]
        if not near:
            known = sorted({f"{e.op} in {e.precision} on {e.device}" for e in self.entries})
            raise ValueError(
                f"no row for {op} in {precision} on {device or 'any device'}; known: {', '.join(known)}"
            )
        apart = min((shapes.differences(e.shapes) for e in near), key=len)
        raise ValueError(
            f"no row for a {op} with {'; '.join(apart[:3]) or 'fewer parts'}: it was not measured"
        )

    def total(
        self, found: Iterable[Call], precision: str = "fp32", device: str | None = None
    ) -> tuple[float, int]:
        """ms of all the calls together, and bytes of weights; a module that is called twice has them once."""
        ms, sizes = 0.0, {}
        for call in found:
            entry = self(call.op, call.shapes, precision, device)
            ms += entry.ms
            sizes[call.name] = entry.bytes
        return ms, sum(sizes.values())

    def save(self, path: Path) -> None:
        with renamed(path) as temporary:
            rows = [e.row() for e in self.entries]
            temporary.write_text(json.dumps({"format": FORMAT, "entries": rows}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Costs:
        """ValueError names the file and the key that is wrong."""
        entries = tuple(parsed(row, f"{path}: entries[{i}]") for i, row in enumerate(listed(path)))
        return unique(entries, path)


def merged(tables: Sequence[Costs], mixed: bool = False) -> Costs:
    """All rows; of equal keys the last table's. Tables of different devices only when ``mixed``."""
    devices = sorted({d for table in tables for d in table.devices})
    if len(devices) > 1 and not mixed:
        raise ValueError(f"these tables are of different devices: {' | '.join(devices)}")
    return Costs(tuple({e.key: e for table in tables for e in table.entries}.values()))


def taken(path: Path, device: str) -> Costs:
    """A list of exported blocks in which someone filled in what ``device`` took for each: ms by hand."""
    entries = []
    for row in listed(path):
        row = dict(row) if isinstance(row, dict) else {}
        file = row.pop("file", "a block without file")
        row.pop("feeds", None)
        entries.append(parsed(row | {"device": device}, f"{path}: {file}"))
    return unique(tuple(entries), path)


def listed(path: Path) -> list[Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable table of costs ({error})") from None
    if (
        not isinstance(data, dict)
        or data.get("format") != FORMAT
        or not isinstance(data.get("entries"), list)
    ):
        raise ValueError(f"{path}: expected a JSON object with 'format': {FORMAT!r} and a list 'entries'")
    return data["entries"]


def words(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(word, str) for word in x)


def number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < inf


# key -> (what it must be, in words)
CHECKS: dict[str, tuple[Any, str]] = {
    "op": (lambda x: isinstance(x, str) and x, "the name of a class"),
    "inputs": (words, "a list of shapes"),
    "parts": (lambda x: isinstance(x, dict) and words([*x.values()]), "an object of strings"),
    "precision": (lambda x: isinstance(x, str) and x, "a name"),
    "device": (lambda x: isinstance(x, str) and x.strip(), "a name"),
    "ms": (number, "a positive number"),
    "bytes": (lambda x: type(x) is int and x >= 0, "a whole number"),
    "spread": (
        lambda x: x is None or (isinstance(x, list) and len(x) == 2 and all(map(number, x))),
        "two numbers",
    ),
    "contended": (lambda x: isinstance(x, bool), "true or false"),
    "seen": (words, "a list of names"),
}
OPTIONAL: dict[str, Any] = {"spread": None, "contended": False, "seen": []}


def parsed(row: Any, where: str) -> Entry:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object")
    row = OPTIONAL | row
    if odd := sorted(set(row) ^ set(CHECKS)):
        raise ValueError(f"{where}: {'unknown key' if odd[0] in row else 'no'} {odd[0]!r}")
    for key, (good, expected) in CHECKS.items():
        if not good(row[key]):
            raise ValueError(f"{where}: {key!r} is {row[key]!r}, expected {expected}")
    shapes = Shapes(tuple(row.pop("inputs")), tuple(row.pop("parts").items()))
    spread = row.pop("spread")
    return Entry(
        shapes=shapes, spread=tuple(spread) if spread else None, **row | {"seen": tuple(row["seen"])}
    )


def unique(entries: tuple[Entry, ...], path: Path) -> Costs:
    seen: dict[Key, int] = {}
    for i, entry in enumerate(entries):
        if (first := seen.setdefault(entry.key, i)) != i:
            raise ValueError(f"{path}: entries[{i}] ({entry.op}) has the key of entries[{first}]")
    return Costs(entries)
