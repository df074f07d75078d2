"""Tiny denoisers of every family, and the names that the original files of their families use."""

import json
import re

import diffusers
import torch

from pocketdiffusion.teachers.convert import process
from pocketdiffusion.teachers.diffusers import Foreign
from pocketdiffusion.teachers.published import PUBLISHED

UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
    "sample_size": 8,
}
SDXL = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 10,
}
SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
    "qk_norm": "rms_norm",
    "dual_attention_layers": (0,),
}
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "guidance_embeds": True,
    "axes_dims_rope": (2, 2, 4),
}
QWEN = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (2, 2, 4),
}
PIXART = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "cross_attention_dim": 24,
    "caption_channels": 12,
    # the pipeline tells the size of the picture only to networks of this sample size
    "sample_size": 128,
}
SANA = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "sample_size": 4,
    "timestep_scale": 0.5,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
}
WAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
LTX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "num_layers": 2,
    "caption_channels": 12,
}
# name -> class, config, published model whose scheduler it has
TINY = {
    "sd1.5": ("UNet2DConditionModel", UNET, "sd1.5"),
    "sd2.1": ("UNet2DConditionModel", UNET | {"use_linear_projection": True}, "sd2.1"),
    "sdxl": ("UNet2DConditionModel", SDXL, "sdxl"),
    "sd3": ("SD3Transformer2DModel", SD3, "sd3.5-medium"),
    "flux": ("FluxTransformer2DModel", FLUX, "flux-dev"),
    "qwen": ("QwenImageTransformer2DModel", QWEN, "qwen-image"),
    "pixart": ("PixArtTransformer2DModel", PIXART, "pixart-alpha-1024"),
    "sana": ("SanaTransformer2DModel", SANA, "sana-1.6b"),
    "dit": ("DiTTransformer2DModel", DIT, "dit-xl-2-256"),
    "wan": ("WanTransformer3DModel", WAN, "wan2.1-1.3b"),
    "ltx": ("LTXVideoTransformer3DModel", LTX, "ltx-0.9"),
}
VIDEO = ("wan", "ltx")
FLOWS = [k for k, v in TINY.items() if PUBLISHED[v[2]].scheduler["_class_name"] != "DDIMScheduler"]


def network(name):
    """The tiny model as diffusers builds it; layers that start at zero get noise."""
    torch.manual_seed(0)
    kind, config, _ = TINY[name]
    model = getattr(diffusers, kind)(**config).eval()
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return model


def path(name):
    return process(PUBLISHED[TINY[name][2]].scheduler, name)


def tiny(name):
    return Foreign(network(name), path(name)).eval()


def pipeline(name, folder):
    """A pipeline's folder: the denoiser in shards, its scheduler."""
    place = folder / ("unet" if name.startswith("sd") and name != "sd3" else "transformer")
    network(name).save_pretrained(place, max_shard_size=30_000)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(path(name).config))
    return place


def shapes(state):
    return {k: tuple(v.shape) for k, v in state.items()}


def size(shapes, dtype, metadata):
    """Bytes of a safetensors file."""
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + torch.Size(shape).numel() * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


