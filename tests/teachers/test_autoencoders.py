"""Foreign autoencoders: diffusers' own functions and files, with the house's conventions around them."""

import json
import re
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketdiffusion.data.latents import weights_hash
from pocketdiffusion.teachers.autoencoders import (
    PUBLISHED,
    SHARP,
    Foreign,
    load,
    mapped,
    published,
    save,
)

diffusers = pytest.importorskip("diffusers")

KL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
BLOCKS = ("ResBlock", "ResBlock", "EfficientViTBlock")
WAN = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 4, 4],
    "latents_mean": [-0.7, 0.1, 0.4, -1.0],
    "latents_std": [2.8, 1.4, 0.5, 1.2],
}
# name -> class, config, factor, time factor, channels
WAN22 = WAN | {
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "decoder_base_dim": 8,
}
DC = {
    "latent_channels": 4,
    "attention_head_dim": 8,
    "encoder_block_types": BLOCKS,
    "decoder_block_types": BLOCKS,
    "encoder_block_out_channels": (8, 16, 32),
    "decoder_block_out_channels": (8, 16, 32),
    "encoder_layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "encoder_qkv_multiscales": ((), (), (5,)),
    "decoder_qkv_multiscales": ((), (), (5,)),
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
LTX = {
    "latent_channels": 8,
    "block_out_channels": (4, 8, 16, 16),
    "decoder_block_out_channels": (4, 8, 16, 16),
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
    "scaling_factor": 0.8,
}
LTX_TIMED = LTX | {
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
}
COG = {
    "block_out_channels": (4, 4, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
}
MEANS = {"scaling_factor": 0.5, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
# name -> class, config, factor, time factor, channels
TINY = {
    "kl": ("AutoencoderKL", KL | {"scaling_factor": 0.5, "shift_factor": 0.25}, 2, 1, 4),
    "kl_means": ("AutoencoderKL", KL | MEANS, 2, 1, 4),
    "dc": ("AutoencoderDC", DC, 4, 1, 4),
    "wan2.1": ("AutoencoderKLWan", WAN, 8, 4, 4),
    "wan2.2": ("AutoencoderKLWan", WAN22, 16, 4, 4),
    "ltx": ("AutoencoderKLLTXVideo", LTX, 32, 8, 8),
    "ltx_timed": ("AutoencoderKLLTXVideo", LTX_TIMED, 32, 8, 8),
    "cogvideox": ("AutoencoderKLCogVideoX", COG, 8, 4, 4),
    "qwen-image": ("AutoencoderKLQwenImage", WAN, 8, 4, 4),
}
SIX = ["kl", "dc", "wan2.1", "ltx", "cogvideox", "qwen-image"]  # one of each class
VIDEO = [n for n in TINY if TINY[n][3] > 1]


def foreign(name):
    """The tiny model as diffusers builds it, its statistics not the trivial ones."""
    torch.manual_seed(0)
    kind, config = TINY[name][:2]
    model = getattr(diffusers, kind)(**config).eval()
    if name.startswith("ltx"):
        model.latents_mean.copy_(torch.linspace(-1, 1, 8))
        model.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return model


def tiny(name):
    return Foreign(foreign(name)).eval()


def pixels(name, frames=None, batch=2):
    factor = TINY[name][2]
    shape = (
        (batch, 3, 2 * factor, 3 * factor) if frames is None else (batch, 3, frames, 2 * factor, 2 * factor)
    )
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def clip(name):
    """The shortest clip of more than one frame."""
    return pixels(name, 9 if TINY[name][3] == 8 or name == "cogvideox" else 5)


def statistics(model):
    """Mean and standard deviation by which diffusers' pipelines normalise, in their own words."""
    c = model.config
    like = (-1, 1, 1) if model.__class__.__name__ in ("AutoencoderKL", "AutoencoderDC") else (-1, 1, 1, 1)
    if "latents_mean" in model.state_dict():  # pipeline_ltx: latents * latents_std / scaling_factor + mean
        return model.latents_mean.view(like), model.latents_std.view(like) / c.scaling_factor
    if c.get("latents_mean"):  # pipeline_wan, _qwenimage, _stable_diffusion_xl
        mean, std = torch.tensor(c.latents_mean).view(like), torch.tensor(c.latents_std).view(like)
        return mean, std / c.get("scaling_factor", 1.0)
    # pipeline_flux: latents / scaling_factor + shift_factor; _cogvideox, _sana: without the shift
    return torch.tensor(c.get("shift_factor") or 0.0), torch.tensor(1 / c.scaling_factor)


# (a) the published models


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


def shapes(state):
    return {k: tuple(v.shape) for k, v in state.items()}


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


# Names of diffusers -> names of the original files, as (pattern, replacement) in order.
KL_NAMES = [
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets", r"up.-\1.block"),
    (r"up_blocks\.(\d)\.upsamplers\.0", r"up.-\1.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
]
WAN_NAMES = [
    (r"(resnets\.\d|down_blocks\.\d+)\.norm1", r"\1.residual.0"),
    (r"(resnets\.\d|down_blocks\.\d+)\.conv1", r"\1.residual.2"),
    (r"(resnets\.\d|down_blocks\.\d+)\.norm2", r"\1.residual.3"),
    (r"(resnets\.\d|down_blocks\.\d+)\.conv2", r"\1.residual.6"),
    (r"conv_shortcut", "shortcut"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.1", "middle.2"),
    (r"coder\.norm_out", "coder.head.0"),
    (r"coder\.conv_out", "coder.head.2"),
    (r"coder\.conv_in", "coder.conv1"),
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"down_blocks", "downsamples"),
    (r"upsamplers\.0", "resnets.3"),
]
LTX_NAMES = [
    (r"decoder\.up_blocks\.3(?!\.(conv_in|up))", "decoder.up_blocks.9"),
    (r"decoder\.up_blocks\.3\.upsamplers\.0", "decoder.up_blocks.8"),
    (r"decoder\.up_blocks\.3\.conv_in", "decoder.up_blocks.7"),
    (r"decoder\.up_blocks\.2(?!\.(conv_in|up))", "decoder.up_blocks.6"),
    (r"decoder\.up_blocks\.2\.upsamplers\.0", "decoder.up_blocks.5"),
    (r"decoder\.up_blocks\.2\.conv_in", "decoder.up_blocks.4"),
    (r"decoder\.up_blocks\.1(?!\.up)", "decoder.up_blocks.3"),
    (r"decoder\.up_blocks\.1\.upsamplers\.0", "decoder.up_blocks.2"),
    (r"decoder\.up_blocks\.0", "decoder.up_blocks.1"),
    (r"decoder\.mid_block", "decoder.up_blocks.0"),
    (r"encoder\.mid_block", "encoder.down_blocks.9"),
    (r"encoder\.down_blocks\.3", "encoder.down_blocks.8"),
    (r"encoder\.down_blocks\.2\.downsamplers\.0", "encoder.down_blocks.7"),
    (r"encoder\.down_blocks\.2", "encoder.down_blocks.6"),
    (r"encoder\.down_blocks\.1\.conv_out", "encoder.down_blocks.5"),
    (r"encoder\.down_blocks\.1\.downsamplers\.0", "encoder.down_blocks.4"),
    (r"encoder\.down_blocks\.1", "encoder.down_blocks.3"),
    (r"encoder\.down_blocks\.0\.conv_out", "encoder.down_blocks.2"),
    (r"encoder\.down_blocks\.0\.downsamplers\.0", "encoder.down_blocks.1"),
    (r"resnets", "res_blocks"),
    (r"conv_shortcut\.conv", "conv_shortcut"),
    (r"norm3", "norm3.norm"),
    (r"latents_mean", "per_channel_statistics.mean-of-means"),
    (r"latents_std", "per_channel_statistics.std-of-means"),
]
DC_NAMES = [
    (r"encoder\.conv_in", "encoder.project_in.conv"),
    (r"encoder\.conv_out", "encoder.project_out.main.op_list.0.conv"),
    (r"decoder\.conv_in", "decoder.project_in.main.conv"),
    (r"decoder\.norm_out", "decoder.project_out.op_list.0"),
    (r"decoder\.conv_out", "decoder.project_out.op_list.2.conv"),
    (r"conv_out\.conv_(inverted|depth|point)", r"local_module.main.\1_conv.conv"),
    (r"conv_out\.norm", "local_module.main.point_conv.norm"),
    (r"attn\.to_qkv_multiscale\.0\.proj_in", "context_module.main.aggreg.0.0"),
    (r"attn\.to_qkv_multiscale\.0\.proj_out", "context_module.main.aggreg.0.1"),
    (r"attn\.to_q\.", "context_module.main.qkv.conv."),
    (r"attn\.to_out", "context_module.main.proj.conv"),
    (r"attn\.norm_out", "context_module.main.proj.norm"),
    (r"\.(\d)\.conv([12])\.", r".\1.main.conv\2.conv."),
    (r"\.(\d)\.norm\.", r".\1.main.conv2.norm."),
    (r"down_blocks\.(\d)\.(\d)\.conv\.", r"down_blocks.\1.\2.main.conv."),
    (r"up_blocks\.(\d)\.(\d)\.conv\.", r"up_blocks.\1.\2.main.conv.conv."),
    (r"(?:down|up)_blocks\.(\d)\.(\d)", r"stages.\1.op_list.\2"),
]
NAMES = {
    "AutoencoderKL": KL_NAMES,
    "AutoencoderDC": DC_NAMES,
    "AutoencoderKLWan": WAN_NAMES,
    "AutoencoderKLQwenImage": WAN_NAMES,
    "AutoencoderKLLTXVideo": LTX_NAMES,
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


def original(model):
    """The weights of a model of diffusers as the original file of its family has them."""
    kind = type(model).__name__
    state, out = model.state_dict(), {}
    last = len(model.config.block_out_channels) - 1 if kind == "AutoencoderKL" else 0
    for name, value in state.items():
        if kind == "AutoencoderDC" and re.search(r"to_[kv]\.", name):
            continue
        if kind == "AutoencoderDC" and "to_q." in name:
            value = torch.cat([state[name.replace("to_q", f"to_{c}")] for c in "qkv"])
        for pattern, replacement in NAMES[kind]:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"up\.-(\d)", lambda m: f"up.{last - int(m[1])}", name)
        if kind in ("AutoencoderKLWan", "AutoencoderKLQwenImage"):
            name = re.sub(
                r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name
            )
        if value.ndim == 2:  # 1 x 1 convolutions that diffusers has as linear layers
            value = value[..., None, None]
        out[name] = value.clone()
    if kind == "AutoencoderKLLTXVideo":
        spare = torch.ones_like(out["per_channel_statistics.mean-of-means"])
        more = ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")
        out |= {f"per_channel_statistics.{k}": spare.clone() for k in more}
        out = {f"vae.{k}": v for k, v in out.items()}
    return out


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


# (b) files


@pytest.mark.parametrize("name", TINY)
def test_a_sharded_folder_is_read(name, tmp_path):
    model = foreign(name)
    model.save_pretrained(tmp_path / "vae", max_shard_size=20_000)
    assert (tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json").exists()
    sources = [(tmp_path / "vae", None), (tmp_path, None), (str(tmp_path), "vae")]
    for source, subfolder in sources if name == "kl" else sources[1:2]:
        found = load(source, subfolder)
        assert not found.training
        assert shapes(found.state_dict()) == shapes(tiny(name).state_dict())
        assert weights_hash(found) == weights_hash(Foreign(model))


def test_dtype(tmp_path):
    foreign("ltx").to(torch.float16).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        found = load(tmp_path, dtype=dtype)
        assert {v.dtype for v in found.state_dict().values()} == {dtype}
        assert found(pixels("ltx").to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["kl", "dc", "wan2.1", "ltx", "qwen-image"])
def test_an_original_file_is_read(name, tmp_path, monkeypatch):
    model = foreign(name)
    monkeypatch.setitem(PUBLISHED, "tiny", TINY[name][:2])
    file = original(model)
    # alone; and as part of a whole checkpoint, with what training left
    save_file(file, tmp_path / "alone.safetensors")
    bare = {k.removeprefix("vae."): v for k, v in file.items()}
    whole = {f"{'vae' if 'ltx' in name else 'first_stage_model'}.{k}": v for k, v in bare.items()}
    whole |= {"model.diffusion_model.out.weight": torch.ones(2, 2)}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(
        bare | {"model_ema.decay": torch.ones(()), "loss.logvar": torch.ones(())}, tmp_path / "b.safetensors"
    )
    save_file(model.state_dict(), tmp_path / "diffusers.safetensors")
    for path in sorted(tmp_path.iterdir()):
        found = load(path, config="tiny")
        assert not found.training
        assert weights_hash(found) == weights_hash(Foreign(model))


@pytest.mark.parametrize("name", ["wan2.2", "cogvideox"])
def test_original_files_that_diffusers_cannot_read(name, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", TINY[name][:2])
    save_file({"decoder.conv1.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"as tiny: the original layout of this .* is not read"):
        load(tmp_path / "a.safetensors", config="tiny")
    save_file(foreign(name).state_dict(), tmp_path / "b.safetensors")
    assert torch.equal(load(tmp_path / "b.safetensors", config="tiny").mean, tiny(name).mean)


# (c) the functions


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("moving", [False, True], ids=["picture", "clip"])
def test_parity_with_diffusers(name, moving):
    model = foreign(name)
    x = clip(name) if moving else pixels(name)
    own = x
    if TINY[name][3] > 1 and not moving:
        own = x[:, :, None]
    if TINY[name][3] == 1 and moving:
        own = x.transpose(1, 2).reshape(-1, 3, *x.shape[-2:])
    mean, std = statistics(model)
    with torch.no_grad():
        found = model.encode(own)
        raw = found.latent if name == "dc" else found.latent_dist.mode()
        logvar = torch.full_like(raw, SHARP) if name == "dc" else found.latent_dist.logvar - 2 * std.log()
        temb = (torch.zeros(len(own)),) if name == "ltx_timed" else ()
        back = model.decode(raw, *temb).sample
        z, spread = Foreign(model).posterior(x)
        decoded = Foreign(model).decode(z)
    factor, time_factor, channels = TINY[name][2:]
    frames = (1 + (x.shape[2] - 1) // time_factor,) if moving else ()
    assert z.shape == spread.shape == (2, channels, *frames, *(s // factor for s in x.shape[-2:]))
    assert decoded.shape == x.shape

    def house(y):
        if TINY[name][3] > 1:
            return y if moving else y[:, :, 0]
        return y.reshape(2, -1, *y.shape[1:]).transpose(1, 2) if moving else y

    torch.testing.assert_close(z, house((raw - mean) / std), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(spread, house(logvar.expand_as(raw)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded, house(back), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Foreign(model)(x), decoded)


def test_logvar_is_that_of_the_normalised_latent():
    """Samples of the model's own posterior, normalised, have the variance that the wrapper tells."""
    model = foreign("kl_means")
    x = pixels("kl_means")
    mean, std = statistics(model)
    with torch.no_grad():
        own, (_, logvar) = model.encode(x).latent_dist, Foreign(model).posterior(x)
        z = torch.stack([(own.sample() - mean) / std for _ in range(2000)])
    assert (z.var(0) / logvar.exp()).sub(1).abs().max() < 0.25


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_part(name):
    model = tiny(name)
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.model.parameters()}
    model(clip(name)).square().sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    assert not [k for k, g in grads.items() if g is None]
    for part in ("encoder", "decoder"):
        moved = [g.abs().max() > 0 for k, g in grads.items() if part in k]
        assert sum(moved) > 0.9 * len(moved)


def test_tiles_are_off():
    model = foreign("kl")
    model.enable_tiling()
    model.enable_slicing()
    Foreign(model)
    assert not model.use_tiling and not model.use_slicing


@pytest.mark.parametrize("name", SIX)
def test_calibrate(name):
    model = tiny(name)
    x = clip(name)
    with torch.no_grad():
        before = model(x)
    model.calibrate(x)
    with torch.no_grad():
        z, after = model.encode(x), model(x)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    if name == "dc":
        assert abs(z.square().mean() - 1) < 1e-5
        return
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert (z.std((0, 2, 3, 4)) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("name", SIX)
def test_save_and_load(name, tmp_path):
    model = tiny(name)
    first = weights_hash(model)
    assert first == weights_hash(tiny(name))
    model.calibrate(clip(name))
    with torch.no_grad():
        next(model.model.decoder.parameters()).add_(0.1)
    assert weights_hash(model) != first
    save(model, tmp_path / "a")
    save(model, tmp_path / "a")
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    again = load(tmp_path / "a")
    assert weights_hash(again) == weights_hash(model)
    assert again.config == model.config or json.dumps(again.config.foreign) == json.dumps(
        model.config.foreign
    )
    x = clip(name)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(again.encode(x), model.encode(x))
        # and diffusers, by its pipelines' convention, says the same
        theirs = type(model.model).from_pretrained(tmp_path / "a")
        mean, std = statistics(theirs)
    torch.testing.assert_close(mean.expand_as(model.mean), model.mean)
    torch.testing.assert_close(std.expand_as(model.std), model.std)


def test_the_hash_follows_weights_and_statistics():
    model = tiny("ltx")
    first = weights_hash(model)
    with torch.no_grad():
        model.model.decoder.conv_in.conv.bias[0] += 1e-3
    second = weights_hash(model)
    model.calibrate(pixels("ltx", 9))
    assert len({first, second, weights_hash(model)}) == 3


@pytest.mark.parametrize("name", SIX)
def test_example(name):
    model = tiny(name)
    (x,) = model.example()
    assert x.shape[:2] == (2, 3) and x.ndim == (5 if name in VIDEO else 4)
    with torch.no_grad(), torch.device("meta"):
        model.to("meta").encode(model.example(device="meta")[0])


# (d) errors


@pytest.mark.parametrize(
    "name, call, shape, message",
    [
        ("kl", "encode", (1, 3, 5, 4), r"pixels of 5 x 4: expected multiples of 2"),
        ("wan2.2", "encode", (1, 3, 16, 24), r"pixels of 16 x 24: expected multiples of 16"),
        ("wan2.1", "encode", (1, 3, 4, 8, 8), r"pixels of 4 frames: expected 1 \+ 4 k"),
        ("ltx", "encode", (1, 3, 8, 32, 32), r"pixels of 8 frames: expected 1 \+ 8 k"),
        ("cogvideox", "encode", (1, 3, 5, 8, 8), r"pixels of 5 frames: expected 1 \+ 8 k"),
        ("cogvideox", "decode", (1, 4, 2, 1, 1), r"latents of 2 frames: expected 1 \+ 2 k"),
        ("qwen-image", "decode", (1, 16, 1, 1), r"latents of shape \(1, 16, 1, 1\): expected \(B, 4, H, W\)"),
        ("kl", "encode", (1, 1, 4, 4), r"pixels of shape \(1, 1, 4, 4\): expected \(B, 3, H, W\)"),
        ("kl", "encode", (3, 4, 4), r"pixels of shape \(3, 4, 4\)"),
    ],
)
def test_shapes_are_checked(name, call, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny(name), call)(torch.zeros(shape))


def test_cogvideox_gives_four_frames_for_each_of_an_even_number():
    """Why its clips have 1 + 8 k frames: diffusers returns more frames than it was given."""
    model = foreign("cogvideox")
    with torch.no_grad():
        z = model.encode(torch.zeros(1, 3, 5, 8, 8)).latent_dist.mode()
        assert model.decode(z).sample.shape[2] == 8


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^no such place: no such file or folder, and not a hub id"):
        load("no such place")
    with pytest.raises(ValueError, match=r"^nobody/nothing: no config.json of an autoencoder.*\)$"):
        load("nobody/nothing")
    with pytest.raises(ValueError, match=r"no config.json of an autoencoder, neither there nor in vae/"):
        load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    save(tiny("kl"), tmp_path / "vae")
    return tmp_path / "vae"


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_folders_with_broken_weights(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(folder, r"vae: no whole AutoencoderKL \(.*diffusion_pytorch_model\.safetensors")
    save_file({k: v for k, v in state.items() if k != "encoder.conv_in.bias"}, weights)
    refused(folder, r"vae: 'encoder.conv_in.bias' is missing \(1 such names\)$")
    save_file(state | {"more": torch.ones(1)}, weights)
    refused(folder, r"vae: 'more' is not part of the model \(1 such names\)$")
    save_file(state | {"encoder.conv_in.bias": torch.ones(3)}, weights)
    refused(folder, r"vae: no whole AutoencoderKL \(.*encoder.conv_in.bias")
    weights.rename(folder / "diffusion_pytorch_model.bin")
    refused(folder, r"vae: no safetensors; pickled weights are never read")


def test_folders_without_a_shard(tmp_path):
    foreign("kl").save_pretrained(tmp_path, max_shard_size=20_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[0]
    gone.unlink()
    refused(tmp_path, f"no whole AutoencoderKL .*{gone.name}")


def test_folders_with_broken_configs(folder):
    config = folder / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"_class_name": "VQModel"}))
    refused(folder, r"unknown _class_name in .*vae: 'VQModel'; known: AutoencoderKL, ")
    config.write_text("[]")
    refused(folder, r"unknown _class_name in .*vae: None; known")
    for wrong in ({"block_out_channels": []}, {"latent_channels": "4"}, {"down_block_types": ["None"] * 2}):
        config.write_text(json.dumps(told | wrong))
        refused(folder, r"vae: no whole AutoencoderKL \(.+\)$")
    config.write_text(json.dumps(told | {"layers_per_block": 2}))
    refused(folder, r"vae: .* is missing \(\d+ such names\)")
    config.write_text("{")
    refused(folder, r"vae: no config.json of an autoencoder")


def test_files_that_are_broken(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", TINY["kl"][:2])
    path = tmp_path / "a.safetensors"
    state = original(foreign("kl"))
    save_file(state, path)
    with pytest.raises(ValueError, match=r"a\.safetensors: a single file needs config=, one of sd1\.5, "):
        load(path)
    with pytest.raises(ValueError, match=r"unknown autoencoder 'sd9'; known: sd1\.5, "):
        load(path, config="sd9")
    with pytest.raises(ValueError, match=r"a\.safetensors as flux: "):
        load(path, config="flux")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors: not a whole safetensors file"):
        load(path, config="tiny")
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: not a whole safetensors file"):
        load(tmp_path / "a.ckpt", config="tiny")
    # a level more than the config has: the mapping of diffusers would leave it out
    save_file(state | {"encoder.mid.attn_2.q.weight": torch.ones(16, 16)}, path)
    with pytest.raises(ValueError, match=r"as tiny: .*(256 values more|not part of the model)"):
        load(path, config="tiny")
    save_file(state | {"encoder.conv_in.bias": torch.ones(3)}, path)
    with pytest.raises(
        ValueError, match=r"as tiny: 'encoder.conv_in.bias' has shape \(3,\), expected \(8,\)"
    ):
        load(path, config="tiny")
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"as tiny: 'decoder.conv_in.bias' is missing"):
        load(path, config="tiny")


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"unknown class of autoencoder 'Linear'; known: AutoencoderKL, "):
        Foreign(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"unknown autoencoder 'sd9'"):
        published("sd9")


def test_save_leaves_other_folders_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        save(tiny("kl"), tmp_path)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match="diffusers"):
        published("sdxl")
