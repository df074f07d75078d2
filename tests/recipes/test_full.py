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
from pocketdiffusion.export import foreign
from pocketdiffusion.recipes import snapgen_full
from pocketdiffusion.teachers.text import ForeignText
from pocketdiffusion.train.health import Watch

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


def flags(stand_ins, out, **more):
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
        "taps": 2,
        "bf16": False,
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return ["snapgen_full", *(word for k, v in told.items() for word in (f"--{k}", *str(v).split()))]


def finished(out):
    """Both results, as networks of three stages that each went on from the one before."""
    pipes = [foreign.opened(out / name) for name in ("pipeline", "few_step")]
    found = [pipe.transformer for pipe in pipes]
    weights = [network.leave.weight for network in found]
    assert all(w.abs().max() > 0 for w in weights) and not torch.equal(*weights)
    x, t, cond = found[0].example()
    assert all(network(x, t, cond).isfinite().all() for network in found)
    assert sorted(p.name for p in out.glob("*/checkpoints")) == ["checkpoints"] * 3
    schedules = [pipe.schedule for pipe in pipes]
    assert [(s.sampler, s.steps, s.size) for s in schedules] == [("euler", 28, 32), ("renoise", 4, 32)]
    pictures = [pipe("two green stars", steps=s)[0] for pipe, s in zip(pipes, (2, 4))]
    assert all(picture.size == (32, 32) for picture in pictures)


@pytest.mark.parametrize("bf16", [False, True])
def test_in_one_process(stand_ins, tmp_path, bf16):
    assert guarded(["train", *flags(stand_ins, tmp_path, bf16=bf16)]) == 0
    finished(tmp_path)


def test_offloaded_and_with_text_read_once(stand_ins, tmp_path, monkeypatch):
    asked, embed = [], ForeignText.embed
    monkeypatch.setattr(
        ForeignText, "embed", lambda self, texts: asked.append(list(texts)) or embed(self, texts)
    )
    argv = flags(stand_ins, tmp_path / "out", cache=tmp_path / "kept", look=0)
    assert guarded(["train", *argv, "--offload"]) == 0
    # one caption and the empty one, by two readers; other questions are for examples and for guidance
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) <= 4
    assert asked.count(["two green stars"]) <= 2
    finished(tmp_path / "out")


def full(stand_ins, out, **more):
    told = {
        "data": stand_ins / "photos",
        "teacher": str(stand_ins / "sd3"),
        "gemma": str(stand_ins / "gemma"),
        "out": out,
        "preset": "smoke",
        "sizes": (16,),
        "steps": (2,),
        "batch": (2,),
        "shifts": (1.0,),
        "few_steps": 1,
        "taps": 2,
        "bf16": False,
    }
    return snapgen_full.Args(**told | more)


def test_few_steps_begin_with_the_averaged_weights(stand_ins, tmp_path, monkeypatch):
    seen = {}

    def distil(full, stage):
        seen["state"] = state = original(full, stage)
        seen["live"] = full.student.leave.weight.detach().clone()
        with state.averaged():
            seen["averaged"] = full.student.leave.weight.detach().clone()
        return state

    def hasten(full, schedule):
        seen["start"] = full.student.leave.weight.detach().clone()
        return seen["state"]

    original = snapgen_full.distil
    monkeypatch.setattr(snapgen_full, "distil", distil)
    monkeypatch.setattr(snapgen_full, "hasten", hasten)
    snapgen_full.main(full(stand_ins, tmp_path))
    assert torch.equal(seen["start"], seen["averaged"]) and not torch.equal(seen["start"], seen["live"])
    saved = store.load(tmp_path / "pipeline" / "transformer").leave.weight
    assert torch.equal(saved, seen["averaged"].half().float())


def test_what_the_few_step_student_draws_is_watched(stand_ins, tmp_path):
    made = snapgen_full.Full(full(stand_ins, tmp_path))
    torch.nn.init.normal_(made.student.leave.weight, std=0.3)
    schedule = snapgen_full.Schedule(sampler="renoise", steps=2, times=(1.0, 0.5), size=16)
    hooks = snapgen_full.watches(made, schedule)
    watches = [hook.__closure__[0].cell_contents for hook in hooks]
    found = {w.name: w for w in watches if isinstance(w, Watch)}
    assert set(found) == {"accuracy", "ratio", "diversity", "drift"}
    healthy = found["diversity"].measure(None)
    assert (
        healthy > 0 and found["diversity"].low > 0 and torch.tensor(found["drift"].measure(None)).isfinite()
    )
    # one picture for every noise
    for p in made.student.parameters():
        torch.nn.init.zeros_(p)
    levels = torch.tensor([1.0, 0.0])
    same = made.drawn(["a", "b"], "euler", levels, 16)
    assert same.shape == (8, 4, 8, 8)
    assert len(snapgen_full.watches(snapgen_full.Full(full(stand_ins, tmp_path, look=0)), schedule)) == 2


def test_blocks_are_spaced_evenly_up_to_the_last():
    blocks = tuple(map(str, range(38)))
    assert snapgen_full.spaced(blocks, 8) == ("4", "9", "13", "18", "23", "27", "32", "37")
    assert snapgen_full.spaced(blocks, 1) == ("37",) and snapgen_full.spaced(blocks, 38) == blocks


def test_in_two_processes(stand_ins, tmp_path):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pocketdiffusion"]
    done = subprocess.run(
        [sys.executable, *words, "train", *flags(stand_ins, tmp_path, look=2)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    finished(tmp_path)


def test_lists_of_another_length_are_told(stand_ins, tmp_path, capsys):
    with pytest.raises(SystemExit):
        guarded(["train", *flags(stand_ins, tmp_path), "--steps", "3"])
    assert "--steps has 1 values, --sizes has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        ({"taps": 0}, "--taps 0: expected 1 or more"),
        ({"levels": 0}, "--levels 0: expected 1 or more"),
        ({"sizes": (0,)}, "--sizes 0: expected pixels, 1 or more"),
        ({"sizes": (18,)}, "--sizes 18: expected multiples of 8 pixels"),
        ({"taps": 3}, "--taps 3: the teacher has 2 blocks"),
    ],
)
def test_flags_that_do_not_fit_are_named(stand_ins, tmp_path, more, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        snapgen_full.Full(full(stand_ins, tmp_path, **more))
