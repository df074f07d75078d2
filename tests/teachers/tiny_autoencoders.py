"""Tiny autoencoders of diffusers, of every class that is known; their weights as original files have them."""

import re

import diffusers
import torch

from pocketdiffusion.teachers.autoencoders import Foreign

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


def shapes(state):
    return {k: tuple(v.shape) for k, v in state.items()}


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
