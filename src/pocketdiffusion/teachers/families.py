"""One class of diffusers' denoisers after another: arguments, packing, blocks, widths.

    call(model, x, step, cond, settings) -> prediction      x (B, C, [T,] H, W); step counts to 1000

Each call does what the class's own pipeline does around its network, named in its docstring: FLUX and
Qwen-Image take 2 x 2 patches as tokens, LTX-Video takes tokens, SDXL and PixArt-alpha are told the size of
the picture, Wan 2.1 reads 512 tokens of which those behind the text are zero.

A mask is passed on where the pipeline passes one: Qwen-Image, PixArt-alpha, Sana, LTX-Video. The others
attend to every token: give them what their own pipelines do (77 of CLIP, 77 + 256 for SD3, 512 for FLUX-dev).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..types import Cond

PIXELS = 8  # per latent pixel, of the autoencoders of SDXL and PixArt-alpha
WAN_TEXT = 512  # tokens of text that Wan 2.1 was trained with


@dataclass(frozen=True)
class Settings:
    """What some networks are told beside x, t and the text."""

    guidance: float = 3.5  # of the guidance-distilled FLUX-dev; the default of its pipeline
    fps: float = 25.0  # of the clips that LTX-Video makes; the default of its pipeline


Call = Callable[[Any, Tensor, Tensor, Cond, Settings], Tensor]


@dataclass(frozen=True)
class Family:
    call: Call
    blocks: tuple[str, ...]  # module lists (or one module) that x passes in this order
    text: str | None = None  # key of the config that says the width of cond.tokens
    pooled: Callable[[Any], int | None] = lambda config: None  # width of cond.pooled
    picture: int = 0  # which of a block's outputs is the picture's
    packed: int = 1  # pixels of the latent to a side of a token, before the network's own patches
    clips: bool = False
    square: bool = False  # the class knows no other pictures
    flow: bool = False  # all published models of this class predict the velocity of flow matching
    patch: Callable[[Any], tuple[int, int]] = lambda config: (1, config.patch_size)  # frames, pixels


def unet(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """StableDiffusionPipeline, and StableDiffusionXLPipeline with the size of an uncropped picture."""
    added = None
    if model.config.addition_embed_type == "text_time":
        h, w = PIXELS * x.shape[-2], PIXELS * x.shape[-1]
        added = {
            "text_embeds": cond.pooled,
            "time_ids": step.new_tensor([[h, w, 0, 0, h, w]]).expand(len(x), -1),
        }
    return model(x, step, cond.tokens, added_cond_kwargs=added).sample


def sd3(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """StableDiffusion3Pipeline."""
    return model(x, cond.tokens, cond.pooled, step).sample


def flux(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """FluxPipeline, with its _pack_latents and _prepare_latent_image_ids."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    places = torch.zeros(h, w, 3, device=x.device)
    places[..., 1] = torch.arange(h, device=x.device)[:, None]
    places[..., 2] = torch.arange(w, device=x.device)
    guidance = step.new_full((len(x),), settings.guidance) if model.config.guidance_embeds else None
    tokens = model(
        hidden_states=packed(x),
        encoder_hidden_states=cond.tokens,
        pooled_projections=cond.pooled,
        timestep=step / 1000,
        img_ids=places.view(-1, 3),
        txt_ids=places.new_zeros(cond.tokens.shape[1], 3),
        guidance=guidance,
    ).sample
    return unpacked(tokens, h, w)


