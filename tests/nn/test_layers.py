"""Time embedding, modulation, feed-forward and convolution: formulas, shapes and counts."""

import math

import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.nn.conv import ResBlock, SeparableConv
from pocketdiffusion.nn.mlp import GEGLU, MLP
from pocketdiffusion.nn.modulation import SharedModulation, Table, modulate
from pocketdiffusion.nn.norm import LayerNorm
from pocketdiffusion.nn.time import TimeEmbedding, sinusoid


def size(module):
    return sum(p.numel() for p in module.parameters())


def test_sinusoid_is_its_formula():
    y = sinusoid(torch.tensor([0.25]), 6)[0]
    angle = [250.0 * 10000 ** (-2 * i / 6) for i in range(3)]
    truth = [math.cos(a) for a in angle] + [math.sin(a) for a in angle]
    torch.testing.assert_close(y, torch.tensor(truth), atol=1e-4, rtol=0)


def test_time_embedding_takes_a_level_per_frame():
    embed, t = TimeEmbedding(16, 32), torch.rand(2, 5)
    assert embed(t).shape == (2, 5, 16)
    torch.testing.assert_close(embed(t)[1, 3], embed(t[1, 3:4])[0])


def test_near_levels_are_told_apart():
    a, b = sinusoid(torch.tensor([0.500, 0.501]), 256)
    assert (a - b).norm() > 0.1


def test_modulation_starts_at_the_tables():
    """SharedModulation is zero at the start: (shift, scale, gate) x 2 come from the block's table alone."""
    shared, table = SharedModulation(8), Table(8)
    parts = table(shared(torch.randn(3, 8)))
    assert len(parts) == 6
    for i, p in enumerate(parts):
        assert p.shape == (3, 1, 8)
        assert torch.equal(p, table.weight[i].expand(3, 1, 8))


def test_modulation_is_its_formula():
    shared, table, temb = SharedModulation(8, 2), Table(8, 2), torch.randn(3, 8)
    torch.nn.init.normal_(shared.proj.weight)
    truth = shared.proj(F.silu(temb)).view(3, 2, 8) + table.weight
    torch.testing.assert_close(torch.cat(table(shared(temb)), dim=1), truth)


def test_zero_gates_are_the_identity():
    shared, table, branch, norm = SharedModulation(8, 3), Table(8, 3), MLP(8, 16), LayerNorm(8, affine=False)
    torch.nn.init.zeros_(table.weight)
    x = torch.randn(2, 5, 8)
    shift, scale, gate = table(shared(torch.randn(2, 8)))
    assert torch.equal(x + gate * branch(modulate(norm(x), shift, scale)), x)


def test_mlp():
    x, mlp = torch.randn(2, 3, 8), MLP(8, 20, 5)
    assert mlp(x).shape == (2, 3, 5)
    assert MLP(8, 20)(x).shape == x.shape
    assert size(mlp) == 8 * 20 + 20 + 20 * 5 + 5


def test_geglu():
    x, layer = torch.randn(2, 3, 8), GEGLU(8, 20)
    gate = F.gelu(x @ layer.gate.weight.T + layer.gate.bias, approximate="tanh")
    truth = layer.down(gate * layer.up(x))
    torch.testing.assert_close(layer(x), truth)
    assert size(layer) == 2 * (8 * 20 + 20) + 20 * 8 + 8


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_separable_conv(kernel, stride):
    layer = SeparableConv(4, 6, kernel, stride)
    assert layer(torch.randn(2, 4, 8, 8)).shape == (2, 6, 8 // stride, 8 // stride)
    assert size(layer) == 4 * kernel**2 + 4 + 4 * 6


def test_separable_conv_is_a_dense_conv_of_rank_one():
    layer, x = SeparableConv(4, 6), torch.randn(1, 4, 8, 8)
    dense = layer.pointwise.weight * layer.depthwise.weight.transpose(0, 1)  # (6, 4, 3, 3)
    bias = layer.pointwise.weight[:, :, 0, 0] @ layer.depthwise.bias
    torch.testing.assert_close(layer(x), F.conv2d(x, dense, bias, padding=1), atol=1e-5, rtol=1e-5)


def test_res_block():
    x = torch.randn(2, 8, 4, 4)
    wider, same = ResBlock(8, 16, groups=4), ResBlock(8, 8, groups=4)
    assert wider(x).shape == (2, 16, 4, 4)
    torch.nn.init.zeros_(same.conv2.weight)
    torch.nn.init.zeros_(same.conv2.bias)
    assert torch.equal(same(x), x)
