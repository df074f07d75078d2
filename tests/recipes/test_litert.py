"""The LiteRT script runs in an environment of its own; here, what it says where LiteRT is missing."""

import importlib.util

import pytest

from pocketdiffusion.cli.main import guarded


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--precisions", "int3"], "--precisions int3: expected fp32, int8, int4"),
        (["--threads", "0"], "--probes and --threads: expected 1 or more"),
        (["--runs", "1"], "--runs: 2 or more"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, capsys, flags, message):
    assert guarded(["train", "scenes_litert", "--out", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(bool(importlib.util.find_spec("litert_torch")), reason="LiteRT is here")
def test_without_litert_it_says_where_to_look(tmp_path, capsys):
    assert guarded(["train", "scenes_litert", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no module 'litert_torch': LiteRT needs an environment of its own" in line
