"""Tiny whole pipelines of diffusers, random, as its own save_pretrained writes them."""

import json
import tempfile
from pathlib import Path

import tiny_text
import torch

UNET = {
    "sample_size": 16,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DC = ("ResBlock", "ResBlock", "EfficientViTBlock")
# family -> denoiser, autoencoder, scheduler, each as class of diffusers and config
PARTS = {
    "sd1.5": (
        ("UNet2DConditionModel", UNET | {"cross_attention_dim": 16}),
        ("AutoencoderKL", {"scaling_factor": 0.18215}),
        ("PNDMScheduler", BETAS | {"skip_prk_steps": True, "steps_offset": 1}),
    ),
    "sdxl": (
        (
            "UNet2DConditionModel",
            UNET
            | {
                "cross_attention_dim": 40,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 24 + 6 * 8,
                "use_linear_projection": True,
            },
        ),
        ("AutoencoderKL", {"scaling_factor": 0.13025}),
        ("EulerDiscreteScheduler", BETAS),
    ),
    "sd3": (
        (
            "SD3Transformer2DModel",
            {
                "sample_size": 16,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "joint_attention_dim": 64,
                "caption_projection_dim": 16,
                "pooled_projection_dim": 40,
                "in_channels": 4,
                "out_channels": 4,
                "pos_embed_max_size": 16,
            },
        ),
        ("AutoencoderKL", {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ),
    "pixart-alpha": (
        (
            "PixArtTransformer2DModel",
            {
                "sample_size": 16,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 2,
                "cross_attention_dim": 16,
                "caption_channels": 64,
                "in_channels": 4,
                "out_channels": 8,
            },
        ),
        ("AutoencoderKL", {"scaling_factor": 0.18215}),
        ("DPMSolverMultistepScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
    ),
    "sana": (
        (
            "SanaTransformer2DModel",
            {
                "sample_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": 16,
                "caption_channels": 24,
                "patch_size": 1,
            },
        ),
        (
            "AutoencoderDC",
            {
                "latent_channels": 4,
                "attention_head_dim": 8,
                "encoder_block_types": DC,
                "decoder_block_types": DC,
                "encoder_block_out_channels": (8, 16, 32),
                "decoder_block_out_channels": (8, 16, 32),
                "encoder_layers_per_block": (1, 1, 1),
                "decoder_layers_per_block": (1, 1, 1),
                "encoder_qkv_multiscales": ((), (), (5,)),
                "decoder_qkv_multiscales": ((), (), (5,)),
                "downsample_block_type": "conv",
                "upsample_block_type": "interpolate",
                "scaling_factor": 0.41407,
            },
        ),
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
    ),
}
KL = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def saved(family, folder):
    """diffusers' pipeline of ``family`` in ``folder``."""
    import diffusers
    import transformers

    denoiser, vae, scheduler = PARTS[family]
    torch.manual_seed(0)
    network = getattr(diffusers, denoiser[0])(**denoiser[1])
    for p in network.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3 / p[0].numel() ** 0.5)
        elif not p.any():
            torch.nn.init.normal_(p, std=0.05)
    config = vae[1] if vae[0] == "AutoencoderDC" else KL | vae[1]
    parts = {
        "vae": getattr(diffusers, vae[0])(**config),
        "scheduler": getattr(diffusers, scheduler[0])(**scheduler[1]),
        "unet" if "UNet" in denoiser[0] else "transformer": network,
    }
    with tempfile.TemporaryDirectory() as name:
        text = tiny_text.folder_of(family, Path(name) / "text")
        told = json.loads((text / "model_index.json").read_text())
        for key, value in told.items():
            if key.startswith("text_encoder"):
                parts[key] = getattr(transformers, value[1]).from_pretrained(text / key)
            elif key.startswith("tokenizer"):
                parts[key] = transformers.AutoTokenizer.from_pretrained(text / key)
        if family == "sd1.5":
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        getattr(diffusers, told["_class_name"])(**parts).save_pretrained(folder)
    return folder
