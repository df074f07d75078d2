"""Lazy recipes run for a few steps."""

import json

import pytest

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.pipeline import Pipeline

pytestmark = pytest.mark.slow
FLAGS = ["--steps", "6", "--batch", "2", "--bf16", "False", "--looked", "16", "--steps-sampled", "6"]


def run(*argv):
    return guarded(["train", "lazy_scenes", *map(str, argv)])


def test_lazy_scenes(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(*FLAGS, "--model", tiny_folder, "--out", out, "--laziness", "0.25", "--rho", "1") == 0
    told = capsys.readouterr().out
    assert "the gates themselves: 0." in told and "--lazy 0.25" in told
    pipe = Pipeline.from_pretrained(out / "pipeline")
    plan = pipe.lazy("0.25")
    assert plan.laziness == pytest.approx(0.25, abs=0.03)
    assert all(not row[i] for row in plan.skips.values() for i in (0, 2, 4))
    assert pipe("a star", lazy=plan)[0].size == (32, 32) and (out / "gates.safetensors").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps-sampled", "5"], "expected an even number"),
        (["--laziness", "0.7"], "at most 0.5"),
        (["--branches", "blocks.*.conv"], "no submodule like blocks"),
    ],
)
def test_what_is_refused(flags, message, tiny_folder, tmp_path, capsys):
    assert run("--model", tiny_folder, "--out", tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err


def test_lazy_claims(tiny_folder, tmp_path, capsys):
    flags = ["--model", tiny_folder, "--out", tmp_path / "run", "--sampled", "6", "--laziness", "0.2"]
    flags += ["--steps", "16", "--batch", "2", "--bf16", "False", "--looked", "16", "--seeds", "0"]
    flags += ["--pictures", "32", "--prompts", "0"]
    arms = ["full", "gates", "own", "alternating", "attn", "mlp", "fewer"]
    argv = ["train", "lazy_claims", *map(str, flags)]
    assert guarded([*argv, "--arms", *arms]) == 0
    kept = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "run").glob("*-0.json")}
    assert len(kept) == 7
    assert kept["full-6-0"]["calls"] == 1 and kept["fewer-6-0.2-0"]["calls"] == 0.8
    assert kept["alternating-6-0"]["calls"] == 0.5
    assert kept["gates-6-0.2-0"]["calls"] == pytest.approx(0.8, abs=0.03)
    table = capsys.readouterr().out
    assert "gates-6-0.2 - fewer-6-0.2" in table
    assert guarded([*argv, "--arms", "none"]) == 2
    assert "expected some of" in capsys.readouterr().err
