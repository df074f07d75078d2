"""The full-scale recipe on tiny random stand-ins of every class that it names, in one process and in two."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion import store
from pocketdiffusion.cli.main import guarded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """SD3 as diffusers saves it, Gemma 2 as transformers does, and a few captioned pictures."""
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "teachers")
        text, pipelines = (importlib.import_module(name) for name in ("tiny_text", "tiny_pipelines"))
    pipelines.saved("sd3", folder / "sd3")
    text.part("gemma", folder / "gemma", folder / "gemma")
    (folder / "photos").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
        (folder / "photos" / f"{i}.txt").write_text("two green stars")
    return folder


def flags(stand_ins, out):
    told = {
        "data": stand_ins / "photos",
        "teacher": stand_ins / "sd3",
        "gemma": stand_ins / "gemma",
        "out": out,
        "preset": "smoke",
        "sizes": "16 32",
        "steps": "3 3",
        "batch": "4 2",
        "shifts": "1 3",
        "few-steps": 3,
        "bf16": False,
    }
    return ["snapgen_full", *(word for k, v in told.items() for word in (f"--{k}", *str(v).split()))]


def finished(out):
    """Both results, as networks of three stages that each went on from the one before."""
    found = [store.load(out / name) for name in ("transformer", "few_step")]
    weights = [network.leave.weight for network in found]
    assert all(w.abs().max() > 0 for w in weights) and not torch.equal(*weights)
    x, t, cond = found[0].example()
    assert all(network(x, t, cond).isfinite().all() for network in found)
    assert sorted(p.name for p in out.glob("*/checkpoints")) == ["checkpoints"] * 3


def test_in_one_process(stand_ins, tmp_path):
    assert guarded(["train", *flags(stand_ins, tmp_path)]) == 0
    finished(tmp_path)


def test_in_two_processes(stand_ins, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pocketdiffusion"]
    done = subprocess.run(
        [sys.executable, *words, "train", *flags(stand_ins, tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    finished(tmp_path)


def test_lists_of_another_length_are_told(stand_ins, tmp_path, capsys):
    with pytest.raises(SystemExit):
        guarded(["train", *flags(stand_ins, tmp_path), "--steps", "3"])
    assert "--steps has 1 values, --sizes has 2" in capsys.readouterr().err
