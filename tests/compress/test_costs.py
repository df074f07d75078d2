"""Cost tables: a file and back, what is refused, what is found."""

import json
from dataclasses import replace

import pytest
import torch

from pocketdiffusion.compress.costs import Costs, Entry, merged, taken
from pocketdiffusion.compress.ops import Shapes, blocks, branches, calls
from pocketdiffusion.models.dit import PRESETS, DiT

SMALL = Shapes(("1x8",), (("", "MLP"), ("up", "Linear weight=4x8")))
WIDE = Shapes(("1x8",), (("", "MLP"), ("up", "Linear weight=6x8")))


def entry(**changes):
    return replace(
        Entry("MLP", SMALL, "fp32", "phone", 2.0, 128, (1.5, 2.5), True, ("blocks.0.mlp",)), **changes
    )


@pytest.fixture
def table():
    return Costs((entry(), entry(shapes=WIDE, ms=3.0, bytes=192, spread=None, contended=False)))


def made_up(model, names):
    """One row per op, its price the number of its weights."""
    found = {(c.op, c.shapes): c for c in calls(model, model.example(2), names)}.values()
    sizes = [sum(p.numel() for p in c.module.parameters()) for c in found]
    return Costs(tuple(Entry(c.op, c.shapes, "fp32", "d", n / 1e3, 4 * n) for c, n in zip(found, sizes)))


def test_a_file_and_back(table, tmp_path):
    table.save(tmp_path / "new" / "costs.json")
    assert Costs.load(tmp_path / "new" / "costs.json") == table
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["costs.json"]


def test_lookup_tells_widths_apart_and_says_what_is_missing(table):
    assert table("MLP", SMALL).ms == 2.0 and table("MLP", WIDE).ms == 3.0
    with pytest.raises(ValueError, match=r"no row for Block in fp32 on phone; known: MLP in fp32 on phone"):
        table("Block", SMALL)
    with pytest.raises(ValueError, match=r"no row for MLP in int8"):
        table("MLP", SMALL, "int8")
    other = replace(WIDE, parts=(("", "MLP"), ("up", "Linear weight=5x8")))
    with pytest.raises(ValueError, match=r"no row for a MLP with up Linear weight=5x8: it was not measured"):
        table("MLP", other)
    with pytest.raises(ValueError, match=r"no row for MLP .* known: $"):
        Costs(())("MLP", SMALL)


def test_pruned_models_are_added_up_without_weights():
    config = PRESETS["smoke"]
    whole = DiT(config)
    names = [*blocks(whole), *branches(whole)]
    table = merged([made_up(DiT(config), names), made_up(DiT(replace(config, mlp=96)), names)])
    with torch.device("meta"):
        small = DiT(replace(config, depth=3, mlp=(96, 128, 96)))
    ms, size = table.total(calls(small, small.example(2, "meta"), blocks(small)))
    weights = sum(p.numel() for p in small.blocks.parameters())
    assert size == 4 * weights and ms == pytest.approx(weights / 1e3)
    with torch.device("meta"):
        unknown = DiT(replace(config, mlp=64))
    with pytest.raises(ValueError, match=r"mlp\.up Linear .*weight=64x64"):
        table.total(calls(unknown, unknown.example(2, "meta"), blocks(unknown)))


def test_merging(table):
    newer = Costs((entry(ms=9.0),))
    assert [e.ms for e in merged([table, newer]).entries] == [9.0, 3.0]
    other = Costs((entry(device="laptop", ms=1.0),))
    with pytest.raises(ValueError, match=r"different devices: laptop \| phone"):
        merged([table, other])
    both = merged([table, other], mixed=True)
    assert both("MLP", SMALL, device="laptop").ms == 1.0 and both("MLP", SMALL, device="phone").ms == 2.0
    with pytest.raises(ValueError, match="of several devices, name one of: laptop"):
        both("MLP", SMALL)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ms": -1}, r"entries\[1\]: 'ms' is -1, expected a positive number"),
        ({"ms": float("nan")}, r"'ms' is nan"),
        ({"ms": None}, r"'ms' is None"),
        ({"ms": True}, r"'ms' is True"),
        ({"bytes": 1.5}, r"'bytes' is 1.5, expected a whole number"),
        ({"inputs": "1x8"}, r"'inputs' is '1x8', expected a list of shapes"),
        ({"parts": [1]}, r"'parts' is \[1\]"),
        ({"spread": [1]}, r"'spread' is \[1\], expected two numbers"),
        ({"device": " "}, r"'device' is ' '"),
        ({"colour": 1}, r"entries\[1\]: unknown key 'colour'"),
    ],
)
def test_a_wrong_row_names_file_and_key(table, tmp_path, change, message):
    path = tmp_path / "costs.json"
    table.save(path)
    data = json.loads(path.read_text())
    data["entries"][1] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"costs\.json: .*" + message) as error:
        Costs.load(path)
    assert "\n" not in str(error.value)


def test_damaged_files(table, tmp_path):
    path = tmp_path / "costs.json"
    table.save(path)
    text = path.read_text()
    short, twice = json.loads(text), json.loads(text)
    del short["entries"][0]["op"]
    twice["entries"][1] = twice["entries"][0]
    damaged = {
        "not a readable table": text[:100],
        "expected a JSON object with 'format'": "[]",
        r"entries\[0\]: no 'op'": json.dumps(short),
        r"entries\[1\] \(MLP\) has the key of entries\[0\]": json.dumps(twice),
        r"entries\[0\]: expected a JSON object": json.dumps(short | {"entries": [7]}),
    }
    for message, content in damaged.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=r"costs\.json: " + message):
            Costs.load(path)
    with pytest.raises(ValueError, match=r"none\.json: not a readable table"):
        Costs.load(tmp_path / "none.json")


def test_times_from_elsewhere(table, tmp_path):
    path = tmp_path / "blocks.json"
    table.save(path)
    data = json.loads(path.read_text())
    for i, row in enumerate(data["entries"]):
        del row["device"]
        row |= {"file": f"{i}.onnx", "feeds": {"in0": [1, 8]}, "ms": 4}
    path.write_text(json.dumps(data))
    table = taken(path, "iPhone 16")
    assert table.devices == ["iPhone 16"] and table("MLP", WIDE).ms == 4
    data["entries"][1]["ms"] = None
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"blocks\.json: 1\.onnx: 'ms' is None, expected a positive number"):
        taken(path, "iPhone 16")