# Names of diffusers -> names of the original files, as (pattern, replacement) in order.
UNET_NAMES = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"(resnets\.\d)\.norm1", r"\1.in_layers.0"),
    (r"(resnets\.\d)\.conv1", r"\1.in_layers.2"),
    (r"(resnets\.\d)\.norm2", r"\1.out_layers.0"),
    (r"(resnets\.\d)\.conv2", r"\1.out_layers.3"),
    (r"time_emb_proj", "emb_layers.1"),
    (r"conv_shortcut", "skip_connection"),
    (r"mid_block\.resnets\.0", "middle_block.0"),
    (r"mid_block\.attentions\.0", "middle_block.1"),
    (r"mid_block\.resnets\.1", "middle_block.2"),
]
SD3_NAMES = [
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks", "joint_blocks"),
    (r"attn\.norm_added_([qk])", r"context_block.attn.ln_\1"),
    (r"(attn2?)\.norm_([qk])", r"x_block.\1.ln_\2"),
    (r"attn\.add_qkv_proj", "context_block.attn.qkv"),
    (r"(attn2?)\.to_qkv", r"x_block.\1.qkv"),
    (r"attn\.to_add_out", "context_block.attn.proj"),
    (r"(attn2?)\.to_out\.0", r"x_block.\1.proj"),
    (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"ff\.net\.2", "x_block.mlp.fc2"),
]
FLUX_NAMES = [
    (r"^time_text_embed\.timestep_embedder", "time_in"),
    (r"^time_text_embed\.text_embedder", "vector_in"),
    (r"^time_text_embed\.guidance_embedder", "guidance_in"),
    (r"_in\.linear_1", "_in.in_layer"),
    (r"_in\.linear_2", "_in.out_layer"),
    (r"^context_embedder", "txt_in"),
    (r"^x_embedder", "img_in"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^single_transformer_blocks", "single_blocks"),
    (r"(single_blocks\.\d+)\.norm\.linear", r"\1.modulation.lin"),
    (r"(single_blocks\.\d+)\.attn\.to_qkv", r"\1.linear1"),
    (r"(single_blocks\.\d+)\.proj_out", r"\1.linear2"),
    (r"(single_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
    (r"(single_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
    (r"^transformer_blocks", "double_blocks"),
    (r"norm1\.linear", "img_mod.lin"),
    (r"norm1_context\.linear", "txt_mod.lin"),
    (r"attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"attn\.to_qkv", "img_attn.qkv"),
    (r"attn\.add_qkv_proj", "txt_attn.qkv"),
    (r"attn\.to_out\.0", "img_attn.proj"),
    (r"attn\.to_add_out", "txt_attn.proj"),
    (r"ff\.net\.0\.proj", "img_mlp.0"),
    (r"ff\.net\.2", "img_mlp.2"),
    (r"ff_context\.net\.0\.proj", "txt_mlp.0"),
    (r"ff_context\.net\.2", "txt_mlp.2"),
]
SANA_NAMES = [
    (r"^patch_embed", "x_embedder"),
    (r"^time_embed\.emb\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_embed\.emb\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_embed\.linear", "t_block.1"),
    (r"^caption_projection\.linear_", "y_embedder.y_proj.fc"),
    (r"^caption_norm", "attention_y_norm"),
    (r"^scale_shift_table", "final_layer.scale_shift_table"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks", "blocks"),
    (r"attn1\.to_qkv", "attn.qkv"),
    (r"attn1\.to_out\.0", "attn.proj"),
    (r"attn2\.to_q\.", "cross_attn.q_linear."),
    (r"attn2\.to_kv", "cross_attn.kv_linear"),
    (r"attn2\.to_out\.0", "cross_attn.proj"),
    (r"ff\.conv_(inverted|depth|point)", r"mlp.\1_conv.conv"),
]
WAN_NAMES = [
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"\.scale_shift_table", ".modulation"),
    (r"attn1\.", "self_attn."),
    (r"attn2\.", "cross_attn."),
    (r"to_out\.0", "o"),
    (r"to_([qkv])\.", r"\1."),
    (r"ffn\.net\.0\.proj", "ffn.0"),
    (r"ffn\.net\.2", "ffn.2"),
    (r"(blocks\.\d+)\.norm2", r"\1.norm3"),
]
LTX_NAMES = [
    (r"^proj_in", "patchify_proj"),
    (r"^time_embed", "adaln_single"),
    (r"norm_([qk])", r"\1_norm"),
]
NAMES = {
    "UNet2DConditionModel": UNET_NAMES,
    "SD3Transformer2DModel": SD3_NAMES,
    "FluxTransformer2DModel": FLUX_NAMES,
    "SanaTransformer2DModel": SANA_NAMES,
    "WanTransformer3DModel": WAN_NAMES,
    "LTXVideoTransformer3DModel": LTX_NAMES,
}
# layers that the original files hold joined, as (first, the others, name of all)
JOINED = {
    "SD3Transformer2DModel": [
        ("attn.to_q.", ("attn.to_k.", "attn.to_v."), "attn.to_qkv."),
        ("attn2.to_q.", ("attn2.to_k.", "attn2.to_v."), "attn2.to_qkv."),
        ("add_q_proj", ("add_k_proj", "add_v_proj"), "add_qkv_proj"),
    ],
    "SanaTransformer2DModel": [
        ("attn1.to_q.", ("attn1.to_k.", "attn1.to_v."), "attn1.to_qkv."),
        ("attn2.to_k.", ("attn2.to_v.",), "attn2.to_kv."),
    ],
}
JOINED["FluxTransformer2DModel"] = JOINED["SD3Transformer2DModel"]


def joined(model):
    """The state of a model with the layers that its family's original files join."""
    kind, state = type(model).__name__, dict(model.state_dict())
    for first, others, name in JOINED.get(kind, ()):
        for key in [k for k in state if first in k]:
            parts = [key, *(key.replace(first, other) for other in others)]
            if key.startswith("single_transformer_blocks"):  # FLUX: the feed-forward layer too
                parts.append(key.replace("attn.to_q", "proj_mlp"))
            state[key.replace(first, name)] = torch.cat([state.pop(k) for k in parts])
    return state


def original(model):
    """The weights of a model of diffusers as the original file of its family has them."""
    kind, out = type(model).__name__, {}
    layers = model.config.layers_per_block if kind == "UNet2DConditionModel" else 0
    last = (
        f"transformer_blocks.{model.config.num_layers - 1}.norm1_context"
        if kind.startswith("SD3")
        else "norm_out"
    )
    for name, value in joined(model).items():
        if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel") and name.startswith(
            (last, "norm_out")
        ):
            scale, shift = value.chunk(2)
            value = torch.cat([shift, scale])
        for pattern, replacement in NAMES[kind]:
            name = re.sub(pattern, replacement, name)
        if kind == "UNet2DConditionModel":
            name = numbered(name, layers, model)
        out[name] = value.clone()
    if kind == "SanaTransformer2DModel":
        more = {"pos_embed": (1, 16, 16), "y_embedder.y_embedding": (300, 12)}
        out |= {k: torch.ones(shape, device=value.device) for k, shape in more.items()}
    return out


def numbered(name, layers, model):
    """Blocks of a U-Net, which diffusers counts by level and the original file from end to end."""
    part = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    if not part:
        return name
    side, level, what, i, rest = part[1], int(part[2]), part[3], int(part[4]), part[5]
    first = level * (layers + 1)
    if what == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if what == "upsamplers":
        place = 2 if hasattr(model.up_blocks[level], "attentions") else 1
        return f"output_blocks.{first + layers}.{place}.{rest}"
    block = f"input_blocks.{1 + first + i}" if side == "down" else f"output_blocks.{first + i}"
    return f"{block}.{0 if what == 'resnets' else 1}.{rest}"
