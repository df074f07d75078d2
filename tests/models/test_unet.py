from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketdiffusion.diffusion.flow import expand, interpolate
from pocketdiffusion.methods.flow_matching import FlowMatching
from pocketdiffusion.models.unet import PRESETS, UNet, count
from pocketdiffusion.models.unet_config import slots
from pocketdiffusion.nn import rope
from pocketdiffusion.nn.axes import keep_axes
from pocketdiffusion.nn.taps import tap
from pocketdiffusion.nn.time import sinusoid
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.types import Batch

SMOKE = PRESETS["smoke"]


def build(config):
    """A seeded network whose zero-initialised weights have something to say."""
    torch.manual_seed(0)
    model = UNet(config).eval()
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


@pytest.fixture
def model():
    return build(SMOKE)


# Sizes


def test_widths_that_enter_on_the_way_up():
    c = PRESETS["snapgen"]
    up = slots(c)[-9:]
    found = [tuple(c.dims[level] for level in slot.enters) for slot in up]
    assert found[:3] == [(896, 896), (896, 896), (896, 512)]
    assert found[3:6] == [(896, 512), (512, 512), (512, 256)]
    assert found[6:] == [(512, 256), (256, 256), (256, 256)]
    assert [slot.transformer for slot in slots(c)].count(True) == 16
    assert sum(len(slot.blocks) for slot in slots(c)) == 39


def test_skips_are_popped_in_reverse():
    model = build(replace(SMOKE, per_level=2, depth=(1, 1, 1)))
    pushed, entered, hooks = [], [], []

    def push(_, inputs, y):
        pushed.append(y)

    pushing = [model.enter, *[model.transformers[i] for i in range(6)], *model.downs]
    hooks += [module.register_forward_hook(push) for module in pushing]
    for resnet in model.resnets[-9:]:
        hooks.append(resnet.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])))
    model(*model.example())
    assert len(pushed) == len(entered) == 9
    for skip, x in zip(reversed(pushed), entered):
        assert torch.equal(x[:, -skip.shape[1] :], skip)


def test_self_attention_is_at_the_lowest_level_alone(model):
    attending = [i for i, block in enumerate(model.blocks) if block.attn is not None]
    lowest = [i for slot in model.slots if slot.level == 2 for i in slot.blocks]
    assert attending == lowest
    assert all(block.cross is not None for block in model.blocks)


def test_velocity_starts_at_zero_and_the_output_layer_learns():
    model = UNet(SMOKE)
    x, t, cond = model.example()
    v = model(x, t, cond)
    assert not v.any()
    (v - torch.randn_like(v)).square().mean().backward()
    assert model.leave.weight.grad.any()


