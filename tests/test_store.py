"""Saved networks: round trips, shards, and everything that can be wrong with a folder."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

from pocketdiffusion import store
from pocketdiffusion.models import dit

SMOKE = dit.PRESETS["smoke"]


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = dit.DiT(SMOKE)
    store.save(model, tmp_path / "net")
    return model, tmp_path / "net"


def test_round_trip_is_exact(saved):
    model, folder = saved
    again = store.load(folder)
    assert again.config == model.config
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in model.state_dict().items())


def test_pruned_widths_are_described_by_the_config(tmp_path):
    model = dit.DiT(replace(SMOKE, mlp=(96, 128), heads=(1, 2)))
    store.save(model, tmp_path / "net")
    assert store.load(tmp_path / "net").config.mlp == (96, 128)


def test_half_precision_on_disk_is_fp32_in_memory(saved, tmp_path):
    model, folder = saved
    store.save(model, tmp_path / "half", torch.float16)
    again = store.load(tmp_path / "half")
    size = (tmp_path / "half" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 0.55 * (folder / "diffusion_pytorch_model.safetensors").stat().st_size
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    for a, b in zip(model.parameters(), again.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_shards_read_back(saved, tmp_path):
    model, folder = saved
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    store.write_weights(model.state_dict(), folder, "diffusion_pytorch_model", shard=100_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    again = store.load(folder)
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in model.state_dict().items())


def test_missing_folder_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"nothing/config.json: no such file"):
        store.load(tmp_path / "nothing")


def test_truncated_weights_name_the_file(saved):
    path = saved[1] / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors: not a whole safetensors file"):
        store.load(saved[1])


def test_pickles_are_refused(saved):
    path = saved[1] / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"\.bin: pickled weights are never read"):
        store.load(saved[1])


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_shape_is_refused(saved):
    edit(saved[1], dim=32)
    with pytest.raises(ValueError, match="has shape"):
        store.load(saved[1])


def test_another_depth_is_refused(saved):
    edit(saved[1], depth=3)
    with pytest.raises(ValueError, match=r"blocks\.2\..* is missing"):
        store.load(saved[1])


def test_unknown_class_and_key(saved):
    edit(saved[1], _class_name="Nonsense")
    with pytest.raises(ValueError, match="unknown _class_name 'Nonsense'"):
        store.load(saved[1])
    edit(saved[1], _class_name="DiT", colour=3)
    with pytest.raises(ValueError, match="unknown key 'colour'"):
        store.load(saved[1])


def test_broken_json(saved):
    (saved[1] / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not valid JSON"):
        store.load(saved[1])


def test_a_full_disk_loses_nothing(saved, monkeypatch):
    model, folder = saved

    def full(*_args, **_kwargs):
        # what the library raises; it is no OSError
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(dit.DiT(SMOKE), folder)
    again = store.load(folder)
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in model.state_dict().items())
    assert [p.name for p in folder.parent.iterdir()] == ["net"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="mine: holds other files"):
        store.save(dit.DiT(SMOKE), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_rename_that_fails_puts_the_old_folder_back(saved, monkeypatch):
    import os

    model, folder = saved
    real, calls = os.replace, []

    def replace(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(a, b)

    monkeypatch.setattr("pocketdiffusion.disk.os.replace", replace)
    with pytest.raises(OSError, match="No space"):
        store.save(dit.DiT(SMOKE), folder)
    again = store.load(folder)
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in model.state_dict().items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dim": "x"}, "dim is 'x', expected something like 256"),
        ({"dim": 2.5}, "no DiT can be built"),
        ({"head_dim": 31}, "odd|even|shape"),
        ({"patch": 0}, "shape|built"),
    ],
)
def test_nonsense_in_a_config_names_the_file(saved, change, message):
    edit(saved[1], **change)
    with pytest.raises(ValueError, match=message):
        store.load(saved[1])


def test_an_index_without_a_map(saved):
    (saved[1] / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        store.load(saved[1])


def test_unknown_preset():
    with pytest.raises(ValueError, match="DiT has no preset 'huge'; known: smoke"):
        store.preset("DiT", "huge")
