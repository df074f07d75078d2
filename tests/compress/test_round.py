"""Weights on a grid."""

import pytest
import torch
from torch import nn

from pocketdiffusion.compress.bits import uniform
from pocketdiffusion.compress.round import codes, grid, group_of, layers, rounded, size


@pytest.mark.parametrize("shape", [(6, 64), (5, 24), (4, 3, 3, 3), (7, 1)])
@pytest.mark.parametrize("bits, worst", [(8, 1 / 254), (4, 1 / 8)])
def test_the_grid_is_near_and_stays_put(shape, bits, worst):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    near = grid(w, bits)
    assert near.shape == w.shape
    # at most half a step away (a whole one at 4 bits, where the side opposite the largest is cut short)
    assert ((near - w).abs().flatten(1).amax(1) <= worst * w.abs().flatten(1).amax(1) * (1 + 1e-5)).all()
    again = grid(near, bits)
    torch.testing.assert_close(again, near, rtol=1e-6, atol=0)
    assert torch.equal(codes(near, bits)[0], codes(w, bits)[0])
    if bits == 4:
        assert torch.equal(again, near)


def test_codes_use_their_range():
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    q8, s8 = codes(w, 8)
    q4, s4 = codes(w, 4)
    assert q8.abs().amax() == 127 and s8.shape == (16, 1)
    assert q4.min() == -8 and q4.max() <= 7 and s4.shape == (16, 2)


def test_zeros_stay_zero():
    for bits in (4, 8):
        assert torch.equal(grid(torch.zeros(3, 32), bits), torch.zeros(3, 32))


def test_groups_and_sizes():
    assert (group_of(64), group_of(24)) == (32, 24)
    w = torch.zeros(10, 64)
    assert size(w, 16) == 1280
    assert size(w, 8) == 640 + 4 * 10
    assert size(w, 4) == 320 + 4 * 20


def test_rounded_changes_what_is_named_and_nothing_else():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    out = rounded(net, {"0": 4, "2": 16})
    assert set(layers(net)) == {"0", "2"}
    changed = {k for k, v in out.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"0.weight", "2.weight"}
    assert torch.equal(out[2].weight, before["2.weight"].half().float())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match="'nope'"):
        rounded(net, {"nope": 8})


def test_bits_that_do_not_exist():
    with pytest.raises(ValueError, match="4 or 8"):
        codes(torch.zeros(2, 2), 3)


def test_layers_that_share_a_weight_count_once_and_get_the_same_bits():
    torch.manual_seed(0)
    net = nn.ModuleDict(
        {"shared": nn.Embedding(20, 32), "inner": nn.Embedding(20, 32), "out": nn.Linear(32, 4)}
    )
    net["inner"].weight = net["shared"].weight
    assert list(layers(net)) == ["shared", "out"]
    assert uniform(net, 16).bytes == 2 * (20 * 32 + 4 * 32)
    made = rounded(net, {"shared": 4, "out": 8})
    assert made["inner"].weight is made["shared"].weight
    assert torch.equal(made["inner"].weight, grid(net["shared"].weight, 4))
