"""Folders of transformers -> text encoders and tokenizers: one loader, published sizes.

load("sd3-folder/")                              a pipeline in diffusers' layout: which rule, it says itself
load("stabilityai/stable-diffusion-3.5-large")   a hub id goes through the same calls
load({"clip_l": ("sdxl/", "text_encoder", "tokenizer"), ..., "gemma": "gemma-2-2b/"}, "snapgen")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .autoencoders import FAULTS, line, same
from .text import RULES, ForeignText, Rule

Place = tuple[str, str, str]  # folder or hub id, and in it the encoder's folder and the tokenizer's

# pipelines of diffusers -> the rule by which they read
PIPELINES = {
    "StableDiffusionPipeline": "sd1.5",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusion3Pipeline": "sd3",
    "FluxPipeline": "flux",
    "PixArtAlphaPipeline": "pixart-alpha",
    "PixArtSigmaPipeline": "pixart-sigma",
    "SanaPipeline": "sana",
    "QwenImagePipeline": "qwen-image",
    # not of diffusers: a denoiser of ours beside foreign encoders (export/foreign.py)
    "SnapGenPipeline": "snapgen",
}
# what a folder holds -> the class that reads it; of the last, the language model alone stays
CLASSES = {
    "CLIPTextModel": "CLIPTextModel",
    "CLIPTextModelWithProjection": "CLIPTextModelWithProjection",
    "T5EncoderModel": "T5EncoderModel",
    "Gemma2Model": "Gemma2Model",
    "Gemma2ForCausalLM": "Gemma2Model",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5_VLForConditionalGeneration",
}
FAMILIES = {"clip_l": "CLIP", "clip_g": "CLIP", "t5": "T5", "gemma": "Gemma2", "qwen": "Qwen2_5_VL"}
TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")

# fmt: off
# name -> class of transformers, and where its published config differs from the class's defaults
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "clip_l": ("CLIPTextModel", {  # openai/clip-vit-large-patch14
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}),
    "clip_g": ("CLIPTextModelWithProjection", {  # laion/CLIP-ViT-bigG-14
        "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
        "projection_dim": 1280, "hidden_act": "gelu"}),
    "t5": ("T5EncoderModel", {  # google/t5-v1_1-xxl
        "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "gemma": ("Gemma2Model", {}),  # google/gemma-2-2b-it; the defaults are those of the 2B model
    "qwen": ("Qwen2_5_VLForConditionalGeneration", {  # Qwen/Qwen2.5-VL-7B-Instruct
        "text_config": {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24],
                                "rope_theta": 1000000.0}},
        "vision_config": {"out_hidden_size": 3584, "hidden_size": 1280, "intermediate_size": 3420},
        "tie_word_embeddings": False}),
}
# fmt: on


def published(name: str) -> nn.Module:
    """The encoder published as ``name``, whole, with random weights, on the active device."""
    import transformers

    if name not in PUBLISHED:
        raise ValueError(f"unknown text encoder {name!r}; known: {', '.join(PUBLISHED)}")
    kind, config = PUBLISHED[name]
    cls: Any = getattr(transformers, kind)
    return cls(cls.config_class(**config))


def instruction() -> str:
    """What Sana puts before a prompt, as diffusers has it."""
    from inspect import signature

    import diffusers

    told = signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(told)


def load(
    source: str | Path | Mapping[str, str | Path | Place | None],
    rule: str | Rule | None = None,
    dtype: torch.dtype = torch.float32,
    width: int | None = None,
    offload: torch.device | str | None = None,
    widths: Mapping[str, int] | None = None,
) -> ForeignText:
    """Saved text encoders, frozen, on the CPU.

    ``source``: a pipeline's folder in diffusers' layout or its hub id, or a place for each part of the rule,
    which is a folder or hub id with encoder and tokenizer together, or a triple. ``rule``: a Rule, or a name
    in text.RULES; a pipeline's folder says it itself. ``width``: of the denoiser's tokens. An encoder whose
    place is None, or that the pipeline says it has not, is absent; ``widths`` says how wide it would be.
    """
    told: dict[str, Any] = {} if isinstance(source, Mapping) else index(source)
    rule = rule or PIPELINES.get(told.get("_class_name", ""))
    if (isinstance(rule, str) and rule not in RULES) or rule is None:
        raise ValueError(f"{source}: unknown rule {rule!r} for its text; known: {', '.join(RULES)}")
    chosen = RULES[rule] if isinstance(rule, str) else rule
    if isinstance(source, Mapping):
        if wrong := sorted(set(source) ^ set(chosen.parts)):
            known = ", ".join(chosen.parts)
            raise ValueError(f"text encoder {wrong[0]!r}: expected {known}, one place each (None: absent)")
        places = {name: place(where) for name, where in source.items() if where is not None}
        if not places:
            raise ValueError(f"all text encoders are absent: expected one of {', '.join(chosen.parts)}")
    else:
        places = of_pipeline(str(source), chosen, told)
    tokenizers = {name: tokenizer(where) for name, where in places.items()}
    encoders = {name: encoder(name, where, dtype) for name, where in places.items()}
    for name, one in encoders.items():
        if len(tokenizers[name]) > (vocab := one.config.vocab_size):
            where = shown(places[name], 2)
            raise ValueError(
                f"{where}: has {len(tokenizers[name])} tokens, the text encoder {name} knows {vocab}"
            )
    if chosen is RULES["sana"]:
        chosen = instructed(chosen, tokenizers["gemma"])
    zeros = chosen is RULES["sdxl"] and bool(told.get("force_zeros_for_empty_prompt", told != {}))
    return ForeignText(encoders, tokenizers, chosen, width, offload, zeros, widths)


def instructed(rule: Rule, tokenizer: Any) -> Rule:
    """Sana's rule with its instruction, whose length in tokens only the tokenizer knows."""
    part, said = rule.parts["gemma"], instruction()
    # that many ids that the last ones are those of the prompt
    length = len(tokenizer(said).input_ids) + part.keep - 2
    return replace(
        rule, parts={"gemma": replace(part, reading=replace(part.reading, length=length, prefix=said))}
    )


