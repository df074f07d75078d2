from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion.models.dit import PRESETS, Ctx, DiT, patches, pixels
from pocketdiffusion.nn import rope
from pocketdiffusion.nn.axes import keep_axes
from pocketdiffusion.nn.modulation import modulate
from pocketdiffusion.nn.taps import tap
from pocketdiffusion.types import Cond

SMOKE = PRESETS["smoke"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = DiT(SMOKE).eval()
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


def ctx(model):
    _, t, cond = model.example(2)
    table = rope.angles(rope.grid(4, 4), SMOKE.head_dim)
    return Ctx(model.modulation(model.time(t)), table, model.text(cond.tokens), cond.mask)


def test_patches_and_back():
    x = torch.randn(2, 4, 6, 8)
    tokens = patches(x, 2)
    assert tokens.shape == (2, 12, 16)
    assert torch.equal(tokens[0, 5], x[0, :, 2:4, 2:4].flatten())
    assert torch.equal(pixels(tokens, 3, 4, 2), x)


def test_velocity_starts_at_zero():
    model = DiT(SMOKE)
    assert not model(*model.example(2)).any()


def test_text_is_not_heard_at_the_start():
    """Cross-attention starts at zero, so the first steps do not fight the text."""
    model = DiT(SMOKE)
    nn.init.normal_(model.unpatchify.weight)
    x, t, cond = model.example(2)
    other = replace(cond, tokens=torch.randn_like(cond.tokens))
    assert torch.equal(model(x, t, cond), model(x, t, other))


def test_zero_gates_are_the_identity(model):
    block, seen = model.blocks[0], ctx(model)
    nn.init.zeros_(model.modulation.proj.weight)
    nn.init.zeros_(model.modulation.proj.bias)
    nn.init.zeros_(block.cross.out.weight)
    y = torch.randn(2, 16, SMOKE.dim)
    nn.init.zeros_(block.table.weight[2])
    nn.init.zeros_(block.table.weight[5])
    seen = seen._replace(modulation=torch.zeros_like(seen.modulation))
    assert torch.equal(block(y, seen), y)


def test_branches_see_the_modulated_input_and_return_before_the_gate(model):
    block, seen = model.blocks[0], ctx(model)
    inputs, outputs = {}, {}
    for name in ("attn", "cross", "mlp"):

        def keep(_, x, y, name=name):
            inputs[name], outputs[name] = x[0], y

        getattr(block, name).register_forward_hook(keep)
    x = torch.randn(2, 16, SMOKE.dim)
    y = block(x, seen)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.table(seen.modulation)
    assert torch.equal(inputs["attn"], modulate(block.norm1(x), shift1, scale1))
    x = x + gate1 * outputs["attn"]
    assert torch.equal(inputs["cross"], block.norm2(x))
    x = x + outputs["cross"]
    assert torch.equal(inputs["mlp"], modulate(block.norm3(x), shift2, scale2))
    assert torch.equal(y, x + gate2 * outputs["mlp"])


def test_padded_text_is_not_seen(model):
    x, t, cond = model.example(2)
    torch.testing.assert_close(model(x, t, cond.pad(40)), model(x, t, cond), atol=1e-5, rtol=1e-4)
    noisy = torch.where(cond.mask[..., None], cond.tokens, 100 * torch.randn_like(cond.tokens))
    assert torch.equal(model(x, t, Cond(noisy, cond.mask)), model(x, t, cond))


def test_text_and_time_matter(model):
    x, t, cond = model.example(2)
    v = model(x, t, cond)
    assert (model(x, t / 2, cond) - v).abs().max() > 1e-3
    assert (model(x, t, replace(cond, tokens=cond.tokens.flip(1))) - v).abs().max() > 1e-6
    assert (model(x.flip(-1), t, cond) - v.flip(-1)).abs().max() > 1e-3  # positions are seen


@torch.no_grad()
def test_pruning_what_is_switched_off_changes_nothing(model):
    for block in model.blocks:
        block.mlp.down.weight[:, 64:] = 0
        block.attn.out.weight[:, : SMOKE.head_dim] = 0
        block.cross.out.weight[:, SMOKE.head_dim :] = 0
    small = keep_axes(model, {"mlp": range(64), "heads": [1], "cross_heads": [0]})
    inputs = model.example(2)
    torch.testing.assert_close(small(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_pruning_the_width_keeps_each_modulation_in_its_place(model):
    nn.init.normal_(model.modulation.proj.weight)
    nn.init.normal_(model.modulation.proj.bias)
    kept, temb = [3, 5, 40], torch.zeros(1, SMOKE.dim)
    temb[:, kept] = torch.randn(1, 3)
    small = keep_axes(model, {"dim": kept})
    torch.testing.assert_close(small.modulation(temb[:, kept]), model.modulation(temb)[..., kept])


def test_any_size_that_patches_divide(model):
    _, t, cond = model.example(2)
    assert model(torch.randn(2, 4, 6, 12), t, cond).shape == (2, 4, 6, 12)


def test_taps_reach_blocks(model):
    inputs = model.example(2)
    v, seen = tap(model, ["blocks.0", "blocks.1.attn"])(*inputs)
    assert torch.equal(v, model(*inputs))
    assert seen["blocks.0"].shape == seen["blocks.1.attn"].shape == (2, 16, SMOKE.dim)


def test_sizes_of_presets():
    """PixArt-alpha-XL/2 is called 0.6 B."""
    with torch.device("meta"):
        sizes = {k: sum(p.numel() for p in DiT(c).parameters()) for k, c in PRESETS.items()}
    assert sizes["smoke"] < 300_000
    assert 2e6 < sizes["scenes"] < 10e6
    assert 0.55e9 < sizes["pixart_xl"] < 0.65e9
