"""Filling cost tables."""

from dataclasses import replace

import pytest
import torch

from pocketdiffusion.bench.costs import Measured, Runtime, eager, fill, rows
from pocketdiffusion.bench.table import text
from pocketdiffusion.compress.costs import Costs
from pocketdiffusion.compress.ops import blocks, branches, calls
from pocketdiffusion.models.dit import PRESETS, DiT

SMOKE = PRESETS["smoke"]


def counting():
    """A runtime whose milliseconds are weights; and the list of what it measured."""
    asked = []

    def measure(module, inputs):
        asked.append(type(module).__name__)
        module(*inputs)
        size = sum(p.numel() for p in module.parameters())
        return Measured(float(size), 4 * size, (size, size), False)

    return Runtime("here", "fp32", measure), asked


def test_each_op_is_measured_once_and_every_call_has_its_row():
    model = DiT(replace(SMOKE, depth=3, mlp=(128, 96, 128))).eval()
    runtime, asked = counting()
    table = fill(model, model.example(1), runtime)
    # two kinds of block and of mlp; self- and cross-attention are one class with other inputs
    assert sorted(asked) == ["Attention", "Attention", "Block", "Block", "DiT", "MLP", "MLP"]
    inputs = model.example(1)
    for call in calls(model, inputs, [*blocks(model), *branches(model)]):
        assert call.name in table(call.op, call.shapes).seen
    ms, size = table.total(calls(model, inputs, blocks(model)))
    assert ms == sum(p.numel() for p in model.blocks.parameters()) == size / 4
    assert "blocks.0.attn" in text(rows(table)) and "(the model)" in text(rows(table))


def test_chosen_names_of_any_module():
    runtime, asked = counting()
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    table = fill(model, (torch.zeros(2, 4),), runtime, ["*"])
    assert asked == ["Linear", "ReLU"]
    assert [e.seen for e in table.entries] == [("0", "2"), ("1",)]
    with pytest.raises(ValueError, match="Sequential lists no BLOCKS"):
        fill(model, (torch.zeros(2, 4),), runtime)


def test_eager_torch(tmp_path):
    model = DiT(SMOKE).eval()
    before = torch.get_num_threads()
    table = fill(model, model.example(1), eager(threads=1, runs=2), ["blocks.*", "blocks.*.mlp"])
    assert torch.get_num_threads() == before
    block, mlp = table.entries
    assert 0 < mlp.ms < block.ms and block.spread[0] <= block.ms <= block.spread[1]
    assert block.bytes == sum(p.nbytes for p in model.blocks[0].parameters())
    assert "torch" in block.device and block.device.endswith("1 thr") and block.precision == "fp32"
    table.save(tmp_path / "a.json")
    assert Costs.load(tmp_path / "a.json") == table
