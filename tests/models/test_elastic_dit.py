"""ElasticDiT: counts, stages that change nothing, skips, other grids."""

from dataclasses import replace

import pytest
import torch

from pocketdiffusion.bench.cost import cost
from pocketdiffusion.models import elastic_dit
from pocketdiffusion.models.elastic_dit import PRESETS, ElasticDiT, count
from pocketdiffusion.nn.merge import Fuse, Merge, Unmerge
from pocketdiffusion.types import Cond

SMOKE = PRESETS["smoke"]


@pytest.mark.parametrize(
    "preset, millions, gigas",
    [
        ("tiny", 255.647, 896.723),
        ("small", 425.234, 1479.041),
        ("full", 1587.607, 5237.896),
        ("imagenet", 399.544, None),
    ],
)
def test_sizes_of_the_specification(preset, millions, gigas):
    """A reconstruction: the numbers check the arithmetic, not the paper."""
    c = PRESETS[preset]
    with torch.device("meta"):
        model = ElasticDiT(c)
    assert sum(p.numel() for p in model.parameters()) == count(c)
    assert count(c) / 1e6 == pytest.approx(millions, abs=6e-4)
    if gigas:
        x = torch.empty(1, 16, 128, 128, device="meta")
        tokens = torch.empty(1, 205, c.text, device="meta")
        cond = Cond(tokens, torch.ones(1, 205, dtype=torch.bool, device="meta"))
        found = cost(model, (x, torch.empty(1, device="meta"), cond)).macs
        # what the specification leaves out: the time, its modulation
        found -= 256 * c.dim + 7 * c.dim**2
        assert found / 1e9 == pytest.approx(gigas, abs=6e-4)


def test_widths_are_nested():
    small, tiny, full = (PRESETS[name] for name in ("small", "tiny", "full"))
    assert (tiny.dim, small.dim, full.dim) == (768, 1024, 2048)
    assert (tiny.heads, small.heads, full.heads) == (12, 16, 32)
    assert (tiny.kv_heads, small.kv_heads, full.kv_heads) == (6, 8, 16)
    assert {c.cross_kv_heads for c in (tiny, small, full)} == {4}
    assert full.mlp[0] == 8192 and full.mlp[8] == 6144 and full.mlp[18] == 8192


def test_merging_and_back():
    """Means and copies are the identity on maps that are constant over each cell."""
    cells = torch.randn(2, 3, 1, 4, 1, 5)
    x = cells.expand(2, 3, 2, 4, 2, 5).reshape(2, 48, 5)
    merged = Merge(5)(x, 6, 8)
    torch.testing.assert_close(merged, cells.reshape(2, 12, 5))
    torch.testing.assert_close(Unmerge(5)(merged, 6, 8), x)


def test_space_to_depth_and_back_on_any_map():
    """With weights that keep all four values of a cell apart."""
    x = torch.randn(2, 48, 5)
    merge, unmerge = Merge(5), Unmerge(5)
    merge.weight, unmerge.weight = (torch.nn.Parameter(torch.eye(20)) for _ in range(2))
    merge.bias = torch.nn.Parameter(torch.zeros(20))
    torch.testing.assert_close(unmerge(merge(x, 6, 8), 6, 8), x)


def test_fusion_begins_as_the_identity():
    x = torch.randn(2, 6, 5)
    assert torch.equal(Fuse(5)(x, torch.randn(2, 6, 5)), x)


def noisy(config, std=0.2):
    torch.manual_seed(0)
    model = ElasticDiT(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


@pytest.mark.parametrize("depth, skips", [(4, True), (5, True), (5, False)])
def test_middle_meets_its_mirror_image(depth, skips):
    """With fusions that read only what is kept, the last block of Middle sees the output of the first."""
    config = replace(SMOKE, stages=(1, depth, 1), skips=skips)
    model = noisy(config)
    assert len(model.fuse) == (depth // 2 if skips else 0)
    with torch.no_grad():
        for fuse in model.fuse:
            fuse.weight.copy_(torch.cat([torch.zeros(32, 32), torch.eye(32)], 1))
    seen = {}
    for i in config.middle:
        model.blocks[i].register_forward_hook(lambda _, x, y, i=i: seen.update({i: (x[0], y)}))
    with torch.no_grad():
        model(*model.example())
    first, last = config.middle[0], config.middle[-1]
    assert torch.equal(seen[last][0], seen[first][1]) == skips
    assert torch.equal(seen[last - 1][0], seen[first + 1][1]) == (skips and depth > 3)


@pytest.mark.parametrize("shape", [(8, 8), (10, 4), (6, 14)])
@pytest.mark.parametrize("attention", elastic_dit.ATTENTION)
def test_any_grid_with_even_sides(shape, attention):
    model = noisy(replace(SMOKE, attention=attention, patch=1, rows=4))
    _, t, cond = model.example()
    with torch.no_grad():
        y = model(torch.randn(2, 4, *shape), t, cond)
    assert y.shape == (2, 4, *shape) and y.isfinite().all()


def test_without_merging_any_grid_at_all():
    model = noisy(replace(SMOKE, stages=(2,), patch=1))
    _, t, cond = model.example()
    with torch.no_grad():
        assert model(torch.randn(2, 4, 5, 7), t, cond).shape == (2, 4, 5, 7)


def test_far_places_and_near_ones_both_matter():
    """A change in one corner reaches the other, through a single sparse block too."""
    model = noisy(replace(SMOKE, stages=(1,), patch=1), std=0.4)
    x, t, cond = model.example()
    changed = x.clone()
    changed[:, :, -1, -1] += 3
    with torch.no_grad():
        moved = (model(x, t, cond) - model(changed, t, cond)).abs().amax(1)
    assert moved[:, 0, 0].min() > 1e-4


def test_rms_norms_as_a_switch():
    model = noisy(replace(SMOKE, norm="rms"))
    assert count(model.config) == sum(p.numel() for p in model.parameters())
    assert {type(b.attn.norm_q).__name__ for b in model.blocks} == {"RMSNorm"}


def test_what_is_refused():
    for changes, message in (
        ({"stages": (2, 3)}, "stages"),
        ({"attention": "none"}, "attention 'none'"),
        ({"norm": "batch"}, "norm 'batch'"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SMOKE, **changes)
    model = ElasticDiT(SMOKE)
    _, t, cond = model.example()
    with pytest.raises(ValueError, match="sides must be even"):
        model(torch.randn(2, 4, 8, 6), t, cond)


def test_a_text_encoder_can_be_left_out():
    """Of two encoders' words, those of one masked: the same as without them, and another picture."""
    torch.manual_seed(0)
    model = ElasticDiT(SMOKE)
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    x, t, cond = model.example(2)
    whole = replace(cond, mask=torch.ones_like(cond.mask))
    half = cond.tokens.shape[1] // 2
    masked = replace(whole, mask=torch.arange(cond.tokens.shape[1]).lt(half).expand_as(cond.mask))
    cut = replace(whole, tokens=cond.tokens[:, :half], mask=whole.mask[:, :half])
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, masked), model(x, t, cut), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(model(x, t, masked), model(x, t, whole), atol=1e-4)