def index(source: str | Path) -> dict[str, Any]:
    """model_index.json of a pipeline."""
    import diffusers

    if not Path(source).is_dir() and str(source).count("/") != 1:
        raise ValueError(
            f"{source}: no such folder, and not a hub id such as PixArt-alpha/PixArt-XL-2-512x512"
        )
    try:
        told = diffusers.DiffusionPipeline.load_config(str(source))
    except (*FAULTS,) as error:
        raise ValueError(f"{source}: no readable model_index.json ({line(error)})") from None
    if not isinstance(told, dict):
        raise ValueError(f"{source}: model_index.json holds no pipeline")
    return told


def of_pipeline(source: str, rule: Rule, told: Mapping[str, Any]) -> dict[str, Place]:
    """Places of the parts in a pipeline's folder, without those that it has not."""
    found: dict[str, Place] = {}
    for i, name in enumerate(rule.parts):
        end = f"_{i + 1}" if i else ""
        for component in (f"text_encoder{end}", f"tokenizer{end}"):
            if component not in told:
                raise ValueError(f"{source}: model_index.json names no {component} ({name})")
        if told[f"text_encoder{end}"][0] is not None:
            found[name] = (source, f"text_encoder{end}", f"tokenizer{end}")
    if not found:
        raise ValueError(f"{source}: holds none of the text encoders {', '.join(rule.parts)}")
    return found


def place(where: str | Path | Place) -> Place:
    return where if isinstance(where, tuple) else (str(where), "", "")


def shown(where: Place, part: int) -> Path:
    return Path(where[0], where[part])


def tokenizer(where: Place) -> Any:
    """A tokenizer of transformers. The library makes an empty one of a folder without files."""
    import transformers

    here = shown(where, 2)
    if Path(where[0]).is_dir() and not any((here / name).exists() for name in TOKENIZERS):
        raise ValueError(f"{here}: no tokenizer, expected {' or '.join(TOKENIZERS)}")
    try:
        return transformers.AutoTokenizer.from_pretrained(where[0], subfolder=where[2])
    except (*FAULTS, ImportError) as error:
        raise ValueError(f"{here}: no readable tokenizer ({line(error)})") from None


def encoder(name: str, where: Place, dtype: torch.dtype) -> Any:
    """An encoder of the family that the part ``name`` wants; every weight named, none left over."""
    import transformers
    from safetensors import SafetensorError

    here, family = shown(where, 1), FAMILIES[name]
    try:
        config = transformers.AutoConfig.from_pretrained(where[0], subfolder=where[1])
    except (*FAULTS,) as error:
        raise ValueError(f"{here}: no readable config.json of a text encoder ({line(error)})") from None
    kind = (config.architectures or [type(config).__name__])[0]
    if kind not in CLASSES or not kind.startswith(family):
        wanted = ", ".join(k for k in CLASSES if k.startswith(family))
        raise ValueError(f"{here}: a {kind}, expected for {name}: {wanted}")
    if here.is_dir() and not list(here.glob("*.safetensors")):
        raise ValueError(f"{here}: no safetensors; pickled weights are never read, convert them first")
    cls: Any = getattr(transformers, CLASSES[kind])
    try:
        # the eager attention is the one that exporters follow
        model, info = cls.from_pretrained(
            where[0],
            subfolder=where[1],
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation="eager",
        )
    except (*FAULTS, SafetensorError) as error:
        raise ValueError(f"{here}: no whole {kind} ({line(error)})") from None
    same(here, info["missing_keys"], info["unexpected_keys"])
    return model.model.language_model if family == "Qwen2_5_VL" else model
