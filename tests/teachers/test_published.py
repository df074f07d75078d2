"""Published denoisers at full size, on meta: counts, sizes of their files, and every key of both layouts."""

import re
import sys
from pathlib import Path

import pytest
import torch

from pocketdiffusion.nn.taps import tap
from pocketdiffusion.teachers.checkpoints import mapped
from pocketdiffusion.teachers.convert import Discrete, Flow
from pocketdiffusion.teachers.diffusers import published
from pocketdiffusion.teachers.published import PUBLISHED, like

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
from tiny_denoisers import original, shapes, size

pytestmark = pytest.mark.slow

# parameters in billions, as published: the papers or the model cards
COUNTS = {
    "sd1.5": 0.8595,
    "sd2.1": 0.8659,
    "sdxl": 2.567,
    "sd3-medium": 2.028,
    "sd3.5-medium": 2.24,
    "sd3.5-large": 8.06,
    "flux-dev": 11.90,
    "flux-schnell": 11.89,
    "qwen-image": 20.43,
    "pixart-alpha-1024": 0.6113,  # 610.9 M and the embeddings of size and aspect ratio, 0.5 M
    "sana-1.6b": 1.604,
    "dit-xl-2-256": 0.7498,
    "wan2.1-1.3b": 1.42,
    "wan2.1-14b": 14.29,
    "ltx-0.9": 1.92,
}
# bytes of the published files, which depend on every name, shape and dtype (from memory)
BYTES = {
    "sd1.5": ("F32", 3_438_167_536),  # unet/diffusion_pytorch_model.safetensors
    "sdxl": ("F16", 5_135_149_760),  # unet/diffusion_pytorch_model.fp16.safetensors
}
# and of a published file in the original layout, Wan-AI/Wan2.1-T2V-1.3B
ORIGINAL_BYTES = {"wan2.1-1.3b": ("F32", 5_676_070_424)}


# of the last block's map, for the inputs of example(): a U-Net ends at the resolution of x
GRIDS = {"sd1.5": (32, 32), "sd2.1": (32, 32), "sdxl": (16, 16)}
GRIDS |= dict.fromkeys(("wan2.1-1.3b", "wan2.1-14b", "ltx-0.9"), (3, 4, 4))


