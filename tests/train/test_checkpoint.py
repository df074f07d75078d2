import json
import math

import pytest
import torch

from pocketdiffusion.train import checkpoint
from pocketdiffusion.train.checkpoint import found, load, newest, same, save

STATE = {
    "weights": {"a": torch.randn(3, 4), "b": torch.arange(5), "half": torch.randn(2).bfloat16()},
    "scalar": torch.tensor(2.5),
    "numbers": [1, 2.0, True, None, "text", 1e-300],
    "pair": (torch.ones(2), (3, 4)),
    "by number": {0: torch.zeros(1), 1: {"x": 0.1}},
    "nothing": {},
}


def test_round_trip(tmp_path):
    again = load(save(tmp_path, 7, STATE))
    assert same(again, STATE)
    assert isinstance(again["pair"], tuple) and isinstance(again["numbers"], list)
    assert again["by number"][1]["x"] == 0.1


def test_same_sees_differences():
    one = torch.ones(3)
    assert same({"a": [one]}, {"a": [one.clone()]})
    for other in (one + 1e-7, one.double(), one[:2], None):
        assert not same({"a": [one]}, {"a": [other]})


def test_floats_survive_exactly(tmp_path):
    values = [0.1, 1 / 3, 1e-45, math.pi, -0.0, float("inf")]
    assert load(save(tmp_path, 0, {"v": values}))["v"] == values


def test_views_and_shared_tensors(tmp_path):
    base = torch.randn(4, 4)
    state = {"t": base.t(), "row": base[1], "again": base}
    assert same(load(save(tmp_path, 0, state)), state)


def test_keys_that_look_alike(tmp_path):
    """{"a/b": x} and {"a": {"b": y}} are two tensors."""
    state = {"a/b": torch.ones(2), "a": {"b": torch.zeros(2)}, 1: torch.ones(1), "1": torch.zeros(1)}
    assert same(load(save(tmp_path, 0, state)), state)


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000015", "step-00000020"]
    assert newest(tmp_path)[1] == {"step": 20}


def test_nothing_there(tmp_path):
    assert newest(tmp_path / "nowhere") is None


def truncate(path):
    weights = path / "tensors.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def zero(path):
    """What a power cut leaves: the right size, no content."""
    weights = path / "tensors.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


def cut_json(path):
    state = path / "state.json"
    state.write_text(state.read_text()[:20])


def foreign_json(path):
    (path / "state.json").write_text(json.dumps([1, 2]))


def remove(path):
    (path / "tensors.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, zero, cut_json, foreign_json, remove])
def test_a_damaged_one_is_passed_over(tmp_path, damage, capsys):
    save(tmp_path, 5, {"step": 5, "w": torch.ones(100)})
    damage(save(tmp_path, 10, {"step": 10, "w": torch.ones(100)}))
    path, state = newest(tmp_path)
    assert path.name == "step-00000005" and state["step"] == 5
    assert "step-00000010" in capsys.readouterr().out
    with pytest.raises(ValueError, match="step-00000010"):
        load(tmp_path / "step-00000010")


def test_damaged_ones_do_not_push_out_a_new_one(tmp_path):
    for step in (5, 10, 15):
        truncate(save(tmp_path, step, {"w": torch.ones(9)}, keep=9))
    save(tmp_path, 3, {"step": 3}, keep=1)
    assert newest(tmp_path)[1] == {"step": 3}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None])
def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch, error):
    save(tmp_path, 5, {"w": torch.ones(3)})

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise error or checkpoint.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 10, {"w": torch.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    assert load(tmp_path / "step-00000005")["w"].all()


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / ".writing-00000003-123").mkdir()
    (tmp_path / ".writing-00000003-123" / "tensors.safetensors").write_bytes(b"half")
    save(tmp_path, 5, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000005"]
    assert found(tmp_path) == [tmp_path / "step-00000005"]


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match="object at /a/0"):
        save(tmp_path, 0, {"a": [object()]})
    assert not list(tmp_path.iterdir())
