"""Every rewrite changes nothing."""

import pytest
import torch
from torch import nn

from pocketdiffusion.export import rewrite
from pocketdiffusion.export.rewrite import ATTENTION, GELU, NORMS, rewritten
from pocketdiffusion.models import dit
from pocketdiffusion.nn import rope
from pocketdiffusion.nn.attention.full import Attention, Core
from pocketdiffusion.nn.mlp import GEGLU, MLP
from pocketdiffusion.nn.norm import LayerNorm, RMSNorm


def noisy(module):
    """No weight keeps a value that a mistake could hide behind."""
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.eval()


def same(a, b, *inputs, atol=1e-5):
    with torch.no_grad():
        torch.testing.assert_close(b(*inputs), a(*inputs), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rules", [{Core: rewrite.FoldedCore}, ATTENTION], ids=["core", "split"])
def test_self_attention(kv_heads, rules):
    attention = noisy(Attention(32, 4, 8, kv_heads, bias=True))
    table = rope.angles(rope.grid(3, 4), 8)
    x, mask = torch.randn(2, 12, 32), torch.arange(12)[None] < torch.tensor([[12], [5]])
    changed = rewritten(attention, rules)
    assert not any(isinstance(m, Core) for m in changed.modules())
    same(attention, changed, x, table)
    same(attention, changed, x, table, None, mask)
    same(attention, changed, x)


def test_cross_attention():
    attention = noisy(Attention(32, 4, 8, source=16))
    x, other, mask = (
        torch.randn(2, 6, 32),
        torch.randn(2, 9, 16),
        torch.arange(9)[None] < torch.tensor([[9], [2]]),
    )
    same(attention, rewritten(attention, ATTENTION), x, None, other, mask)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms(norm, affine):
    module = noisy(norm(24, affine=affine))
    changed = rewritten(nn.Sequential(module), NORMS)
    assert type(changed[0]) is not norm
    same(module, changed, torch.randn(2, 5, 24) * 3 + 1)


def test_group_norm():
    module = noisy(nn.GroupNorm(3, 12))
    same(module, rewritten(nn.Sequential(module), NORMS), torch.randn(2, 12, 5, 7) * 3 + 1)


@pytest.mark.parametrize("layer", [MLP(8, 24), GEGLU(8, 24)], ids=["mlp", "geglu"])
def test_feed_forward(layer):
    layer = noisy(layer)
    changed = rewritten(nn.Sequential(layer), GELU)
    assert type(changed[0]) is not type(layer)
    same(layer, changed, torch.randn(3, 5, 8) * 4)


def test_a_whole_model_and_the_original_stays():
    model = noisy(dit.DiT(dit.PRESETS["smoke"]))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.2)
    inputs = model.example()
    before = model(*inputs)
    changed = rewritten(model, {**ATTENTION, **NORMS, **GELU})
    kinds = {type(m) for m in changed.modules()}
    assert not kinds & {Attention, Core, RMSNorm, LayerNorm, MLP}
    same(model, changed, *inputs, atol=2e-5)
    assert torch.equal(model(*inputs), before)