@pytest.fixture(scope="module")
def full():
    return {name: published(name) for name in PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes(full, name):
    model = full[name]
    count = sum(p.numel() for p in model.parameters()) / 1e9
    assert count == pytest.approx(COUNTS[name], rel=2e-3)
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert like(model.model) is PUBLISHED[name]
    if name in BYTES:
        dtype, expected = BYTES[name]
        assert size(shapes(model.model.state_dict()), dtype, {"format": "pt"}) == expected


@pytest.mark.slow
def test_dit_has_the_parameters_of_its_paper(full):
    """675.1 M: the library gives every block its own copy of the embeddings of time and class."""
    model = full["dit-xl-2-256"].model
    copies = sum(p.numel() for p in model.transformer_blocks[0].norm1.emb.parameters())
    total = sum(p.numel() for p in model.parameters()) - 27 * copies
    assert total + model.pos_embed.pos_embed.numel() == 675_129_632


@pytest.mark.slow
def test_paths_and_latents(full):
    assert {k: m.channels for k, m in full.items()} == {
        "sd1.5": 4,
        "sd2.1": 4,
        "sdxl": 4,
        "sd3-medium": 16,
        "sd3.5-medium": 16,
        "sd3.5-large": 16,
        "flux-dev": 16,
        "flux-schnell": 16,
        "qwen-image": 16,
        "pixart-alpha-1024": 4,
        "sana-1.6b": 32,
        "dit-xl-2-256": 4,
        "wan2.1-1.3b": 16,
        "wan2.1-14b": 16,
        "ltx-0.9": 128,
    }
    predictions = {k: m.path.prediction for k, m in full.items() if isinstance(m.path, Discrete)}
    assert predictions == {
        "sd1.5": "epsilon",
        "sd2.1": "v_prediction",
        "sdxl": "epsilon",
        "pixart-alpha-1024": "epsilon",
        "dit-xl-2-256": "epsilon",
    }
    # the product of Stable Diffusion's 1000 steps, 0.0047 (Lin et al. 2024, table 1), and of the linear betas
    assert float(full["sdxl"].path.alphas[-1]) == pytest.approx(0.00466, rel=1e-2)
    assert float(full["dit-xl-2-256"].path.alphas[-1]) == pytest.approx(4.036e-5, rel=1e-2)
    shifts = {k: m.path.shift for k, m in full.items() if isinstance(m.path, Flow)}
    assert [k for k, v in shifts.items() if v is None] == ["flux-dev", "qwen-image", "ltx-0.9"]
    assert (shifts["sd3.5-large"], shifts["flux-schnell"], shifts["sana-1.6b"]) == (3.0, 1.0, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_of_full_size_is_read_whole(full, name):
    model = full[name].model
    state = mapped(model, model.state_dict(), name)
    assert shapes(state) == shapes(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_at_full_size(full, name):
    model = full[name]
    x, t, cond = model.example(1, "meta")
    v, seen = tap(model, [model.last])(x, t, cond)
    assert v.shape == x.shape and v.device.type == "meta"
    grid = model.map(seen[model.last], x).shape
    assert (grid[0], *grid[2:]) == (1, *GRIDS.get(name, (4, 4)))


# names that are in the published files
ANCHORS = {
    "sd1.5": [
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.bias",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.8.2.conv.bias",
        "out.2.weight",
    ],
    "sd2.1": ["output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.bias", "time_embed.2.bias"],
    "sdxl": ["label_emb.0.2.weight", "input_blocks.8.1.transformer_blocks.9.norm3.weight", "out.0.bias"],
    "sd3-medium": [
        "pos_embed",
        "joint_blocks.23.context_block.adaLN_modulation.1.weight",
        "x_embedder.proj.bias",
    ],
    "sd3.5-medium": ["joint_blocks.12.x_block.attn2.qkv.weight", "joint_blocks.0.x_block.attn.ln_q.weight"],
    "sd3.5-large": ["joint_blocks.37.x_block.mlp.fc2.bias", "final_layer.adaLN_modulation.1.bias"],
    "flux-dev": ["guidance_in.in_layer.bias", "single_blocks.37.linear1.weight", "txt_in.weight"],
    "flux-schnell": ["double_blocks.18.txt_attn.norm.key_norm.scale", "vector_in.out_layer.weight"],
    "sana-1.6b": ["blocks.19.cross_attn.kv_linear.weight", "attention_y_norm.weight", "t_block.1.bias"],
    "wan2.1-1.3b": ["head.modulation", "blocks.29.norm3.weight", "time_projection.1.weight"],
    "wan2.1-14b": ["blocks.39.cross_attn.norm_k.weight", "blocks.0.ffn.2.bias", "patch_embedding.bias"],
    "ltx-0.9": [
        "patchify_proj.weight",
        "adaln_single.linear.bias",
        "transformer_blocks.27.attn2.q_norm.weight",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANCHORS)
def test_an_original_file_of_full_size_is_read_whole(full, name):
    model = full[name].model
    file = original(model)
    assert set(ANCHORS[name]) <= set(file)
    assert shapes(mapped(model, file, name)) == shapes(model.state_dict())
    if name in ORIGINAL_BYTES:
        dtype, expected = ORIGINAL_BYTES[name]
        assert size(shapes(file), dtype, {"format": "pt"}) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixart-alpha-1024", "dit-xl-2-256"])
def test_layouts_that_are_not_read(full, name):
    kind = PUBLISHED[name].kind
    with pytest.raises(ValueError, match=rf"a: only UNet2DConditionModel, SD3.* are read in .*, {kind} in "):
        mapped(full[name].model, {"x_embedder.proj.weight": torch.empty(1)}, "a")


def test_unknown_names():
    with pytest.raises(ValueError, match=re.escape("unknown denoiser 'sd9'; known: sd1.5, sd2.1, sdxl, ")):
        published("sd9")
