"""Tiny tokenizers and text encoders as transformers saves them, of every family, made on the spot."""

import json

import torch
from safetensors.torch import load_file, save_file

from pocketdiffusion.teachers.encoders import instruction

PROMPTS = ["Two green stars", "a BLUE square, 3 of them", "", "red " * 100]
WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "star",
    "stars",
    "square",
    "circle",
    "of",
    "the",
    "two",
    "three",
    "left",
    "to",
]


def byte_alphabet():
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def merged(words, start):
    """Merges that build ``words`` letter by letter, and the tokens that they make."""
    merges, made = [], []
    for word in words:
        parts = start(word)
        while len(parts) > 1:
            pair, parts = (parts[0], parts[1]), [parts[0] + parts[1], *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                made.append(parts[0])
    return merges, list(dict.fromkeys(made))


def clip_tokenizer(folder, pad="<|endoftext|>"):
    """The two old files, vocab.json and merges.txt, as SD1.5 has them."""
    merges, made = merged(WORDS, lambda w: [*w[:-1], w[-1] + "</w>"])
    letters = byte_alphabet()
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocab = [*letters, *(c + "</w>" for c in letters), *made]
    vocab = [*dict.fromkeys(vocab), *ends]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return len(vocab)


def t5_tokenizer(folder):
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(chr(i), -5.0) for i in range(33, 127)] + [(f"\u2581{w}", -3.0) for w in WORDS]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=4, model_max_length=512)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def gemma_tokenizer(folder):
    from tokenizers import processors
    from transformers import GemmaTokenizer

    vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    # of Sana's instruction, so that it is not hundreds of letters
    merges, made = merged([*WORDS, *instruction().split()], list)
    vocab = list(dict.fromkeys([*vocab, *(chr(i) for i in range(33, 127)), *made]))
    tokenizer = GemmaTokenizer(vocab={t: i for i, t in enumerate(vocab)}, merges=merges)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def qwen_tokenizer(folder):
    from transformers import Qwen2Tokenizer

    vocab = {token: i for i, token in enumerate([*byte_alphabet(), "<|endoftext|>"])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def clip(vocab, width=16, projected=False):
    import transformers

    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    config = transformers.CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        eos_token_id=vocab - 1,
        bos_token_id=vocab - 2,
        hidden_act="gelu" if projected else "quick_gelu",
    )
    return getattr(transformers, kind)(config)


def t5(vocab, width=24):
    import transformers

    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocab,
            d_model=width,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def gemma(vocab, width=24):
    import transformers

    return transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=8,
        )
    )


def qwen(vocab, width=16):
    import transformers

    text = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def written(model, folder, **how):
    torch.manual_seed(len(str(type(model))))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    model.save_pretrained(folder, **how)
    if type(model).__name__ == "CLIPTextModel":
        # as in published files; transformers 5 writes its names without the prefix
        state = load_file(folder / "model.safetensors")
        state = {f"text_model.{k}": v for k, v in state.items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})


# family -> (pipeline class, what writes text_encoder, text_encoder_2 ... and their tokenizers)
FAMILIES = {
    "sd1.5": ("StableDiffusionPipeline", ["clip_l"]),
    "sdxl": ("StableDiffusionXLPipeline", ["clip_l", "clip_g"]),
    "sd3": ("StableDiffusion3Pipeline", ["clip_p", "clip_g", "t5"]),
    "flux": ("FluxPipeline", ["clip_l", "t5"]),
    "pixart-alpha": ("PixArtAlphaPipeline", ["t5"]),
    "pixart-sigma": ("PixArtSigmaPipeline", ["t5"]),
    "sana": ("SanaPipeline", ["gemma"]),
    "qwen-image": ("QwenImagePipeline", ["qwen"]),
}


def part(kind, encoder, tokenizer):
    """One encoder and its tokenizer into their folders."""
    if kind in ("clip_l", "clip_p", "clip_g"):
        vocab = clip_tokenizer(tokenizer, "!" if kind == "clip_g" else "<|endoftext|>")
        model = clip(vocab, 24 if kind == "clip_g" else 16, kind != "clip_l")
    else:
        vocab = {"t5": t5_tokenizer, "gemma": gemma_tokenizer, "qwen": qwen_tokenizer}[kind](tokenizer)
        widths = {"t5": {"width": 64}}.get(kind, {})
        model = {"t5": t5, "gemma": gemma, "qwen": qwen}[kind](vocab, **widths)
    written(model, encoder)


def folder_of(family, folder):
    """The text part of a pipeline's folder."""
    kind, parts = FAMILIES[family]
    index = {"_class_name": kind, "_diffusers_version": "0.42.1"}
    for i, name in enumerate(parts):
        end = f"_{i + 1}" if i else ""
        part(name, folder / f"text_encoder{end}", folder / f"tokenizer{end}")
        told = json.loads((folder / f"text_encoder{end}" / "config.json").read_text())
        index[f"text_encoder{end}"] = ["transformers", told["architectures"][0]]
        index[f"tokenizer{end}"] = ["transformers", "AutoTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
