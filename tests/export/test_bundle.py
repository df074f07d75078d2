"""A bundle: parity, running it with and without the package, and refusing what is not whole."""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.bits import Plan, choose, sensitivity, uniform
from pocketdiffusion.compress.round import layers
from pocketdiffusion.export import onnx as target
from pocketdiffusion.export.budget import spread
from pocketdiffusion.export.bundle import Choice, export, limits
from pocketdiffusion.export.parity import LIMITS, ParityError, demand, psnr, relative
from pocketdiffusion.export.program import Program, programs
from pocketdiffusion.pipeline import Pipeline, to_pil
from pocketdiffusion.runtime.bundle import Bundle

if not importlib.util.find_spec("onnxruntime"):
    pytest.skip("needs the extra onnx", allow_module_level=True)
pytestmark = pytest.mark.slow
PROMPTS = ["a red circle", "two green stars"]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    """The tiny pipeline, exported by the command line."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    assert guarded(["export", str(tiny_folder), "-o", str(out)]) == 0
    return out


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_same_pictures_as_the_pipeline(folder, tiny_pipe):
    x = tiny_pipe.sample(PROMPTS, "a ring", seed=5, steps=4, guidance=3.0)
    ours = Bundle.open(folder).generate(PROMPTS, "a ring", seed=5, steps=4, guidance=3.0)
    theirs = np.stack([np.asarray(to_pil(one)) for one in x])
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert not np.array_equal(ours[0], ours[1])
    report = json.loads((folder / "report.json").read_text())
    assert all(row["rel"] < 1e-4 for row in report["components"]) and min(report["psnr"]) > 60


def test_one_component_at_a_time_gives_the_same(folder):
    bundle = Bundle.open(folder, sequential=True)
    assert not bundle.loaded
    steps = []
    a = bundle.generate(PROMPTS, callback=steps.append)
    assert not bundle.loaded
    assert [(s.picture, s.step, s.steps) for s in steps] == [
        (i, k + 1, 3) for i in range(2) for k in range(3)
    ]
    np.testing.assert_array_equal(a, Bundle.open(folder).generate(PROMPTS))


def test_it_runs_without_the_package_and_without_torch(folder, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')\n")
    (tmp_path / "pocketdiffusion.py").write_text("raise ImportError('the package was imported')\n")
    argv = [sys.executable, str(folder / "run.py"), "a red circle", "-o", str(tmp_path / "a.png")]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    command = ["generate", "a red circle", "--bundle", str(folder), "-o", str(tmp_path / "b.png")]
    assert guarded(command) == 0
    from PIL import Image

    np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), Image.open(tmp_path / "b.png"))
    bad = subprocess.run([*argv, "--steps", "0"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and "steps" in bad.stderr


def refused(capsys, folder, what):
    assert guarded(["generate", "x", "--bundle", str(folder), "-o", str(folder / "x.png")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and what in error, error


@pytest.mark.parametrize("name", ["denoiser.onnx", "tokenizer.json"])
def test_changed_and_missing_files_are_refused(copy, capsys, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-7])
    refused(capsys, copy, "does not match the manifest")
    (copy / name).unlink()
    refused(capsys, copy, f"{name}: no such file")


def test_swapped_parts_are_refused(copy, capsys):
    shutil.copy(copy / "decoder.onnx", copy / "denoiser.onnx")
    refused(capsys, copy, "denoiser.onnx: does not match")


@pytest.mark.parametrize(
    "change, what",
    [
        ({"format": 99}, "bundle format 99"),
        ({"target": "web"}, "a bundle for web"),
        ({"extra": 1}, "'extra' is unknown"),
        ({"schedule": {"sampler": "magic"}}, "unknown sampler 'magic'"),
        ({"components": {}}, "no component 'text_encoder'"),
    ],
)
def test_other_manifests_are_refused(copy, capsys, change, what):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(capsys, copy, what)


def test_what_is_no_bundle(tmp_path, capsys):
    refused(capsys, tmp_path, "is no bundle")
    (tmp_path / "manifest.json").write_text("{")
    refused(capsys, tmp_path, "not a readable manifest")


def test_eval_and_bench_take_a_bundle(folder, tiny_folder, tmp_path, capsys):
    few = ["--prompts", "1", "--per-prompt", "1", "--frechet", "0", "--model", str(tiny_folder)]
    for more, out in (([], "a"), (["--bundle", str(folder)], "b")):
        assert guarded(["eval", *few, *more, "--out", str(tmp_path / out)]) == 0
    a, b = (json.loads((tmp_path / out / "result.json").read_text()) for out in "ab")
    assert a["scores"] == b["scores"] and (a["steps"], b["model"]) == (b["steps"], str(folder))
    capsys.readouterr()
    assert guarded(["bench", "--model", str(tiny_folder), "--bundle", str(folder), "--runs", "2"]) == 0
    table = capsys.readouterr().out
    assert table.count("eager fp32") == 4 == table.count(str(folder))  # three parts and a picture
    assert guarded(["bench", "--model", "scenes", "--bundle", str(folder), "--runs", "2"]) == 2


def test_an_exported_size_is_fixed(folder, capsys):
    assert guarded(["generate", "x", "--bundle", str(folder), "--size", "64"]) == 2
    assert "32 x 32" in capsys.readouterr().err


@pytest.mark.parametrize("precision", [p for p in target.PRECISIONS if p != "fp32"])
def test_precisions(tiny_pipe, tmp_path, precision):
    """Each is near the original, no nearer than its bits allow, and smaller than fp32."""
    text = programs(tiny_pipe)["text_encoder"]
    fine, path = tmp_path / "fine.onnx", tmp_path / "text.onnx"
    target.write(text, fine, "fp32")
    target.write(text, path, precision)
    rel = relative(text, target.opened(path, 1), [dict(text.inputs)])
    assert 1e-5 < rel < LIMITS[precision][0]
    assert path.stat().st_size < fine.stat().st_size


@pytest.mark.parametrize("precision", ["int8", "w4"])
def test_precisions_of_convolutions(tiny_pipe, tmp_path, precision):
    decoder = programs(tiny_pipe)["decoder"]
    target.write(decoder, tmp_path / "d.onnx", precision)
    rel = relative(decoder, target.opened(tmp_path / "d.onnx", 1), [dict(decoder.inputs)])
    assert 1e-4 < rel < LIMITS[precision][0]
    if precision == "int8":
        assert "QuantizeLinear" in target.operators(tmp_path / "d.onnx")


def test_packing_changes_no_value(tiny_pipe, tmp_path):
    """The packed file computes what the rounded torch model computes."""
    from pocketdiffusion.compress.round import rounded

    text = programs(tiny_pipe)["text_encoder"]
    names = list(layers(text.module))
    bits = {name: (4, 8, 16)[i % 3] for i, name in enumerate(names)}
    target.write(text, tmp_path / "t.onnx", "w4", bits)
    plain = replace(text, module=rounded(text.module, bits))
    rel = relative(plain, target.opened(tmp_path / "t.onnx", 1), [dict(text.inputs)])
    assert rel < 2e-6
    assert relative(text, target.opened(tmp_path / "t.onnx", 1), [dict(text.inputs)]) > 1e-3
    found = target.operators(tmp_path / "t.onnx")
    assert found["MatMulNBits"] >= 1 and found["DequantizeLinear"] >= 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("channels", [32, 5])
def test_packing_convolutions_changes_no_value(tmp_path, bits, channels):
    """Rows of 288 inputs have nine groups at 4 bits, rows of 45 one."""
    from pocketdiffusion.compress.round import rounded

    torch.manual_seed(0)
    conv = torch.nn.Sequential(torch.nn.Conv2d(channels, 7, 3)).eval().requires_grad_(False)
    program = Program("conv", conv, {"x": torch.randn(1, channels, 6, 6)}, ("y",))
    target.write(program, tmp_path / "c.onnx", "w4", {"0": bits})
    plain = replace(program, module=rounded(conv, {"0": bits}))
    assert relative(plain, target.opened(tmp_path / "c.onnx", 1), [dict(program.inputs)]) < 2e-6
    if channels == 32:
        assert (tmp_path / "c.onnx").stat().st_size < 7 * 288 * bits / 8 + 4 * 63 + 1500
    with pytest.raises(ValueError, match="'1' is in one of them only"):
        target.write(program, tmp_path / "c.onnx", "w4", {"0": bits, "1": 8})


def test_a_budget_is_kept(tiny_folder, tmp_path, capsys):
    pipe = Pipeline.from_pretrained(tiny_folder)
    whole = sum(uniform(p.module, 16).bytes for p in programs(pipe).values())
    argv = ["export", str(tiny_folder), "--precision", "w4", "--size-mb", str(0.4 * whole / 1e6)]
    assert guarded([*argv, "--plan", str(tmp_path / "plans"), "-o", str(tmp_path / "small")]) == 0
    assert "predicted relative error" in capsys.readouterr().out
    plans = [json.loads(p.read_text()) for p in sorted((tmp_path / "plans").iterdir())]
    assert sum(p["bytes"] for p in plans) <= 0.4 * whole
    assert len({b for p in plans for b in p["bits"].values()}) > 1
    Bundle.open(tmp_path / "small").generate(["a red circle"])
    # the files hold little more than the weights of their plans: graphs of some 60 kB, biases and norms
    files = sum(p.stat().st_size for p in (tmp_path / "small").glob("*.onnx"))
    assert files < sum(p["bytes"] for p in plans) + 300_000
    assert guarded(["export", str(tiny_folder), "--precision", "w4", "--size-mb", "0.001", "--dry-run"]) == 0
    assert guarded(["export", str(tiny_folder), "--precision", "w4", "--size-mb", "0.001", "-o", "x"]) == 2
    assert "cannot be met" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, what",
    [
        (["--target", "toaster", "-o", "x"], "unknown target 'toaster'"),
        (["--precision", "int3", "-o", "x"], "--precision int3"),
        ([], "-o DIR"),
        (["--size-mb", "3", "-o", "x"], "--size-mb chooses weight bits"),
        (["--size", "33", "-o", "x"], "multiple of"),
    ],
)
def test_wrong_wishes(tiny_folder, capsys, argv, what):
    assert guarded(["export", str(tiny_folder), *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and what in error


def test_plans_look_at_all_levels():
    """Pictures one after the other, each from noise to data: no level is left out for falling into step."""
    probes = [{"t": torch.tensor(1 - step / 20)} for _ in range(3) for step in range(20)]
    levels = sorted({round(float(p["t"]), 2) for p in spread(probes)})
    assert len(levels) >= 5 and levels[0] < 0.3 and levels[-1] > 0.9
    assert spread(probes[:2]) == probes[:2] and spread(probes[:1]) == probes[:1]


def test_a_plan_of_another_model(tiny_folder, tmp_path, capsys):
    for name in ("text_encoder", "denoiser", "decoder"):
        Plan({"nowhere": 8}, 1, 0.0).save(tmp_path / f"{name}.json")
    argv = ["export", str(tiny_folder), "--plan", str(tmp_path), "-o", str(tmp_path / "out")]
    assert guarded([*argv, "--precision", "w8"]) == 2
    assert "the plan of text_encoder is of another model" in capsys.readouterr().err
    assert guarded([*argv, "--precision", "fp16"]) == 2
    assert "--plan: target onnx reads one with int8, w8, w4" in capsys.readouterr().err


def test_a_part_of_a_pipeline(tiny_folder, tmp_path, capsys):
    argv = ["export", str(tiny_folder), "--components", "decoder", "-o", str(tmp_path / "part")]
    assert guarded(argv) == 0
    assert {p.name for p in (tmp_path / "part").glob("*.onnx")} == {"decoder.onnx"}
    assert "dB" not in capsys.readouterr().out
    refused(capsys, tmp_path / "part", "no component 'text_encoder'; this bundle holds a part")
    assert guarded(["export", "--components", "wheel", "-o", "x"]) == 2
    assert "--components wheel: expected some of text_encoder" in capsys.readouterr().err


def test_a_wrong_result_is_not_written(tiny_pipe, tmp_path, monkeypatch):
    def broken(program, path, *rest):
        with torch.no_grad():
            wrong = replace(program, module=program.module)
            for p in wrong.module.parameters():
                p.add_(0.3)
            good(wrong, path, *rest)
            for p in wrong.module.parameters():
                p.sub_(0.3)

    good = target.write
    monkeypatch.setattr(target, "write", broken)
    with pytest.raises(ParityError, match="text_encoder in fp32 is off"):
        export(tiny_pipe, tmp_path / "out", Choice())
    assert not list(tmp_path.iterdir())


def test_limits_are_told():
    assert limits("denoiser", 10**8) == []
    assert any("ArrayBuffer" in w for w in limits("denoiser", 3 * 2**30))
    assert len(limits("denoiser", 5 * 2**30)) == 3


def test_numbers_that_are_not_are_no_parity():
    with pytest.raises(ParityError):
        demand("decoder", "fp32", float("nan"))
    assert psnr(np.zeros(3), np.zeros(3)) == float("inf")
    assert psnr(np.zeros(3), np.ones(3)) == pytest.approx(6.02, abs=0.01)


def test_sensitivity_of_a_program(tiny_pipe):
    step = programs(tiny_pipe)["denoiser"]
    errors = sensitivity(step.module, [tuple(step.inputs.values())], (4,))
    assert set(errors) == set(layers(step.module))
    plan = choose(step.module, errors, uniform(step.module, 16).bytes // 2)
    assert {16, 4} == set(plan.bits.values())
