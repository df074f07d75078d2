"""The published models at full size, on meta: counts, bytes of their files, original names."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pocketdiffusion.teachers.autoencoders import PUBLISHED, mapped, published

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
from tiny_autoencoders import original, shapes

pytestmark = pytest.mark.slow

# parameters, with where the same number is published; 2b and 5b of CogVideoX differ in the scale alone
COUNTS = {
    "sd1.5": 83_653_863,  # safetensors headers of the hub's files, as all of these where nothing else is said
    "sdxl": 83_653_863,
    "sd3": 83_819_683,
    "flux": 83_819_683,
    "dc-ae-f32c32": 312_250_275,
    "wan2.1": 126_892_531,  # and 127M in the Wan report (from memory)
    "wan2.2-5b": 704_688_668,  # Wan2.2_VAE.pth
    "ltx-0.9": 419_193_649,  # by the size of the file alone
    "cogvideox-2b": 215_583_907,  # by the size of the file and its 436 names alone
    "cogvideox-5b": 215_583_907,
    "qwen-image": 126_892_531,  # encoder 54M and decoder 73M in the Qwen-Image report
}
# bytes of vae/diffusion_pytorch_model.safetensors on the hub: they depend on every name, shape and dtype
BYTES = {
    "sdxl": ("F32", 334_643_268),  # stabilityai/sdxl-vae
    "flux": ("BF16", 167_666_902),  # diffusers/FLUX.1-vae
    "sd3": ("BF16", 167_666_902),  # stabilityai/stable-diffusion-3.5-large
    "wan2.1": ("F32", 507_591_892),  # Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    "wan2.2-5b": ("F32", 2_818_777_808),  # Wan-AI/Wan2.2-TI2V-5B-Diffusers
    "ltx-0.9": ("F32", 1_676_798_532),  # Lightricks/LTX-Video
    "cogvideox-5b": ("BF16", 431_221_142),  # the CogVideoX base of the VOID checkpoints
    "qwen-image": ("BF16", 253_806_966),  # Qwen/Qwen-Image
}


def size(shapes, dtype, metadata):
    """Bytes of a safetensors file."""
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + torch.Size(shape).numel() * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


@pytest.fixture(scope="module")
def full():
    with torch.device("meta"):
        return {name: published(name) for name in PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(full, name):
    model = full[name]
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert {p.device.type for p in (*model.parameters(), *model.buffers())} == {"meta"}
    if name in BYTES:
        dtype, expected = BYTES[name]
        assert size(shapes(model.model.state_dict()), dtype, {"format": "pt"}) == expected


@pytest.mark.slow
def test_published_factors(full):
    found = {k: (m.config.factor, m.config.time_factor, m.config.channels) for k, m in full.items()}
    assert found == {
        "sd1.5": (8, 1, 4),
        "sdxl": (8, 1, 4),
        "sd3": (8, 1, 16),
        "flux": (8, 1, 16),
        "dc-ae-f32c32": (32, 1, 32),
        "wan2.1": (8, 4, 16),
        "wan2.2-5b": (16, 4, 48),
        "ltx-0.9": (32, 8, 128),
        "cogvideox-2b": (8, 4, 16),
        "cogvideox-5b": (8, 4, 16),
        "qwen-image": (8, 4, 16),
    }


# names that are in the published files, from the marks by which diffusers tells them
ANCHORS = {
    "sd1.5": ["encoder.down.0.block.0.norm1.weight", "decoder.up.3.upsample.conv.weight", "quant_conv.bias"],
    "flux": ["encoder.mid.attn_1.proj_out.weight", "decoder.norm_out.weight"],
    "dc-ae-f32c32": ["decoder.stages.1.op_list.0.main.conv.conv.bias", "encoder.project_in.conv.bias"],
    "wan2.1": ["decoder.middle.0.residual.0.gamma", "decoder.upsamples.4.shortcut.weight", "conv2.bias"],
    "qwen-image": ["decoder.middle.0.residual.0.gamma"],
    "ltx-0.9": ["vae.encoder.conv_in.conv.bias", "vae.decoder.up_blocks.9.res_blocks.0.conv1.conv.weight"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANCHORS)
def test_an_original_file_of_full_size_is_read_whole(full, name):
    model = full[name].model
    file = original(model)
    assert set(ANCHORS[name]) <= set(file)
    state = mapped(model, {k.removeprefix("vae."): v for k, v in file.items()}, name)
    assert shapes(state) == shapes(model.state_dict())


@pytest.mark.slow
def test_the_layout_of_comfyui_for_qwen_image_is_that_of_wan(full):
    # split_files/vae/qwen_image_vae.safetensors of Comfy-Org/Qwen-Image_ComfyUI
    assert size(shapes(original(full["qwen-image"].model)), "BF16", None) == 253_806_246
