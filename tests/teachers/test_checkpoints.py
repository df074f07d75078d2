"""Folders and files of foreign denoisers, whole and broken."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
from tiny_denoisers import NAMES, TINY, network, original, path, pipeline, shapes, tiny

from pocketdiffusion.nn.taps import tap
from pocketdiffusion.teachers.convert import Discrete, Flow
from pocketdiffusion.teachers.diffusers import load, save
from pocketdiffusion.teachers.published import PUBLISHED

pytestmark = pytest.mark.slow

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same(found, wanted):
    states = found.state_dict(), wanted.state_dict()
    assert shapes(states[0]) == shapes(states[1])
    return all(torch.equal(v, states[1][k]) for k, v in states[0].items())


@pytest.mark.parametrize("name", TINY)
def test_a_sharded_folder_is_read(name, tmp_path):
    place = pipeline(name, tmp_path)
    assert (place / f"{WEIGHTS}.index.json").exists()
    whole, part = load(tmp_path, dtype=torch.float32), load(place, dtype=torch.float32)
    for found in (whole, part, load(str(tmp_path), place.name, torch.float32)):
        assert same(found, tiny(name))
        assert not found.training and not any(p.requires_grad for p in found.parameters())
        assert type(found.path) is type(path(name)) and found.path.config == path(name).config
    x, t, cond = whole.example()
    with torch.no_grad():  # what is not in the file, such as positions, is there too
        torch.testing.assert_close(whole(x, t, cond), tiny(name)(x, t, cond), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in TINY if TINY[n][0] in NAMES])
def test_an_original_file_is_read(name, tmp_path, monkeypatch):
    if name == "flux":
        pytest.skip("diffusers' mapping knows FLUX at full width only: see test_published")
    entry = PUBLISHED[TINY[name][2]]
    monkeypatch.setitem(PUBLISHED, "tiny", replace(entry, config=TINY[name][1]))
    file = original(network(name))
    save_file(file, tmp_path / "alone.safetensors")
    whole = {f"model.diffusion_model.{k}": v for k, v in file.items()}
    whole |= {"first_stage_model.a": torch.ones(2), "model_ema.b": torch.ones(2), "vae.c": torch.ones(1)}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(network(name).state_dict(), tmp_path / "diffusers.safetensors")
    for file in sorted(tmp_path.iterdir()):
        found = load(file, config="tiny", dtype=torch.float32)
        assert same(found, tiny(name))
        assert found.latents == entry.latents and type(found.path) is type(path(name))


@pytest.mark.parametrize("name", ["qwen", "pixart", "dit"])
def test_a_single_file_of_the_others_is_read_in_diffusers_layout(name, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", replace(PUBLISHED[TINY[name][2]], config=TINY[name][1]))
    save_file(network(name).state_dict(), tmp_path / "a.safetensors")
    assert same(load(tmp_path / "a.safetensors", config="tiny", dtype=torch.float32), tiny(name))


def test_dtype_and_what_stays_in_float32(tmp_path):
    network("wan").save_pretrained(tmp_path)
    model = load(tmp_path)
    kinds = {k: p.dtype for k, p in model.named_parameters()}
    assert kinds["model.blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert kinds["model.scale_shift_table"] == kinds["model.blocks.0.norm2.weight"] == torch.float32
    assert model.dtype == torch.bfloat16
    x, t, cond = model.example()
    with torch.no_grad():
        v = model(x, t, cond)
        assert v.dtype == torch.float32
        assert model(x.bfloat16(), t, cond.to(dtype=torch.bfloat16)).dtype == torch.bfloat16
        exact = tiny("wan")(x, t, cond)
    assert (v - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_variant_is_read_where_it_is_alone(tmp_path):
    network("sd3").save_pretrained(tmp_path / "a", variant="fp16")
    network("sd3").save_pretrained(tmp_path / "b", variant="fp16", max_shard_size=30_000)
    for folder in ("a", "b"):
        assert same(load(tmp_path / folder, dtype=torch.float32), tiny("sd3"))


def test_offloaded_layers_compute_the_same(tmp_path):
    pytest.importorskip("accelerate")
    network("sd3").save_pretrained(tmp_path)
    model = load(tmp_path, dtype=torch.float32, offload=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    x, t, cond = model.example()
    with torch.no_grad():
        v, seen = tap(model, [model.last])(x, t, cond)
        torch.testing.assert_close(v, tiny("sd3")(x, t, cond), atol=1e-6, rtol=1e-5)
    assert seen[model.last].shape == (2, 16, 16)


def test_the_schedule_is_never_guessed(tmp_path):
    network("sd2.1").save_pretrained(tmp_path / "unet")
    message = r"scheduler_config.json: no such file, and a UNet2DCond.* config=, one of sd1.5, sd2.1, sdxl"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    found = load(tmp_path, config="sd2.1")
    assert isinstance(found.path, Discrete) and found.path.prediction == "v_prediction"
    # a class that only flow matching has needs none
    network("flux").save_pretrained(tmp_path / "flux")
    assert load(tmp_path / "flux").path == Flow(None)


@pytest.mark.parametrize("name", TINY)
def test_save_and_load(name, tmp_path):
    model = tiny(name)
    save(model, tmp_path / "a")
    save(model, tmp_path / "a")
    again = load(tmp_path / "a", dtype=torch.float32)
    assert same(again, model) and again.path.config == model.path.config
    assert json.dumps(again.config) == json.dumps(model.config)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        save(model, tmp_path / "b")


def test_broken_folders(tmp_path):
    here = pipeline("sd3", tmp_path)
    shards = sorted(here.glob("*.safetensors"))
    shards[0].rename(tmp_path / "away")
    with pytest.raises(ValueError, match=rf"{shards[0].name}: no such file, but .*index.json names it"):
        load(tmp_path)
    (tmp_path / "away").rename(shards[0])
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"{shards[0].name}: not a whole safetensors file"):
        load(tmp_path)
    for file in here.glob("diffusion*"):
        file.unlink()
    with pytest.raises(ValueError, match=rf"transformer/{WEIGHTS}: no such file$"):
        load(tmp_path)
    torch.save({}, here / "diffusion_pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"no such file; diffusion_pytorch_model.bin is a pickle, which is never"
    ):
        load(tmp_path)
    state = network("sd3").state_dict()
    save_file(state | {"more": torch.ones(1)}, here / WEIGHTS)
    with pytest.raises(ValueError, match=r"transformer: 'more' is not part of the model \(1 such names\)"):
        load(tmp_path)
    state.pop("proj_out.bias")
    save_file(state, here / WEIGHTS)
    with pytest.raises(ValueError, match=r"transformer: 'proj_out.bias' is missing"):
        load(tmp_path)
    state["proj_out.bias"] = torch.ones(3)
    save_file(state, here / WEIGHTS)
    with pytest.raises(ValueError, match=r"'proj_out.bias' has shape \(3,\), expected \(16,\)"):
        load(tmp_path)
    (here / "config.json").write_text('{"_class_name": "AuraFlowTransformer2DModel"}')
    with pytest.raises(
        ValueError, match=r"_class_name in .*: 'AuraFlow.*'; known: UNet2DConditionModel, SD3"
    ):
        load(tmp_path)
    (here / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: cannot be read"):
        load(tmp_path)
    (here / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config.json: no such file, nor in transformer/ or unet/"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere/at/all: no such file or folder, and not a hub id"):
        load("nowhere/at/all")


def test_two_denoisers_in_a_folder(tmp_path):
    """Wan 2.2 has one for the high levels and one for the low."""
    network("wan").save_pretrained(tmp_path / "transformer")
    network("wan").save_pretrained(tmp_path / "transformer_2")
    with pytest.raises(ValueError, match="holds two denoisers, transformer and transformer_2; name one"):
        load(tmp_path)
    assert same(load(tmp_path, "transformer_2", torch.float32), tiny("wan"))


def test_broken_files(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", replace(PUBLISHED["sd3.5-medium"], config=TINY["sd3"][1]))
    file = tmp_path / "a.safetensors"
    state = original(network("sd3"))
    save_file(state, file)
    with pytest.raises(ValueError, match=r"a.safetensors: a single file needs config=, one of sd1.5, "):
        load(file)
    with pytest.raises(ValueError, match=r"unknown denoiser 'sd9'"):
        load(file, config="sd9")
    with pytest.raises(ValueError, match=r"a.safetensors as ltx-0.9: '.*' is missing"):
        load(file, config="ltx-0.9")
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r"as tiny: in neither layout of SD3Transformer2DModel \("):
        load(file, config="tiny")
    save_file(state | {"joint_blocks.1.more": torch.ones(7)}, file)
    with pytest.raises(ValueError, match=r"as tiny: holds 7 values more than the model"):
        load(file, config="tiny")
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a.ckpt: not a whole safetensors file"):
        load(tmp_path / "a.ckpt", config="tiny")


def test_a_hub_id(tmp_path, monkeypatch):
    """What is asked of the hub: configs, then the weights of the denoiser and of the autoencoder alone."""
    import huggingface_hub

    asked = []

    def snapshot(source, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path)

    pipeline("sd1.5", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert same(load("org/name", dtype=torch.float32), tiny("sd1.5"))
    assert asked == [
        "*.json",
        "*/*.json",
        f"unet/{WEIGHTS}",
        "unet/diffusion_pytorch_model-?????-of-?????.safetensors",
        f"vae/{WEIGHTS}",
    ]

    def offline(source, allow_patterns):
        raise OSError("no network\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"^org/name: no such folder here, .* \(OSError: no network\)$"):
        load("org/name")


def test_the_file_of_a_saved_denoiser_is_plain(tmp_path):
    save(tiny("sd1.5"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scheduler", "unet"]
    assert shapes(load_file(tmp_path / "unet" / WEIGHTS)) == shapes(network("sd1.5").state_dict())
