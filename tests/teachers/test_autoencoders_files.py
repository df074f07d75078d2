"""Folders and files of foreign autoencoders, whole and broken."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketdiffusion.data.latents import weights_hash
from pocketdiffusion.teachers.autoencoders import PUBLISHED, Foreign, load, save

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
from tiny_autoencoders import SIX, TINY, clip, foreign, original, pixels, shapes, statistics, tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TINY)
def test_a_sharded_folder_is_read(name, tmp_path):
    model = foreign(name)
    model.save_pretrained(tmp_path / "vae", max_shard_size=20_000)
    assert (tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.json").exists()
    sources = [(tmp_path / "vae", None), (tmp_path, None), (str(tmp_path), "vae")]
    for source, subfolder in sources if name == "kl" else sources[1:2]:
        found = load(source, subfolder)
        assert not found.training
        assert shapes(found.state_dict()) == shapes(tiny(name).state_dict())
        assert weights_hash(found) == weights_hash(Foreign(model))


def test_dtype(tmp_path):
    foreign("ltx").to(torch.float16).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        found = load(tmp_path, dtype=dtype)
        assert {v.dtype for v in found.state_dict().values()} == {dtype}
        assert found(pixels("ltx").to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", ["kl", "dc", "wan2.1", "ltx", "qwen-image"])
def test_an_original_file_is_read(name, tmp_path, monkeypatch):
    model = foreign(name)
    monkeypatch.setitem(PUBLISHED, "tiny", TINY[name][:2])
    file = original(model)
    # alone; and as part of a whole checkpoint, with what training left
    save_file(file, tmp_path / "alone.safetensors")
    bare = {k.removeprefix("vae."): v for k, v in file.items()}
    whole = {f"{'vae' if 'ltx' in name else 'first_stage_model'}.{k}": v for k, v in bare.items()}
    whole |= {"model.diffusion_model.out.weight": torch.ones(2, 2)}
    save_file(whole, tmp_path / "whole.safetensors")
    save_file(
        bare | {"model_ema.decay": torch.ones(()), "loss.logvar": torch.ones(())}, tmp_path / "b.safetensors"
    )
    save_file(model.state_dict(), tmp_path / "diffusers.safetensors")
    for path in sorted(tmp_path.iterdir()):
        found = load(path, config="tiny")
        assert not found.training
        assert weights_hash(found) == weights_hash(Foreign(model))


@pytest.mark.parametrize("name", ["wan2.2", "cogvideox"])
def test_original_files_that_diffusers_cannot_read(name, tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", TINY[name][:2])
    save_file({"decoder.conv1.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"as tiny: the original layout of this .* is not read"):
        load(tmp_path / "a.safetensors", config="tiny")
    save_file(foreign(name).state_dict(), tmp_path / "b.safetensors")
    assert torch.equal(load(tmp_path / "b.safetensors", config="tiny").mean, tiny(name).mean)


@pytest.mark.parametrize("name", SIX)
def test_save_and_load(name, tmp_path):
    model = tiny(name)
    first = weights_hash(model)
    assert first == weights_hash(tiny(name))
    model.calibrate(clip(name))
    with torch.no_grad():
        next(model.model.decoder.parameters()).add_(0.1)
    assert weights_hash(model) != first
    save(model, tmp_path / "a")
    save(model, tmp_path / "a")
    assert {p.name for p in tmp_path.iterdir()} == {"a"}
    again = load(tmp_path / "a")
    assert weights_hash(again) == weights_hash(model)
    assert again.config == model.config or json.dumps(again.config.foreign) == json.dumps(
        model.config.foreign
    )
    x = clip(name)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(again.encode(x), model.encode(x))
        # and diffusers, by its pipelines' convention, says the same
        theirs = type(model.model).from_pretrained(tmp_path / "a")
        mean, std = statistics(theirs)
    torch.testing.assert_close(mean.expand_as(model.mean), model.mean)
    torch.testing.assert_close(std.expand_as(model.std), model.std)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^no such place: no such file or folder, and not a hub id"):
        load("no such place")
    with pytest.raises(ValueError, match=r"^nobody/nothing: no config.json of an autoencoder.*\)$"):
        load("nobody/nothing")
    with pytest.raises(ValueError, match=r"no config.json of an autoencoder, neither there nor in vae/"):
        load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    save(tiny("kl"), tmp_path / "vae")
    return tmp_path / "vae"


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_folders_with_broken_weights(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(folder, r"vae: no whole AutoencoderKL \(.*diffusion_pytorch_model\.safetensors")
    save_file({k: v for k, v in state.items() if k != "encoder.conv_in.bias"}, weights)
    refused(folder, r"vae: 'encoder.conv_in.bias' is missing \(1 such names\)$")
    save_file(state | {"more": torch.ones(1)}, weights)
    refused(folder, r"vae: 'more' is not part of the model \(1 such names\)$")
    save_file(state | {"encoder.conv_in.bias": torch.ones(3)}, weights)
    refused(folder, r"vae: no whole AutoencoderKL \(.*encoder.conv_in.bias")
    weights.rename(folder / "diffusion_pytorch_model.bin")
    refused(folder, r"vae: no safetensors; pickled weights are never read")


def test_folders_without_a_shard(tmp_path):
    foreign("kl").save_pretrained(tmp_path, max_shard_size=20_000)
    gone = sorted(tmp_path.glob("*.safetensors"))[0]
    gone.unlink()
    refused(tmp_path, f"no whole AutoencoderKL .*{gone.name}")


def test_folders_with_broken_configs(folder):
    config = folder / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"_class_name": "VQModel"}))
    refused(folder, r"unknown _class_name in .*vae: 'VQModel'; known: AutoencoderKL, ")
    config.write_text("[]")
    refused(folder, r"unknown _class_name in .*vae: None; known")
    for wrong in ({"block_out_channels": []}, {"latent_channels": "4"}, {"down_block_types": ["None"] * 2}):
        config.write_text(json.dumps(told | wrong))
        refused(folder, r"vae: no whole AutoencoderKL \(.+\)$")
    config.write_text(json.dumps(told | {"layers_per_block": 2}))
    refused(folder, r"vae: .* is missing \(\d+ such names\)")
    config.write_text("{")
    refused(folder, r"vae: no config.json of an autoencoder")


def test_files_that_are_broken(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", TINY["kl"][:2])
    path = tmp_path / "a.safetensors"
    state = original(foreign("kl"))
    save_file(state, path)
    with pytest.raises(ValueError, match=r"a\.safetensors: a single file needs config=, one of sd1\.5, "):
        load(path)
    with pytest.raises(ValueError, match=r"unknown autoencoder 'sd9'; known: sd1\.5, "):
        load(path, config="sd9")
    with pytest.raises(ValueError, match=r"a\.safetensors as flux: "):
        load(path, config="flux")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors: not a whole safetensors file"):
        load(path, config="tiny")
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: not a whole safetensors file"):
        load(tmp_path / "a.ckpt", config="tiny")
    # a level more than the config has: the mapping of diffusers would leave it out
    save_file(state | {"encoder.mid.attn_2.q.weight": torch.ones(16, 16)}, path)
    with pytest.raises(ValueError, match=r"as tiny: .*(256 values more|not part of the model)"):
        load(path, config="tiny")
    save_file(state | {"encoder.conv_in.bias": torch.ones(3)}, path)
    with pytest.raises(
        ValueError, match=r"as tiny: 'encoder.conv_in.bias' has shape \(3,\), expected \(8,\)"
    ):
        load(path, config="tiny")
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"as tiny: 'decoder.conv_in.bias' is missing"):
        load(path, config="tiny")


def test_save_leaves_other_folders_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        save(tiny("kl"), tmp_path)