def qwen(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """QwenImagePipeline."""
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    tokens = model(
        hidden_states=packed(x),
        encoder_hidden_states=cond.tokens,
        encoder_hidden_states_mask=cond.mask,
        timestep=step / 1000,
        img_shapes=[[(1, h, w)]] * len(x),
    ).sample
    return unpacked(tokens, h, w)


def pixart(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """PixArtAlphaPipeline."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        h, w = x.shape[-2:]
        added["resolution"] = step.new_tensor([[PIXELS * h, PIXELS * w]]).expand(len(x), -1)
        added["aspect_ratio"] = step.new_tensor([[h / w]]).expand(len(x), -1)
    mask = cond.mask.to(x.dtype)
    return model(x, cond.tokens, step, added, encoder_attention_mask=mask).sample


def sana(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """SanaPipeline."""
    mask, step = cond.mask.to(x.dtype), step * model.config.timestep_scale
    return model(x, cond.tokens, step, encoder_attention_mask=mask).sample


def dit(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """DiTPipeline; the label after the last class is the empty one."""
    return model(x, step, cond.label).sample


def wan(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """WanPipeline, with the zeros of its _get_t5_prompt_embeds; ``step`` may be (B, T)."""
    tokens = cond.tokens * cond.mask[..., None]
    tokens = F.pad(tokens, (0, 0, 0, max(WAN_TEXT - tokens.shape[1], 0)))
    return model(x, each(step, x, model.config.patch_size[:2]), tokens).sample


def ltx(model: Any, x: Tensor, step: Tensor, cond: Cond, settings: Settings) -> Tensor:
    """LTXPipeline, with its _pack_latents; ``step`` may be (B, T)."""
    p, pt = model.config.patch_size, model.config.patch_size_t
    b, _, t, h, w = x.shape
    grid = (t // pt, h // p, w // p)
    y = x.reshape(b, -1, grid[0], pt, grid[1], p, grid[2], p).permute(0, 2, 4, 6, 1, 3, 5, 7)
    found = model(
        hidden_states=y.reshape(b, grid[0] * grid[1] * grid[2], -1),
        encoder_hidden_states=cond.tokens,
        timestep=each(step, x, (pt, p)),
        encoder_attention_mask=cond.mask,
        num_frames=grid[0],
        height=grid[1],
        width=grid[2],
        # the autoencoder of LTX-Video has 8 frames and 32 pixels to one of the latent
        rope_interpolation_scale=(8 / settings.fps, 32, 32),
    ).sample
    return found.view(b, *grid, -1, pt, p, p).permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, -1, t, h, w)


def packed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Tensor, h: int, w: int) -> Tensor:
    """(B, h w, 4 C) -> (B, C, 2 h, 2 w)."""
    b, _, c = tokens.shape
    return tokens.view(b, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 2 * h, 2 * w)


def each(step: Tensor, x: Tensor, patch: tuple[int, int]) -> Tensor:
    """Steps (B, T) of the frames of ``x`` as (B, N) of its tokens; (B,) stays."""
    tokens = x.shape[-2] * x.shape[-1] // patch[1] ** 2
    return step if step.ndim == 1 else step[:, :: patch[0]].repeat_interleave(tokens, dim=1)


def _pooled(config: Any) -> int:
    return config.pooled_projection_dim


def _unet_pooled(config: Any) -> int | None:
    if config.addition_embed_type is None:
        return None
    if config.addition_embed_type != "text_time":
        raise ValueError(f"addition_embed_type {config.addition_embed_type!r}: expected None or 'text_time'")
    return config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim


FAMILIES: dict[str, Family] = {
    "UNet2DConditionModel": Family(
        unet,
        ("down_blocks", "mid_block", "up_blocks"),
        "cross_attention_dim",
        _unet_pooled,
        patch=lambda config: (1, 2 ** (len(config.block_out_channels) - 1)),
    ),
    "SD3Transformer2DModel": Family(
        sd3, ("transformer_blocks",), "joint_attention_dim", _pooled, picture=1, flow=True
    ),
    "FluxTransformer2DModel": Family(
        flux,
        ("transformer_blocks", "single_transformer_blocks"),
        "joint_attention_dim",
        _pooled,
        picture=1,
        packed=2,
        flow=True,
        patch=lambda config: (1, 2),
    ),
    "QwenImageTransformer2DModel": Family(
        qwen,
        ("transformer_blocks",),
        "joint_attention_dim",
        picture=1,
        packed=2,
        flow=True,
        patch=lambda config: (1, 2),
    ),
    "PixArtTransformer2DModel": Family(pixart, ("transformer_blocks",), "caption_channels"),
    "SanaTransformer2DModel": Family(sana, ("transformer_blocks",), "caption_channels", flow=True),
    "DiTTransformer2DModel": Family(dit, ("transformer_blocks",), square=True),
    "WanTransformer3DModel": Family(
        wan, ("blocks",), "text_dim", clips=True, flow=True, patch=lambda config: tuple(config.patch_size[:2])
    ),
    "LTXVideoTransformer3DModel": Family(
        ltx,
        ("transformer_blocks",),
        "caption_channels",
        clips=True,
        flow=True,
        patch=lambda config: (config.patch_size_t, config.patch_size),
    ),
}


def known(what: str, name: Any) -> Family:
    """The family of a class of denoisers, or ValueError."""
    if name not in FAMILIES:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
