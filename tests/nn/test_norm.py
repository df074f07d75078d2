import torch

from pocketdiffusion.nn.norm import LayerNorm, RMSNorm


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
