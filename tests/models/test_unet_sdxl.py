"""The U-Net as SDXL's: to the last parameter, and weight for weight what diffusers computes."""

from dataclasses import replace

import pytest
import torch

from pocketdiffusion.models.unet import UNet, count
from pocketdiffusion.models.unet_config import Config

# SDXL's published U-Net, whose added embedding is our pooled one
SDXL = Config(
    channels=4,
    dims=(320, 640, 1280),
    depth=(0, 2, 10),
    self_attention=(False, True, True),
    kv_heads=0,
    qk_norm=False,
    rope=False,
    ff=4,
    separable=False,
    separable_samplers=False,
    text=2048,
    pooled=2816,
    temb=1280,
    features=320,
)


def test_another_config_is_sdxl_to_the_last_parameter():
    assert count(SDXL) == 2_567_463_684


# SDXL's network in diffusers, made tiny: the same topology, weight for weight.


def renamed(model, state):
    """diffusers' names and layout of UNet2DConditionModel -> ours."""
    names = {"conv_in": "enter", "conv_norm_out": "norm", "conv_out": "leave"}
    names |= {"time_embedding.linear_1": "time.up", "time_embedding.linear_2": "time.down"}
    levels, places = len(model.config.dims), iter(enumerate(model.slots))

    def slot(parts, j):
        i, place = next(places)
        for old, new in {
            "norm1": "norm",
            "conv1": "conv.conv1",
            "time_emb_proj": "conv.time",
            "norm2": "conv.norm",
            "conv2": "conv.conv2",
            "conv_shortcut": "skip",
        }.items():
            names[f"{parts}.resnets.{j}.{old}"] = f"resnets.{i}.{new}"
        for old, new in {"norm": "norm", "proj_in": "enter", "proj_out": "leave"}.items():
            names[f"{parts}.attentions.{j}.{old}"] = f"transformers.{i}.{new}"
        for k, number in enumerate(place.blocks):
            block = f"{parts}.attentions.{j}.transformer_blocks.{k}"
            for old, new in {"attn1": "attn", "attn2": "cross"}.items():
                names.update({f"{block}.{old}.to_{a}": f"blocks.{number}.{new}.{a}" for a in "qkv"})
                names[f"{block}.{old}.to_out.0"] = f"blocks.{number}.{new}.out"
            names.update({f"{block}.norm{a}": f"blocks.{number}.norm{a}" for a in "123"})
            names[f"{block}.ff.net.0.proj"] = f"blocks.{number}.mlp.up"
            names[f"{block}.ff.net.2"] = f"blocks.{number}.mlp.down"

    for level in range(levels):
        for j in range(2):
            slot(f"down_blocks.{level}", j)
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"downs.{level}"
    slot("mid_block", 0)
    slot("mid_block", 1)
    for level in reversed(range(levels)):
        for j in range(3):
            slot(f"up_blocks.{levels - 1 - level}", j)
        names[f"up_blocks.{levels - 1 - level}.upsamplers.0.conv"] = f"ups.{level - 1}.1"
    found = {}
    for key, value in state.items():
        name, _, kind = key.rpartition(".")
        found[f"{names[name]}.{kind}"] = value
        if name.endswith("ff.net.0.proj"):
            up, gate = value.chunk(2)
            found |= {f"{names[name]}.{kind}": up, f"{names[name][:-2]}gate.{kind}": gate}
    return found


@torch.no_grad()
def test_it_computes_what_diffusers_computes():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 24, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=32,
        use_linear_projection=True,
        norm_num_groups=4,
    ).eval()
    sizes = {"dims": (16, 24, 32), "depth": (0, 1, 2), "text": 32, "pooled": 0, "temb": 64, "features": 16}
    ours = UNet(replace(SDXL, **sizes, head_dim=8, groups=4, side=8)).eval()
    ours.load_state_dict(renamed(ours, theirs.state_dict()))
    x, t, cond = ours.example()
    truth = theirs(x, 1000 * t, cond.tokens).sample
    v = ours(x, t, replace(cond, mask=torch.ones_like(cond.mask)))
    # gelu is exact there and approximated by tanh here
    torch.testing.assert_close(v, truth, atol=2e-3, rtol=2e-3)