def test_one_key_head_is_many_alike(model):
    """Multi-query attention is multi-head attention whose keys and values are tiled."""
    full = UNet(replace(SMOKE, kv_heads=0)).eval()
    state = model.state_dict()
    for name, wanted in full.state_dict().items():
        if name.split(".")[-2] in ("k", "v"):
            state[name] = state[name].repeat(len(wanted) // len(state[name]), 1)
    full.load_state_dict(state)
    torch.testing.assert_close(full(*model.example()), model(*model.example()), atol=1e-5, rtol=1e-4)


def test_only_relative_positions_are_seen(model, monkeypatch):
    inputs, grid = model.example(), rope.grid
    v = model(*inputs)
    monkeypatch.setattr(rope, "grid", lambda *sizes, device="cpu": grid(*sizes, device=device) + 5)
    torch.testing.assert_close(model(*inputs), v, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(rope, "grid", lambda *sizes, device="cpu": 3 * grid(*sizes, device=device))
    assert (model(*inputs) - v).abs().max() > 1e-5


def test_any_grid(model):
    _, t, cond = model.example()
    assert model(torch.randn(2, 4, 8, 12), t, cond).shape == (2, 4, 8, 12)


def test_text_pooled_text_and_time_matter(model):
    x, t, cond = model.example()
    v = model(x, t, cond)
    others = [(t / 2, cond), (t, replace(cond, tokens=cond.tokens.flip(1)))]
    for t2, cond2 in [*others, (t, replace(cond, pooled=-cond.pooled))]:
        assert (model(x, t2, cond2) - v).abs().max() > 1e-5


def test_padded_text_is_not_seen(model):
    x, t, cond = model.example()
    torch.testing.assert_close(model(x, t, cond.pad(40)), model(x, t, cond), atol=1e-5, rtol=1e-4)


def test_the_last_features_can_be_tapped(model):
    name = f"transformers.{len(model.slots) - 1}"
    assert tap(model, [name])(*model.example())[1][name].shape == (2, 16, 8, 8)


@pytest.mark.slow
def test_one_batch_is_learned():
    torch.manual_seed(0)
    model = UNet(SMOKE)
    x, t, cond = model.example()
    wanted = torch.randn_like(x)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(x, t, cond), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.slow
def test_one_picture_is_learned():
    """With a single picture x0 in the world the best velocity is (x_t - x0) / t at every level."""
    torch.manual_seed(0)
    model, (_, _, cond) = UNet(SMOKE), UNet(SMOKE).example(1)
    x0, cond = torch.randn(1, 4, 8, 8), cond.expand(32)
    method = FlowMatching(
        model, lambda batch: (batch.x, cond), lambda: cond, list(model.parameters()), drop=0.0
    )
    optimiser = {"denoiser": torch.optim.Adam(model.parameters(), 5e-3)}
    world = Batch(x0.expand(32, -1, -1, -1), [""] * 32)
    losses = []

    def keep(state):
        losses.append(float(state.seen["denoiser/loss"]))

    fit(method, lambda seed, step: world, optimiser, {"model": model}, Run(300), hooks=[keep])
    # a velocity of nothing has the loss E |e - x0|^2 = 1 + |x0|^2
    assert losses[0] > 1.5 and sum(losses[-10:]) / 10 < 0.2
    t, noise = torch.linspace(0.9, 0.3, 32), torch.randn(32, 4, 8, 8)
    x = interpolate(world.x, noise, t)
    with torch.no_grad():
        v, best = model.eval()(x, t, cond), (x - x0) / expand(t, x)
    assert (v - best).square().mean() < 0.1 * best.square().mean()


def test_the_time_path_has_the_activation_of_the_config(model):
    """act(temb), and act inside of both embeddings; with the default SiLU as ever."""
    for name, act, other in (("silu", F.silu, nn.Hardswish), ("hardswish", F.hardswish, nn.SiLU)):
        unet = UNet(replace(SMOKE, activation=name))
        unet.load_state_dict(model.state_dict())
        assert not [m for m in unet.modules() if isinstance(m, other)]
        x, t, cond = unet.example()
        time, pooled = unet.time, unet.pooled
        temb = time.down(act(time.up(sinusoid(t, SMOKE.features))))
        temb = temb + pooled[2](act(pooled[0](cond.pooled)))
        assert torch.equal(unet.contexts(x, t, cond)[0].temb, act(temb))


# Pruning


@torch.no_grad()
def test_pruning_what_is_switched_off_changes_nothing(model):
    config = model.config
    keep = {"mlp": [], "heads": [], "cross_heads": []}
    for block in model.blocks:
        half = block.mlp.down.in_features // 2
        block.mlp.down.weight[:, half:] = 0
        keep["mlp"].append(list(range(half)))
        for name, branch in (("heads", block.attn), ("cross_heads", block.cross)):
            keep[name].append([] if branch is None else list(range(1, branch.heads)))
            if branch is not None:
                branch.out.weight[:, : config.head_dim] = 0
    small, inputs = keep_axes(model, keep), model.example()
    assert small.config.mlp == tuple(width // 2 for width in config.mlp)
    torch.testing.assert_close(small(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_removed_blocks_are_blocks_that_do_nothing(model):
    kept = [0, 2, 3, 7]
    for i, block in enumerate(model.blocks):
        if i not in kept:
            for branch in (block.attn, block.cross):
                for p in [] if branch is None else branch.out.parameters():
                    p.zero_()
            for p in block.mlp.down.parameters():
                p.zero_()
    config = model.config.keep(kept)
    small = UNet(config).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("blocks.")}
    for new, old in enumerate(kept):
        part = model.blocks[old].state_dict()
        state |= {f"blocks.{new}.{k}": v for k, v in part.items()}
    small.load_state_dict(state)
    assert count(config) == sum(p.numel() for p in small.parameters()) < count(SMOKE)
    torch.testing.assert_close(small(*model.example()), model(*model.example()), atol=1e-5, rtol=1e-4)
    assert config.keep([1, 2]).without == model.config.keep([2, 3]).without


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"depth": (1, 1)}, "depth has 2 entries for 3 levels"),
        ({"mid_rule": "both"}, "mid_rule 'both'"),
        ({"activation": "tanh"}, "activation 'tanh'"),
    ],
)
def test_configs_that_are_none(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SMOKE, **wrong)


def test_widths_for_another_number_of_blocks_are_refused():
    with pytest.raises(ValueError, match="mlp has 2 entries, expected 10"):
        replace(SMOKE, mlp=(8, 8)).resolved()
