"""Configurations of published autoencoders: class, and what differs from its defaults.

Of diffusers 0.42. Values are from its scripts/convert_*; the tests compare the layouts with the published
files, to the byte.
"""

from __future__ import annotations

from typing import Any

# fmt: off
_KL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024,
       "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
_KL16 = _KL | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_DC = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_WAN22_MEAN = (  # Wan2.2-TI2V-5B-Diffusers, vae/config.json
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667)
_WAN22_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
    0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
    0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
    1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744)
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1.5": ("AutoencoderKL", _KL | {"sample_size": 512, "scaling_factor": 0.18215}),
    "sdxl": ("AutoencoderKL", _KL | {"scaling_factor": 0.13025}),
    "sd3": ("AutoencoderKL", _KL16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "flux": ("AutoencoderKL", _KL16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "dc-ae-f32c32": ("AutoencoderDC", {  # SANA's: dc-ae-f32c32-sana-1.0
        "encoder_block_types": _DC, "decoder_block_types": _DC, "scaling_factor": 0.41407,
        "downsample_block_type": "conv", "upsample_block_type": "interpolate"}),
    "wan2.1": ("AutoencoderKLWan", {}),  # of Wan2.2 A14B too
    "wan2.2-5b": ("AutoencoderKLWan", {
        "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": _WAN22_MEAN,
        "latents_std": _WAN22_STD}),
    "ltx-0.9": ("AutoencoderKLLTXVideo", {}),  # mean and std come with the weights
    "cogvideox-2b": ("AutoencoderKLCogVideoX", {"scaling_factor": 1.15258426}),
    "cogvideox-5b": ("AutoencoderKLCogVideoX", {"scaling_factor": 0.7}),
    "qwen-image": ("AutoencoderKLQwenImage", {}),
}
# fmt: on
