"""Foreign text encoders: what diffusers' own pipelines make of the same folders, and the house's rules."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parent))

import tiny_text as tiny

from pocketdiffusion.data import latents
from pocketdiffusion.teachers.encoders import instruction, load
from pocketdiffusion.teachers.text import DROP, RULES
from pocketdiffusion.types import Batch, Cond

pytestmark = pytest.mark.slow

PROMPTS = tiny.PROMPTS
CUT = pytest.mark.filterwarnings("ignore:prompt cut")


def pipeline(folder, family):
    """diffusers' own, with the text part alone."""
    import diffusers
    import transformers

    told = json.loads((folder / "model_index.json").read_text())
    parts = {}
    for name, value in told.items():
        if name.startswith("text_encoder"):
            parts[name] = getattr(transformers, value[1]).from_pretrained(folder / name).eval()
        elif name.startswith("tokenizer"):
            parts[name] = transformers.AutoTokenizer.from_pretrained(folder / name)
    denoiser = "unet" if family in ("sd1.5", "sdxl") else "transformer"
    more = {"sd1.5": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}}
    cls = getattr(diffusers, told["_class_name"])
    return cls(**parts, **{denoiser: None}, vae=None, scheduler=None, **more.get(family, {}))


def theirs(folder, family, prompts):
    """tokens, mask, pooled as the pipeline's encode_prompt gives them."""
    pipe, how = pipeline(folder, family), {"device": "cpu", "num_images_per_prompt": 1}
    off = {**how, "do_classifier_free_guidance": False}
    with torch.no_grad():
        if family == "sd1.5":
            return pipe.encode_prompt(prompts, **off)[0], None, None
        if family == "sdxl":
            found = pipe.encode_prompt(prompts, **off)
            return found[0], None, found[2]
        if family == "sd3":
            found = pipe.encode_prompt(prompts, None, None, **off)
            return found[0], None, found[2]
        if family == "flux":
            found = pipe.encode_prompt(prompts, None, **how)
            return found[0], None, found[1]
        if family.startswith("pixart"):
            found = pipe.encode_prompt(prompts, **off, max_sequence_length=120 if "alpha" in family else 300)
            return found[0], found[1], None
        if family == "sana":
            found = pipe.encode_prompt(prompts, **off, complex_human_instruction=instruction().split("\n"))
            return found[0], found[1], None
        return *pipe._get_qwen_prompt_embeds(prompts, "cpu"), None


@CUT
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_diffusers_own_pipelines_say(folders, family):
    # the empty prompt is another matter in these two, see below
    prompts = [p for p in PROMPTS if p or family not in ("sdxl", "sana")]
    tokens, mask, pooled = theirs(folders(family), family, prompts)
    cond = load(folders(family)).embed(prompts)
    assert cond.tokens.shape == tokens.shape and tokens.std() > 0.05
    real = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    assert torch.equal(cond.mask, real)
    torch.testing.assert_close(cond.tokens[real], tokens[real], atol=1e-5, rtol=1e-5)
    assert (cond.pooled is None) == (pooled is None)
    if pooled is not None:
        torch.testing.assert_close(cond.pooled, pooled, atol=1e-5, rtol=1e-5)


