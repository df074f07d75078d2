"""ASSA: branches against dense forms, blocks at the borders, compression, the gate."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketdiffusion.bench.cost import cost
from pocketdiffusion.export.rewrite import ATTENTION, rewritten
from pocketdiffusion.models.elastic_dit import PRESETS, normed
from pocketdiffusion.nn.attention.full import Attention, Core, NaiveCore
from pocketdiffusion.nn.attention.global_local import (
    Compress,
    GlobalLocal,
    gathered,
    looped,
    naive_local,
    raster,
    visible,
)
from pocketdiffusion.nn.norm import LayerNorm
from pocketdiffusion.nn.rope import rotate

WAYS = [gathered, looped]
each = pytest.mark.parametrize


def norm(dim, affine):
    return LayerNorm(dim, affine=affine, bias=False)


def made(noise=True, **changes):
    torch.manual_seed(0)
    layer = GlobalLocal(**{"dim": 24, "heads": 4, "head_dim": 8, "kv_heads": 2, "norm": norm, **changes})
    if noise:
        for p in layer.parameters():
            nn.init.normal_(p, std=0.3)
    return layer


def qkv(n, b=2):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(b, heads, n, 8, generator=g, requires_grad=True) for heads in (4, 2, 2)]


@each("way", WAYS)
@each("n, size, radius", [(48, 12, 1), (48, 12, 0), (48, 12, 3), (45, 12, 1), (20, 1, 1), (7, 12, 1)])
def test_local_attention_is_the_dense_mask(way, n, size, radius):
    """Outputs and gradients; the last block may be shorter than the others."""
    q, k, v = qkv(n)
    dense = naive_local(NaiveCore(), q, k, v, size, radius)
    weights = torch.randn_like(dense)
    wanted = torch.autograd.grad((dense * weights).sum(), (q, k, v))
    y = way(Core(), q, k, v, size, radius)
    torch.testing.assert_close(y, dense, atol=1e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad((y * weights).sum(), (q, k, v)), wanted):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@each("way", WAYS)
def test_a_wide_radius_is_full_attention(way):
    q, k, v = qkv(48)
    torch.testing.assert_close(way(Core(), q, k, v, 12, 3), NaiveCore()(q, k, v), atol=1e-5, rtol=1e-5)


@each("way", WAYS)
def test_no_radius_is_block_diagonal(way):
    q, k, v = qkv(48)
    y = way(Core(), q, k, v, 12, 0)
    for i in range(4):
        own = slice(12 * i, 12 * i + 12)
        alone = NaiveCore()(q[:, :, own], k[:, :, own], v[:, :, own])
        torch.testing.assert_close(y[:, :, own], alone, atol=1e-5, rtol=1e-5)


def test_who_sees_whom():
    assert torch.equal(visible(9, 1, 1), torch.ones(9, 9).tril(1).triu(-1).bool())  # a sliding window of 3
    for blocks, radius in ((8, 1), (16, 3)):
        seen = visible(64, 64 // blocks, radius)
        size = 64 // blocks
        per_block = [min(blocks - 1, b + radius) - max(0, b - radius) + 1 for b in range(blocks)]
        assert seen.sum(1).tolist() == [size * n for n in per_block for _ in range(size)]
        assert torch.equal(seen, seen.T) and not seen[0, (radius + 1) * size :].any()


@each("way", WAYS)
def test_nothing_comes_from_blocks_that_are_not_neighbours(way):
    q, k, v = qkv(48, 1)
    grad = torch.autograd.grad(way(Core(), q, k, v, 12, 1)[:, :, :12].sum(), v)[0]
    assert grad[:, :, :24].ne(0).all() and not grad[:, :, 24:].any()


@each("h, w", [(4, 6), (5, 6), (4, 7), (3, 3)])
def test_compression_begins_as_an_average(h, w):
    x = torch.randn(2, 3, h * w, 8)
    grid = F.pad(x.unflatten(2, (h, w)).movedim(-1, 2).flatten(0, 1), (0, w % 2, 0, h % 2), mode="replicate")
    wanted = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2).unflatten(0, (2, 3))
    torch.testing.assert_close(Compress(8)(x, h, w), wanted)


def test_the_global_branch_sees_averages_of_keys_and_values():
    layer = made(noise=False, see="global")
    x, ctx = torch.randn(2, 24, 24), raster(4, 6, 8)

    def heads(y, n):
        return y.unflatten(-1, (n, -1)).transpose(1, 2)

    def pooled(y):
        grid = y.unflatten(2, (4, 6)).movedim(-1, 2).flatten(0, 1)
        return F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2).unflatten(0, (2, 2))

    q = rotate(layer.norm_q(heads(layer.q(x), 4)), ctx.rope)
    k = pooled(rotate(layer.norm_k(heads(layer.k(x), 2)), ctx.rope))
    v = pooled(layer.norm_v(heads(layer.v(x), 2)))
    wanted = layer.out(NaiveCore()(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, ctx), wanted, atol=1e-5, rtol=1e-5)


@each("first", [True, False])
def test_the_gate_blends_per_head(first):
    layer, ctx = made(compress_first=first), raster(8, 6, 8)
    x = torch.randn(2, 48, 24)
    ends = {}
    for see in ("global", "local"):
        alone = made(see=see, compress_first=first)
        known = alone.state_dict()
        alone.load_state_dict({k: v for k, v in layer.state_dict().items() if k in known})
        ends[see] = alone(x, ctx)
    with torch.no_grad():
        layer.gate.weight.zero_()
        for bias, see in ((100.0, "global"), (-100.0, "local")):
            layer.gate.bias.fill_(bias)
            torch.testing.assert_close(layer(x, ctx), ends[see], atol=1e-5, rtol=1e-4)
        # each head for itself: through an output that keeps heads apart
        layer.out = nn.Identity()
        layer.gate.bias.copy_(torch.tensor([100.0, -100.0, 100.0, -100.0]))
        mixed = layer(x, ctx).unflatten(-1, (4, 8))
        layer.gate.bias.fill_(100.0)
        everywhere = layer(x, ctx).unflatten(-1, (4, 8))
    same = (mixed - everywhere).abs().amax((0, 1, 3)) < 1e-5
    assert same.tolist() == [True, False, True, False]


def test_the_gate_begins_at_one_half():
    layer, ctx = made(noise=False), raster(8, 6, 8)
    x = torch.randn(2, 48, 24)
    layer.out = nn.Identity()
    q = rotate(layer.norm_q(layer.q(x).unflatten(-1, (4, -1)).transpose(1, 2)), ctx.rope)
    k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (layer.k, layer.v))
    mean = (layer.everywhere(q, k, v, ctx) + layer.nearby(q, k, v, ctx)) / 2
    torch.testing.assert_close(layer(x, ctx), mean.transpose(1, 2).flatten(2))


def test_the_orders_of_rotation_differ_and_agree_without_it():
    x, ctx = torch.randn(2, 48, 24), raster(8, 6, 8)
    a, b = made(compress_first=True), made(compress_first=False)
    assert not torch.allclose(a(x, ctx), b(x, ctx))
    for layer in (a, b):
        layer.norm_q = layer.norm_k = layer.norm_v = nn.Identity()
    still = ctx._replace(rope=torch.stack([torch.ones(48, 4), torch.zeros(48, 4)]))
    still = still._replace(centres=still.rope[:, :12])
    torch.testing.assert_close(a(x, still), b(x, still))


@each("see", ["both", "global", "local"])
@each("first", [True, False])
def test_exporters_rotate_halves(see, first):
    layer, ctx = made(see=see, compress_first=first), raster(6, 5, 8)
    changed = rewritten(layer, ATTENTION)
    assert not any(isinstance(m, Core) for m in changed.modules())
    table = raster(6, 5, 8)
    x = torch.randn(2, 30, 24)
    torch.testing.assert_close(changed(x, table), layer(x, ctx), atol=1e-5, rtol=1e-4)


def test_multiply_accumulates_at_4096_tokens():
    """1,024 global and 736 local keys per query where full attention has 4,096."""
    c = PRESETS["small"]
    with torch.device("meta"):
        sparse = GlobalLocal(c.dim, 16, 64, 8, lambda d, affine: normed(c, d, affine))
        full = Attention(c.dim, 16, 64, 8)
        x, ctx = torch.empty(1, 4096, c.dim), raster(64, 64, 64, "meta")
    linear = 4096 * (2 * c.dim * c.dim + 2 * c.dim * 512)
    whole = cost(sparse, (x, ctx)).macs - linear
    found = whole - 4096 * c.dim * 16 - 2 * 4 * 64 * 512 * 1024  # the gate, and keys and values compressed
    dense = cost(full, (x, ctx.rope)).macs - linear
    assert dense == 2 * 4096 * 4096 * c.dim
    assert found / dense == pytest.approx((1024 + 736) / 4096, rel=1e-6)
    assert whole / dense == pytest.approx(0.439, abs=5e-4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="see 'far'"):
        made(see="far")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_one_call_on_a_gpu_is_the_loop():
    layer, x = made().cuda(), torch.randn(2, 48, 24, device="cuda")
    y = layer(x, raster(8, 6, 8, "cuda"))
    torch.testing.assert_close(y.cpu(), layer.cpu()(x.cpu(), raster(8, 6, 8)), atol=1e-4, rtol=1e-4)
