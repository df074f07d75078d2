import pytest
import torch
from torch import nn

from pocketdiffusion.nn.norm import GroupNorm, LayerNorm, RMSNorm


def noisy(module):
    for p in module.parameters():
        torch.nn.init.normal_(p)
    return module


def test_rms_norm_is_its_formula():
    x, norm = 3 * torch.randn(2, 5, 8), noisy(RMSNorm(8))
    truth = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), truth)


def test_layer_norm_is_its_formula():
    x, norm = 3 * torch.randn(2, 5, 8) + 1, noisy(LayerNorm(8))
    centred = x - x.mean(-1, keepdim=True)
    truth = norm.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + norm.bias
    torch.testing.assert_close(norm(x), truth)


def test_without_weights():
    x = torch.randn(4, 8)
    for kind in (RMSNorm, LayerNorm):
        assert not list(kind(8, affine=False).parameters())
        torch.testing.assert_close(kind(8, affine=False)(x), kind(8)(x))


def test_statistics_are_fp32():
    """The squares of 300 overflow fp16; the norm does not."""
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    y = RMSNorm(8, affine=False)(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, torch.ones_like(y))


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_norm_is_exact_in_any_memory_format(offset):
    """Also where the mean is far from zero, which costs a difference of squares its digits."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 16, 9, 7) + offset
    wanted = nn.functional.group_norm(
        x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps
    ).float()
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        y = norm(given)
        torch.testing.assert_close(y, wanted, atol=2e-5, rtol=1e-4)
        assert y.is_contiguous() == given.is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    plain = x.clone().requires_grad_(True)
    for given in (last, plain):
        norm(given).square().sum().backward()
    torch.testing.assert_close(last.grad, plain.grad, atol=1e-3, rtol=1e-3)
