"""A lazy plan as static graphs: few of them, exact, and the bundle draws what the pipeline draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.lazy import Plan
from pocketdiffusion.export.lazy import fewer, programs, resting
from pocketdiffusion.export.program import programs as plain
from pocketdiffusion.nn.gate import branches
from pocketdiffusion.pipeline import Schedule
from pocketdiffusion.runtime.bundle import Bundle
from pocketdiffusion.runtime.sample import sample

TIMES = (1.0, 0.8, 0.6, 0.4, 0.2)


def plan(*rows):
    """Columns of "abc": which of the branches rest, step by step."""
    names = sorted({n for row in rows for n in row})
    return Plan(TIMES, {n: tuple(n in row for row in rows) for n in names})


def test_steps_that_differ_little_share_a_program():
    made = plan("", "abcd", "", "abc", "d")
    assert fewer(made, 4) == made
    three = fewer(made, 3)
    assert [sorted(s) for s in resting(three)] == [[], ["a", "b", "c"], [], ["a", "b", "c"], ["d"]]
    two = fewer(made, 2)
    assert [sorted(s) for s in resting(two)] == [[], ["a", "b", "c"], [], ["a", "b", "c"], []]
    assert fewer(made, 1).laziness == 0 and fewer(made, 1).skips.keys() == made.skips.keys()
    for most in range(1, 5):
        small = resting(fewer(made, most))
        assert len(set(small)) <= most and all(a <= b for a, b in zip(small, resting(made)))
    with pytest.raises(ValueError, match="--graphs 0"):
        fewer(made, 0)


def lazy_pipe(pipe, interval=(0.0, 1.0), guidance=2.0):
    pipe.schedule = Schedule(steps=6, guidance=guidance, interval=interval, size=32)
    times, names = tuple(pipe.schedule.levels()[:-1].tolist()), branches(pipe.transformer)
    rows = {n: tuple(i % 2 == 1 or (i == 4 and n.endswith("mlp")) for i in range(6)) for n in names[1:]}
    pipe.plans["half"] = Plan(times, rows)
    return pipe


def ran(pipe, made, steps, prompts):
    """The runtime's own loop around the torch programs."""
    from pocketdiffusion.export.bundle import Choice, manifest_of
    from pocketdiffusion.export.parity import tokens

    manifest = manifest_of(pipe, made, Choice(), "")
    manifest.schedule["lazy"] = steps
    calls = []

    def call(name, inputs):
        calls.append(name)
        given = {k: torch.from_numpy(np.asarray(inputs[k])) for k in made[name].inputs}
        return {k: v.numpy() for k, v in made[name](given).items()}

    return sample(call, manifest, [tokens(pipe, p) for p in prompts], tokens(pipe, ""), seed=3), calls


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_programs_of_a_plan_sample_as_the_pipeline_does(tiny_pipe, guidance):
    pipe = lazy_pipe(tiny_pipe, guidance=guidance)
    made, steps = programs(pipe, plain(pipe), pipe.plans["half"])
    assert list(made) == ["text_encoder", "denoiser", "denoiser_1", "denoiser_2", "decoder"]
    assert steps[0] == "denoiser" and len(set(steps)) == 3
    prompts = ["a red circle", "two green stars"]
    pictures, calls = ran(pipe, made, steps, prompts)
    assert [c for c in calls if c.startswith("denoiser")] == steps * 2
    wanted = pipe.sample(prompts, seed=3, lazy=pipe.plans["half"]).numpy()
    np.testing.assert_allclose(pictures, wanted, atol=2e-4)
    assert not np.allclose(wanted, pipe.sample(prompts, seed=3).numpy(), atol=1e-3)


def test_guidance_that_begins_later_finds_nothing_kept(tiny_pipe):
    """At the level at which guidance begins all is computed, as in torch; no program is made for less."""
    pipe = lazy_pipe(tiny_pipe, interval=(0.3, 0.9))
    first = next(i for i, t in enumerate(pipe.schedule.levels()) if t <= 0.9)
    assert first == 1, "a step at which the plan rests"
    only = replace_rows(pipe.plans["half"], {1: True})
    for plan, names in ((pipe.plans["half"], 3), (only, 1)):
        made, steps = programs(pipe, plain(pipe), plan)
        assert steps[first] == "denoiser" and len(set(steps)) == names == len(made) - 2
        pictures, calls = ran(pipe, made, steps, ["a red circle"])
        assert [c for c in calls if c.startswith("denoiser")] == steps
        wanted = pipe.sample(["a red circle"], seed=3, lazy=plan).numpy()
        np.testing.assert_allclose(pictures, wanted, atol=2e-4)


def replace_rows(plan, rests):
    """Every branch rests at the steps ``rests`` alone."""
    return Plan(plan.times, {n: tuple(rests.get(i, False) for i in range(6)) for n in plan.skips})


@pytest.mark.slow
def test_a_lazy_bundle(tiny_pipe, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    pipe = lazy_pipe(tiny_pipe)
    pipe.save_pretrained(tmp_path / "pipe")
    argv = ["export", str(tmp_path / "pipe"), "--lazy", "half", "-o", str(tmp_path / "bundle")]
    assert guarded(argv) == 0
    assert "3 programs of the denoiser" in capsys.readouterr().out
    bundle = Bundle.open(tmp_path / "bundle")
    found = bundle.generate(["a red circle"], seed=3).astype(float)
    wanted = pipe.sample(["a red circle"], seed=3, lazy=pipe.plans["half"])
    wanted = ((wanted + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(found - wanted).max() <= 1
    with pytest.raises(ValueError, match="this lazy bundle takes 6 steps, got 4"):
        bundle.generate(["a red circle"], steps=4)
    single = Bundle.open(tmp_path / "bundle", sequential=True).generate(["a red circle"], seed=3)
    assert np.abs(single.astype(float) - found).max() <= 1


def test_what_is_refused(tiny_pipe, tmp_path, capsys):
    pipe = lazy_pipe(tiny_pipe)
    pipe.schedule = replace(pipe.schedule, steps=5)
    with pytest.raises(ValueError, match="the plan is for 6 steps"):
        programs(pipe, plain(pipe), pipe.plans["half"])
    pipe.save_pretrained(tmp_path / "pipe")
    argv = ["export", str(tmp_path / "pipe"), "-o", str(tmp_path / "bundle"), "--lazy"]
    for flags, message in (
        (["half", "--target", "web"], "--lazy half: needs target onnx"),
        (["none"], "no lazy plan 'none' for this pipeline; it has half"),
        (["half", "--graphs", "0"], "--graphs 0: expected 1 or more"),
    ):
        assert guarded([*argv, *flags]) == 2
        assert message in capsys.readouterr().err
