"""The demo and the evaluation verb, from end to end on a tiny random pipeline."""

import json

import pytest

from pocketdiffusion.cli.main import guarded

pytestmark = pytest.mark.slow


def test_demo_writes_a_report(tiny_folder, tmp_path, capsys):
    flags = ["--train-steps", "6", "--prompts", "1", "--threads", "1"]
    argv = ["demo", "--out", tmp_path, "--model", tiny_folder, *flags]
    assert guarded([str(a) for a in argv]) == 0, capsys.readouterr().err
    page = (tmp_path / "report.html").read_text()
    for heading in ("From prompt to picture", "Training, live", "Scored", "Timed", "Onto a device"):
        assert heading in page
    assert (tmp_path / "shipped.png").exists()


def test_eval_writes_numbers_and_a_report(tiny_folder, tmp_path, capsys):
    flags = ["--prompts", "1", "--per-prompt", "2", "--frechet", "8", "--batch", "6", "--out", tmp_path]
    assert guarded([str(a) for a in ["eval", "--model", tiny_folder, *flags]]) == 0, capsys.readouterr().err
    numbers = json.loads((tmp_path / "result.json").read_text())
    assert numbers["pictures"] == 12 and set(numbers["scores"]) >= {"single_object", "position"}
    assert 0 <= numbers["overall"] <= 1 and numbers["frechet"] > 0
    assert "report.html" in {p.name for p in tmp_path.iterdir()}


def test_a_random_model_is_not_scored_well(tiny_folder, tmp_path):
    flags = ["--prompts", "2", "--per-prompt", "1", "--frechet", "0"]
    argv = ["eval", "--model", tiny_folder, *flags, "--out", tmp_path]
    assert guarded([str(a) for a in argv]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["overall"] < 0.2