def test_the_empty_prompt_of_sdxl_is_zeros(folders):
    pipe = pipeline(folders("sdxl"), "sdxl")
    with torch.no_grad():
        found = pipe.encode_prompt(["a star"], device="cpu")
    cond = load(folders("sdxl")).embed(["a star", ""])
    torch.testing.assert_close(cond.tokens, torch.cat(found[:2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cond.pooled, torch.cat(found[2:]), atol=1e-5, rtol=1e-5)
    assert not cond.tokens[1].any() and not cond.pooled[1].any()


def test_sana_has_no_instruction_before_the_empty_prompt(folders):
    pipe = pipeline(folders("sana"), "sana")
    with torch.no_grad():
        # prompt, mask, negative, mask of negative
        found = pipe.encode_prompt(["a"], True, "", device="cpu", complex_human_instruction=["x"])
    cond = load(folders("sana")).embed([""])
    real = found[3].bool()
    assert torch.equal(cond.mask, real) and real.sum() == 1
    torch.testing.assert_close(cond.tokens[real], found[2][real], atol=1e-5, rtol=1e-5)


def test_a_missing_encoder_is_zeros_as_in_sd3(folders, tmp_path):
    whole, folder = folders("sd3"), tmp_path / "sd3"
    folder.mkdir()
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        (folder / name).symlink_to(whole / name)
    told = json.loads((whole / "model_index.json").read_text())
    told |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(told))
    cond, full = load(folder, width=64).embed(["a red star"]), load(whole).embed(["a red star"])
    assert torch.equal(cond.tokens[:, :77], full.tokens[:, :77]) and torch.equal(cond.pooled, full.pooled)
    assert cond.tokens.shape == full.tokens.shape and not cond.tokens[:, 77:].any()


@pytest.fixture(scope="module")
def snapgen(folders):
    xl, gemma = str(folders("sdxl")), str(folders("sana"))
    places = {
        "clip_l": (xl, "text_encoder", "tokenizer"),
        "clip_g": (xl, "text_encoder_2", "tokenizer_2"),
        "gemma": (gemma, "text_encoder", "tokenizer"),
    }
    return load(places, "snapgen")


def test_snapgen_joins_three_encoders(folders, snapgen):
    said = ["a red star", "two green circles"]
    cond, xl = snapgen.embed(said), load(folders("sdxl")).embed(said)
    assert cond.tokens.shape == (2, 77 + 128, 40) and cond.pooled.shape == (2, 16 + 24)
    assert torch.equal(cond.tokens[:, :77, :40], xl.tokens)
    assert torch.equal(cond.pooled[:, 16:], xl.pooled)
    # Gemma's own words, as Sana's part reads them without an instruction; its width is padded with zeros
    gemma = snapgen.encoders["gemma"]
    ids, mask = snapgen.tokenizer.part("gemma", said)
    alone = gemma(input_ids=ids[:1, : mask[0].sum()]).last_hidden_state
    torch.testing.assert_close(cond.tokens[:1, 77 : 77 + mask[0].sum(), :24], alone, atol=1e-5, rtol=1e-5)
    assert not cond.tokens[:, 77:, 24:].any()
    assert torch.equal(cond.mask[:, 77:], mask)
    # CLIP's padding is masked for a student whose denoiser is told what is real
    assert torch.equal(cond.mask[:, :77], snapgen.tokenizer.part("clip_l", said)[1])
    assert cond.mask[0, :77].sum() == 5


def test_every_encoder_is_dropped_by_itself(snapgen):
    cond = snapgen.embed(["a red star"]).expand(1000)
    rates = {"clip_l": DROP, "clip_g": DROP, "gemma": DROP}
    found = snapgen.dropped(cond, rates, torch.Generator().manual_seed(0))
    l = ~found.tokens[:, :77, :16].any(2).any(1)
    g = ~found.tokens[:, :77, 16:].any(2).any(1)
    llm = ~found.tokens[:, 77:].any(2).any(1)
    assert torch.equal(l, ~found.pooled[:, :16].any(1)) and torch.equal(g, ~found.pooled[:, 16:].any(1))
    for gone in (l, g, llm):
        assert abs(gone.float().mean() - DROP) < 0.06
    # independent: a tenth of the prompts is empty
    assert abs((l & g & llm).float().mean() - DROP**3) < 0.04
    assert torch.equal(~found.mask[:, 77:].any(1), llm)
    assert torch.equal(~found.mask[:, 1:77].any(1), l & g)
    # attention always has something to look at
    assert found.mask.any(1).all()
    again = snapgen.dropped(cond, rates, torch.Generator().manual_seed(0))
    assert torch.equal(found.tokens, again.tokens)
    kept = snapgen.dropped(cond, {}, torch.Generator())
    assert torch.equal(kept.tokens, cond.tokens) and torch.equal(kept.mask, cond.mask)
    with pytest.raises(ValueError, match=r"drop: no text encoder 't5'; there are clip_l, clip_g, gemma"):
        snapgen.dropped(cond, {"t5": 0.1}, torch.Generator())


def places(folders, *absent):
    xl, gemma = str(folders("sdxl")), str(folders("sana"))
    there = {
        "clip_l": (xl, "text_encoder", "tokenizer"),
        "clip_g": (xl, "text_encoder_2", "tokenizer_2"),
        "gemma": (gemma, "text_encoder", "tokenizer"),
    }
    return {name: None if name in absent else place for name, place in there.items()}


@pytest.mark.parametrize("absent", [("clip_l",), ("clip_g",), ("gemma",), ("clip_l", "clip_g")])
def test_an_absent_encoder_is_as_one_that_is_dropped(folders, snapgen, absent):
    """Its channels, tokens and pooled vector stay where they are, as zeros."""
    widths = {"clip_l": 16, "clip_g": 24, "gemma": 24}
    text = load(places(folders, *absent), "snapgen", widths=widths)
    said = ["a red star", ""]
    whole = snapgen.embed(said)
    found, wanted = text.embed(said), snapgen.dropped(whole, dict.fromkeys(absent, 1.0), torch.Generator())
    for a, b in zip(vars(found).values(), vars(wanted).values()):
        assert a is b is None or torch.equal(a, b)
    assert text.config.widths == snapgen.config.widths == widths
    assert (text.config.dim, text.config.pooled) == (snapgen.config.dim, snapgen.config.pooled)
    # what is there can be dropped, too
    again = text.dropped(found, dict.fromkeys(text.encoders, 1.0), torch.Generator())
    assert not again.tokens.any() and not again.pooled.any() and again.mask.sum() == 2


def test_any_subset_but_none(folders):
    text = load(places(folders, "gemma"), "snapgen")
    assert text.config.widths["gemma"] == 2304 and text.config.dim == 2304  # as published
    assert text.embed(["a star"]).tokens.shape == (1, text.spoken, 2304)
    with pytest.raises(ValueError, match="all text encoders are absent"):
        load(places(folders, "clip_l", "clip_g", "gemma"), rule="snapgen")


def test_frozen_in_half_precision_and_offloaded(folders):
    text = load(folders("pixart-alpha"), dtype=torch.bfloat16, offload="cpu").train()
    assert not any(m.training for m in text.modules())  # T5 has dropout
    assert {p.dtype for p in text.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in text.parameters())
    cond, full = text.embed(["a star"]), load(folders("pixart-alpha")).embed(["a star"])
    assert cond.tokens.dtype == torch.float32
    real = cond.mask
    assert 0 < (cond.tokens[real] - full.tokens[real]).norm() / full.tokens[real].norm() < 0.05
    assert text.embed(cond) is cond


def test_an_offloaded_encoder_visits_its_device(folders, monkeypatch):
    text = load(folders("sd1.5"), offload="cpu")
    visited = []
    encoder = text.encoders["clip_l"]
    monkeypatch.setattr(type(encoder), "to", lambda self, device: visited.append(device) or self)
    text.embed(["a star"])
    assert visited == ["cpu", "cpu"] and text.device == torch.device("cpu")


def test_long_prompts_are_cut_with_a_warning(folders):
    with pytest.warns(UserWarning, match="prompt cut to 77 tokens of clip_l .it has 102.: 'red red"):
        load(folders("sd1.5")).embed(["red " * 100])


# Embeddings on the disk


def test_embeddings_are_cached_with_the_hash_of_their_encoders(folders, snapgen, tmp_path):
    said = ["a red star", "two green circles", "the square"]
    cond, x = snapgen.embed(said), torch.randn(3, 4, 8, 8)
    mark = latents.weights_hash(snapgen)
    assert latents.write(tmp_path, [Batch(x, cond)], "vae", mark, shard_size=2) == 3
    data = latents.Latents(tmp_path, 3, "vae", mark)
    for i in range(3):
        stored = data.sample(i).text
        assert torch.equal(stored.tokens[0], cond.tokens[i]) and torch.equal(stored.mask[0], cond.mask[i])
        assert torch.equal(stored.pooled[0], cond.pooled[i])
    batch = data(0, 0)
    assert isinstance(batch.text, Cond) and batch.text.pooled.shape == (3, 40)
    # dropping works on what was cached as on what is fresh
    rates = {"clip_l": 0.5, "gemma": 0.5}
    a = snapgen.dropped(data.sample(1).text, rates, torch.Generator().manual_seed(3))
    b = snapgen.dropped(cond.map(lambda v: v[1:2]), rates, torch.Generator().manual_seed(3))
    assert torch.equal(a.tokens, b.tokens)
    other = latents.weights_hash(load(folders("sdxl")))
    assert other != mark and latents.weights_hash(load(folders("sdxl"))) == other
    with pytest.raises(ValueError, match=f"made with text {mark}, expected {other}; make the cache again"):
        latents.Latents(tmp_path, 3, "vae", other)


def test_rules_name_their_own_parts():
    for rule in RULES.values():
        named = {name for row in rule.rows for name in row} | set(rule.pooled)
        assert named == set(rule.parts)
