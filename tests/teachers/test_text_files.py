"""Files of foreign text encoders: published sizes and names, shards, older layouts, what is missing."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parent))

import tiny_text as tiny

from pocketdiffusion.teachers.encoders import PUBLISHED, load, published

pytestmark = pytest.mark.slow


COUNTS = {
    "clip_l": 123_060_480,
    "clip_g": 694_659_840,
    "t5": 4_762_310_656,
    "gemma": 2_614_341_888,
    "qwen": 8_292_166_656,
}
# bytes of text_encoder/ and text_encoder_2/model.safetensors of stable-diffusion-xl-base-1.0
BYTES = {"clip_l": 492_265_168, "clip_g": 2_778_702_264}


def names_of(folder):
    return set(load_file(folder / "model.safetensors"))


def size(shapes):
    """Bytes of a safetensors file in fp32."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + end


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    with torch.device("meta"):
        model = published(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    if name == "qwen":
        assert sum(p.numel() for p in model.model.language_model.parameters()) == 7_070_619_136
    if name in BYTES:
        prefix = "" if name == "clip_g" else "text_model."
        shapes = {prefix + k: tuple(v.shape) for k, v in model.state_dict().items()}
        assert size({k: v for k, v in shapes.items() if "position_ids" not in k}) == BYTES[name]


def test_the_names_in_files_are_those_of_the_published_ones(folders):
    """Byte counts above are of these names; a published file of SD1.5 also holds position_ids."""
    assert "text_model.encoder.layers.0.self_attn.q_proj.weight" in names_of(
        folders("sd1.5") / "text_encoder"
    )
    assert "text_projection.weight" in names_of(folders("sd3") / "text_encoder")
    t5 = names_of(folders("flux") / "text_encoder_2")
    assert {"shared.weight", "encoder.block.1.layer.1.DenseReluDense.wi_0.weight"} <= t5


def test_sharded_and_older_folders(folders, tmp_path):
    import transformers

    source = folders("pixart-alpha")
    folder = tmp_path / "sharded"
    folder.mkdir()
    transformers.T5EncoderModel.from_pretrained(source / "text_encoder").save_pretrained(
        folder, max_shard_size="20KB"
    )
    assert len(list(folder.glob("*.safetensors"))) > 2
    places = {"t5": (str(tmp_path), "sharded", "tokenizer")}
    (tmp_path / "tokenizer").symlink_to(source / "tokenizer")
    a, b = load(places, "pixart-alpha").embed(["a star"]), load(source).embed(["a star"])
    assert torch.equal(a.tokens, b.tokens)
    # SD1.5's own file has the positions as a tensor
    old = tmp_path / "old"
    old.mkdir()
    state = load_file(folders("sd1.5") / "text_encoder" / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, old / "model.safetensors", {"format": "pt"})
    (old / "config.json").write_text((folders("sd1.5") / "text_encoder" / "config.json").read_text())
    place = (str(tmp_path), "old", "old_words")
    (tmp_path / "old_words").symlink_to(folders("sd1.5") / "tokenizer")
    assert torch.equal(
        load({"clip_l": place}, "sd1.5").embed(["a star"]).tokens,
        load(folders("sd1.5")).embed(["a star"]).tokens,
    )


# What is wrong is said in one line


def copied(source, folder, but=()):
    """``source`` by links, without some of its parts."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in but:
            (folder / path.name).symlink_to(path)
    return folder


def refused(source, message, **how):
    with pytest.raises(ValueError, match=message) as error:
        load(source, **how)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(folders, tmp_path):
    sd = folders("sd1.5")
    refused(tmp_path / "none", "no such folder, and not a hub id")
    refused(tmp_path, r"no readable model_index.json")
    refused(
        copied(sd, tmp_path / "a", ["tokenizer"]), r"a/tokenizer: no tokenizer, expected tokenizer.json or"
    )
    refused(copied(sd, tmp_path / "b", ["text_encoder"]), r"b/text_encoder: no readable config.json")
    empty = copied(sd, tmp_path / "c", ["text_encoder"])
    copied(sd / "text_encoder", empty / "text_encoder", ["model.safetensors"])
    (empty / "text_encoder" / "pytorch_model.bin").write_bytes(b"x")
    refused(empty, r"c/text_encoder: no safetensors; pickled weights are never read")
    index = copied(sd, tmp_path / "d", ["model_index.json"])
    told = json.loads((sd / "model_index.json").read_text())
    (index / "model_index.json").write_text(json.dumps({k: v for k, v in told.items() if k != "tokenizer"}))
    refused(index, "model_index.json names no tokenizer .clip_l.")
    (index / "model_index.json").write_text(json.dumps(told | {"_class_name": "OtherPipeline"}))
    refused(index, "unknown rule None for its text; known: sd1.5, sdxl, sd3")
    refused(index, "unknown rule 'sd9'", rule="sd9")
    (index / "model_index.json").write_text(json.dumps(told | {"text_encoder": [None, None]}))
    refused(index, "holds none of the text encoders clip_l")


def test_wrong_weights_and_classes_are_named(folders, tmp_path):
    sd, t5 = folders("sd1.5"), folders("flux")
    wrong = copied(sd, tmp_path / "a", ["text_encoder"])
    (wrong / "text_encoder").symlink_to(t5 / "text_encoder_2")
    refused(wrong, r"a/text_encoder: a T5EncoderModel, expected for clip_l: CLIPTextModel, CLIPTextModelWith")
    short = copied(sd, tmp_path / "b", ["text_encoder"])
    copied(sd / "text_encoder", short / "text_encoder", ["model.safetensors"])
    state = load_file(sd / "text_encoder" / "model.safetensors")
    name = "text_model.final_layer_norm.weight"
    save_file({k: v for k, v in state.items() if k != name}, short / "text_encoder" / "model.safetensors")
    refused(short, r"b/text_encoder: 'final_layer_norm.weight' is missing")
    save_file({**state, "extra": state[name].clone()}, short / "text_encoder" / "model.safetensors")
    refused(short, r"b/text_encoder: 'extra' is not part of the model")
    (short / "text_encoder" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    refused(short, r"b/text_encoder: no whole CLIPTextModel")
    other = copied(sd, tmp_path / "c", ["tokenizer"])
    tiny.t5_tokenizer(other / "tokenizer")
    words = json.loads((other / "tokenizer" / "tokenizer.json").read_text())
    words["model"]["vocab"] += [[f"w{i}", -9.0] for i in range(600)]
    (other / "tokenizer" / "tokenizer.json").write_text(json.dumps(words))
    refused(other, r"c/tokenizer: has \d+ tokens, the text encoder clip_l knows 550")
    refused(
        {"t5": str(sd)}, "text encoder 'clip_l': expected clip_l, one place each .None: absent", rule="sd1.5"
    )


def test_an_absent_clip_of_sd3_leaves_the_other_in_its_place(folders, tmp_path):
    whole = folders("sd3")
    folder = copied(whole, tmp_path / "sd3", ["model_index.json"])
    told = json.loads((whole / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(told | {"text_encoder": [None, None]}))
    text, full = load(folder, width=64, widths={"clip_l": 16}), load(whole)
    found, wanted = text.embed(["a star"]), full.embed(["a star"])
    wanted = full.dropped(wanted, {"clip_l": 1.0}, torch.Generator())
    assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.pooled, wanted.pooled)
