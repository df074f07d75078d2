"""Configurations of published denoisers: network, noising process, autoencoder.

Networks are written as what differs from the class's defaults in diffusers 0.42. Sources: diffusers' own
scripts/convert_*, its single-file mapping and the class defaults, else the papers' tables; the tests compare
parameter counts with the published ones. Schedules are those of the published scheduler_config.json, from
memory: betas of Stable Diffusion (0.00085 to 0.012, linear in their root), of DiT and PixArt-alpha (0.0001 to
0.02, linear); a shift of 3 for SD3, SD3.5, Sana and Wan 2.1 at 480p, 5 for Wan at 720p.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    kind: str  # class of diffusers
    config: dict[str, Any]
    scheduler: dict[str, Any]
    latents: str  # in teachers.autoencoders.PUBLISHED


# fmt: off
_BETAS = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "prediction_type": "epsilon"}
_SD = _BETAS | {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
_LINEAR = _BETAS | {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
_SD3 = _FLOW | {"shift": 3.0}
_DYNAMIC = _FLOW | {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 4096}


def _flow_shift(kind: str, shift: float) -> dict[str, Any]:
    return {"_class_name": kind, "num_train_timesteps": 1000, "prediction_type": "flow_prediction",
            "use_flow_sigmas": True, "flow_shift": shift}


_SDXL = {
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "sample_size": 128}
_MMDIT = {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
# Latents: the autoencoders of SD2.1, of DiT and of PixArt-alpha have SD1.5's encoder, their decoders differ.
PUBLISHED: dict[str, Published] = {
    "sd1.5": Published(
        "UNet2DConditionModel", {"cross_attention_dim": 768, "sample_size": 64}, _SD, "sd1.5"),
    "sd2.1": Published(  # the 768-pixel one
        "UNet2DConditionModel", {
            "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
            "upcast_attention": True, "sample_size": 96},
        _SD | {"prediction_type": "v_prediction"}, "sd1.5"),
    "sdxl": Published("UNet2DConditionModel", _SDXL, _SD, "sdxl"),
    "sd3-medium": Published("SD3Transformer2DModel", _MMDIT, _SD3, "sd3"),
    "sd3.5-medium": Published(
        "SD3Transformer2DModel", _MMDIT | {
            "qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
        _SD3, "sd3"),
    "sd3.5-large": Published(
        "SD3Transformer2DModel", _MMDIT | {
            "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
            "qk_norm": "rms_norm"},
        _SD3, "sd3"),
    "flux-dev": Published("FluxTransformer2DModel", {"guidance_embeds": True}, _DYNAMIC, "flux"),
    "flux-schnell": Published("FluxTransformer2DModel", {}, _FLOW | {"shift": 1.0}, "flux"),
    "qwen-image": Published(
        "QwenImageTransformer2DModel", {}, _DYNAMIC | {"max_shift": 0.9, "shift_terminal": 0.02},
        "qwen-image"),
    "pixart-alpha-1024": Published(
        "PixArtTransformer2DModel", {"caption_channels": 4096}, _LINEAR, "sd1.5"),
    "sana-1.6b": Published(  # the 1024-pixel one
        "SanaTransformer2DModel", {}, _flow_shift("DPMSolverMultistepScheduler", 3.0), "dc-ae-f32c32"),
    "dit-xl-2-256": Published("DiTTransformer2DModel", {"out_channels": 8}, _LINEAR, "sd1.5"),
    "wan2.1-1.3b": Published(
        "WanTransformer3DModel", {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
        _flow_shift("UniPCMultistepScheduler", 3.0), "wan2.1"),
    "wan2.1-14b": Published(
        "WanTransformer3DModel", {}, _flow_shift("UniPCMultistepScheduler", 5.0), "wan2.1"),
    "ltx-0.9": Published(
        "LTXVideoTransformer3DModel", {},
        _DYNAMIC | {"base_image_seq_len": 1024, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1},
        "ltx-0.9"),
}
# fmt: on


def known_name(name: str) -> None:
    """ValueError unless ``name`` is one of PUBLISHED."""
    if name not in PUBLISHED:
        raise ValueError(f"unknown denoiser {name!r}; known: {', '.join(PUBLISHED)}")


def like(model: Any) -> Published | None:
    """The published model whose configuration is that of ``model``, a size of picture aside."""
    parameters = inspect.signature(type(model).__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if k not in ("self", "sample_size")}
    found = plain({k: model.config[k] for k in defaults})
    for entry in PUBLISHED.values():
        wanted = defaults | {k: v for k, v in entry.config.items() if k in defaults}
        if entry.kind == type(model).__name__ and plain(wanted) == found:
            return entry
    return None


def plain(config: dict[str, Any]) -> str:
    """Equal for lists and tuples, as a JSON file does not tell them apart."""
    return json.dumps(config, sort_keys=True)
