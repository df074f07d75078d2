from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from pocketdiffusion.nn.axes import find, keep_axes, width


@dataclass(frozen=True)
class Config:
    dim: int = 6
    depth: int = 2
    heads: int | tuple[int, ...] = 2
    head_dim: int = 2
    mlp: int | tuple[int, ...] = 4

    def of(self, value, i):
        return value[i] if isinstance(value, tuple) else value


class Toy(nn.Module):
    """Every kind of word: a name, a product with a number, a sum, a fixed size."""

    AXES: ClassVar = {
        "blocks.*.qkv.weight": "3*heads*head_dim dim",
        "blocks.*.out.weight": "dim heads*head_dim",
        "blocks.*.up.weight": "mlp dim+dim",
        "blocks.*.down.weight": "dim mlp",
        "table": "2 dim",
        "last.weight": "pixels dim",
        "last.bias": "pixels",
    }

    def __init__(self, config: Config):
        super().__init__()
        self.config, c = config, config
        self.blocks = nn.ModuleList()
        for i in range(c.depth):
            inner, mlp = c.of(c.heads, i) * c.head_dim, c.of(c.mlp, i)
            sizes = {
                "qkv": (c.dim, 3 * inner),
                "out": (inner, c.dim),
                "up": (2 * c.dim, mlp),
                "down": (mlp, c.dim),
            }
            self.blocks.append(nn.ModuleDict({k: nn.Linear(*s, bias=False) for k, s in sizes.items()}))
        self.table = nn.Parameter(torch.randn(2, c.dim))
        self.last = nn.Linear(c.dim, 5)

    def forward(self, x):
        for block in self.blocks:
            q, k, v = block["qkv"](x).chunk(3, dim=-1)
            y = x + block["out"](q * k + v)
            x = y + block["down"](block["up"](torch.cat([x, y], dim=-1)).relu())
        return self.last(x * self.table[0] + self.table[1])


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy(Config())


def test_find():
    assert find(Toy.AXES, "blocks.1.up.weight") == (["mlp", "dim+dim"], 1)
    assert find(Toy.AXES, "table") == (["2", "dim"], None)
    with pytest.raises(KeyError, match=r"blocks\.1\.up\.bias"):
        find(Toy.AXES, "blocks.1.up.bias")


def test_keeping_everything_is_the_identity(toy):
    same = keep_axes(toy, {"mlp": range(4), "heads": [0, 1], "dim": range(6), "head_dim": [0, 1]})
    assert same.config == toy.config
    for name, weight in toy.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])


def test_a_product_keeps_the_right_rows(toy):
    """Head 1 of q, k and v: rows 2, 3 of each third."""
    small = keep_axes(toy, {"heads": [1]})
    assert small.config.heads == 1
    rows = torch.tensor([2, 3, 6, 7, 10, 11])
    for before, after in zip(toy.blocks, small.blocks):
        assert torch.equal(after["qkv"].weight, before["qkv"].weight[rows])
        assert torch.equal(after["out"].weight, before["out"].weight[:, 2:4])


def test_a_sum_keeps_the_same_entries_of_every_term(toy):
    small = keep_axes(toy, {"dim": [4, 1]})
    assert small.config.dim == 2
    assert torch.equal(small.blocks[0]["up"].weight, toy.blocks[0]["up"].weight[:, [4, 1, 10, 7]])
    assert torch.equal(small.table, toy.table[:, [4, 1]])
    assert small.last.weight.shape == (5, 2)


def test_pruning_is_switching_off(toy):
    """A hidden unit or a head that contributes nothing can go without a trace."""
    for block in toy.blocks:
        nn.init.zeros_(block["down"].weight[:, 2])
        nn.init.zeros_(block["out"].weight[:, :2])
    small = keep_axes(toy, {"mlp": [0, 1, 3], "heads": [1]})
    x = torch.randn(7, 6)
    torch.testing.assert_close(small(x), toy(x))


def test_every_block_may_keep_its_own(toy):
    small = keep_axes(toy, {"mlp": [[0, 2, 3], [1]]})
    assert small.config.mlp == (3, 1)
    assert torch.equal(small.blocks[0]["up"].weight, toy.blocks[0]["up"].weight[[0, 2, 3]])
    assert torch.equal(small.blocks[1]["down"].weight, toy.blocks[1]["down"].weight[:, [1]])
    again = keep_axes(small, {"mlp": [[2], [0]]})
    assert torch.equal(again.blocks[0]["up"].weight, toy.blocks[0]["up"].weight[[3]])


@pytest.mark.parametrize("axis", ["pixels", "nothing", "depth"])
def test_an_axis_that_is_none_is_refused(toy, axis):
    """``pixels`` is fixed, and ``depth`` is a field of the config but no axis of a weight."""
    with pytest.raises(ValueError, match=f"Toy has no axis '{axis}'"):
        keep_axes(toy, {axis: [0]})


@dataclass(frozen=True)
class Wide:
    dims: tuple[int, ...] = (2, 3)


class Levels(nn.Module):
    AXES: ClassVar = {"up.weight": "dims.1 dims.0+dims.1", "up.bias": "2*dims.1"}

    def __init__(self, config: Wide):
        super().__init__()
        self.config = config
        self.up = nn.Linear(sum(config.dims), config.dims[1])
        self.up.bias = nn.Parameter(torch.randn(2 * config.dims[1]))


def test_a_number_names_an_entry_of_a_tuple():
    """The widths of a network of several levels, two of them side by side in one weight."""
    model = Levels(Wide())
    assert width(model.config, "dims.1", None) == 3
    small = keep_axes(model, {"dims": [[1], [2, 0]]})
    assert small.config == Wide((1, 2))
    assert torch.equal(small.up.weight, model.up.weight[[2, 0]][:, [1, 4, 2]])
    assert torch.equal(small.up.bias, model.up.bias[[2, 0, 5, 3]])


def test_an_entry_out_of_range_is_refused(toy):
    with pytest.raises((IndexError, RuntimeError)):
        keep_axes(toy, {"mlp": [4]})
