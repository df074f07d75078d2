"""Whole pipelines of diffusers in folders: loaded, matched, sampled as their own schedulers would."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
import diffusers
import tiny_pipelines as tiny

from pocketdiffusion.teachers import pipeline
from pocketdiffusion.teachers.convert import Flow, process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny.saved(family, tmp_path_factory.mktemp("pipelines") / family)
        return made[family]

    return get


def denoised(folder, family, x, t, prompt):
    """v at ``x`` by diffusers' own pipeline: its prompt, its network, its level."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    how = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        if family == "sd3":
            tokens, _, pooled, _ = pipe.encode_prompt(prompt, None, None, **how)
            return pipe.transformer(x, tokens, pooled, 1000 * t).sample
        alphas = pipe.scheduler.alphas_cumprod[500]
        a, b = alphas.sqrt(), (1 - alphas).sqrt()
        # x at level t = b / (a + b) is (a + b)^-1 times that of diffusers
        tokens = pipe.encode_prompt(prompt, **how)[0]
        y = x * (a + b)
        e = pipe.unet(y, torch.tensor([500]), tokens).sample
        return e - (y - b * e) / a


@pytest.mark.parametrize("family", ["sd1.5", "sd3"])
def test_the_whole_way_from_a_prompt_to_v(folders, family):
    parts = pipeline.load(folders(family))
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    path = parts.transformer.path
    t = torch.tensor([0.4]) if isinstance(path, Flow) else path.levels[500:501].float()
    found = parts.transformer(x, t, parts.text_encoder.embed(["two green stars"]))
    wanted = denoised(folders(family), family, x, t, "two green stars")
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    again = parts.vae.decode(x)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders(family))
    c = pipe.vae.config
    with torch.no_grad():
        pixels = pipe.vae.decode(x / c.scaling_factor + (c.get("shift_factor") or 0)).sample
    torch.testing.assert_close(again, pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["sd1.5", "sd3"])
def test_half_precision_leaves_the_autoencoder_alone(folders, family):
    parts = pipeline.load(folders(family), torch.bfloat16)
    assert parts.transformer.dtype == torch.bfloat16
    assert {p.dtype for p in parts.text_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in parts.vae.parameters()} == {torch.float32}
    parts.transformer.expects(parts.vae)


def test_offloaded_parts_compute_the_same_and_pass_gradients(folders):
    whole, parts = (pipeline.load(folders("sd3"), offload=device) for device in (None, "cpu"))
    assert {p.device.type for p in parts.transformer.parameters()} == {"meta"}
    found = []
    for p in (whole, parts):
        x, t, _ = p.transformer.example(1)
        v = p.transformer(x.requires_grad_(True), t, p.text_encoder.embed(["a star"]))
        found.append((v, *torch.autograd.grad(v.square().sum(), x)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_hub_id_brings_what_the_index_names(folders, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(source, allow_patterns):
        asked.append(allow_patterns)
        return str(folders("sd1.5"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    assert pipeline.load("org/name").kind == "StableDiffusionPipeline"
    assert asked[0] == ["*.json"] and "unet/*.safetensors" in asked[1] and "tokenizer/*.txt" in asked[1]
    # what the pipeline has not, and what lies beside its parts
    assert not [p for p in asked[1] if p.startswith(("safety_checker", "*.safe"))]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert pipeline.local("org/encoder") == tmp_path and pipeline.local(tmp_path) == tmp_path


# name -> class, denoiser's config, scheduler, factor; as published
WHOLE = {
    "StableDiffusionPipeline": ({"sample_size": 64}, tiny.PARTS["sd1.5"][2], (50, 7.5, 512)),
    "StableDiffusionXLPipeline": ({"sample_size": 128}, tiny.PARTS["sdxl"][2], (50, 5.0, 1024)),
    "StableDiffusion3Pipeline": ({"sample_size": 128}, tiny.PARTS["sd3"][2], (28, 7.0, 1024)),
    "PixArtAlphaPipeline": ({"sample_size": 128}, tiny.PARTS["pixart-alpha"][2], (20, 4.5, 1024)),
    "FluxPipeline": (
        {},
        (
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
        ),
        (28, 1.0, 1024),
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_schedules_of_the_published_sizes(kind):
    config, (scheduler, told), wanted = WHOLE[kind]
    path = process({"_class_name": scheduler, **told}, "here")
    found = pipeline.schedule(kind, config, path, 8)
    assert (found["steps"], found["guidance"], found["size"]) == wanted
    if kind == "FluxPipeline":
        # diffusers' own number at 1024 pixels: the most of its range, exp(1.15)
        assert found["shift"] == pytest.approx(torch.tensor(1.15).exp().item())
    elif kind == "StableDiffusion3Pipeline":
        assert found["shift"] == 3.0
    else:
        sigma = ((1 - path.alphas[500]) / path.alphas[500]).sqrt()
        assert found["shift"] == pytest.approx(sigma.item(), rel=1e-5)


def test_what_is_in_a_folder_by_its_headers(folders):
    folder = folders("sd3")
    rows = {row["part"]: row for row in pipeline.rows(folder)}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    for name, row in rows.items():
        module = getattr(pipe, name)
        assert row["class"] == type(module).__name__
        # tied weights once; tables of positions are among what is saved
        values = {v.data_ptr(): v.numel() for v in module.state_dict().values()}
        assert row["parameters"] == sum(values.values())
        assert row["bytes"] == sum(p.stat().st_size for p in (folder / name).glob("*.safetensors"))
    assert set(rows) == {"transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}
    told = pipeline.expected(folder)
    assert told["latents"] == (4, 16, 16) and told["factor"] == 2 and told["path"] == "flow matching"
    assert told["text"] == {"clip_l": 77, "clip_g": 77, "t5": 256}


def copied(source, folder, edit=None, but=()):
    """``source`` by links, without some of its parts and with an edited index."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name not in ("model_index.json", *but):
            (folder / path.name).symlink_to(path)
    told = json.loads((source / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(told | (edit or {})))
    return folder


def refused(source, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline.load(source)
    assert "\n" not in str(error.value)


def test_what_is_missing_or_does_not_fit_is_named(folders, tmp_path):
    sd = folders("sd1.5")
    empty = copied(sd, tmp_path / "a", but=["unet"])
    refused(empty, r"a/config.json: no such file, nor in transformer/ or unet/")
    refused(copied(sd, tmp_path / "b", but=["vae"]), r"no config.json of an autoencoder")
    refused(copied(sd, tmp_path / "c", but=["scheduler"]), r"c/scheduler/scheduler_config.json: no such file")
    refused(copied(sd, tmp_path / "d", but=["tokenizer"]), r"d/tokenizer: no tokenizer")
    refused(
        copied(sd, tmp_path / "e", {"_class_name": "KolorsPipeline"}),
        "e: a KolorsPipeline; known pipelines: StableDiffusionPipeline, StableDiffusionXLPipeline",
    )
    weightless = copied(sd, tmp_path / "f", but=["unet"])
    shutil.copytree(sd / "unet", weightless / "unet", ignore=shutil.ignore_patterns("*.safetensors"))
    refused(weightless, r"f/unet/diffusion_pytorch_model.safetensors: no such file")
    with pytest.raises(ValueError, match=r"f/unet: no safetensors"):
        pipeline.rows(weightless)
    other = copied(sd, tmp_path / "g", but=["text_encoder", "tokenizer"])
    (other / "text_encoder").symlink_to(folders("sd3") / "text_encoder_2")
    (other / "tokenizer").symlink_to(folders("sd3") / "tokenizer_2")
    refused(other, "g: the text encoders give tokens of width 24, expected 16")
