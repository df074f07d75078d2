"""pocket costs: measured here, exported to be measured elsewhere, taken back."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.costs import Costs
from pocketdiffusion.compress.ops import calls
from pocketdiffusion.export.program import flattened
from pocketdiffusion.models.dit import PRESETS, DiT

NEEDS_ONNX = pytest.mark.skipif(not importlib.util.find_spec("onnxruntime"), reason="needs the extra onnx")


def says(capsys, argv, code=0):
    assert guarded(["costs", *map(str, argv)]) == code
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("pocket: error:")]
    assert len(lines) == (1 if code else 0), error
    return lines[0] if lines else out


def test_a_pipeline_here(tiny_folder, tmp_path, capsys):
    argv = [tiny_folder, "--device", "cpu", "--runs", "2", "--names", "blocks.*", "-o", tmp_path / "c.json"]
    assert "blocks.0" in says(capsys, argv)
    (entry,) = Costs.load(tmp_path / "c.json").entries
    assert (entry.op, entry.seen) == ("Block", ("blocks.0", "blocks.1"))


@pytest.mark.slow
@NEEDS_ONNX
def test_onnxruntime(tmp_path, capsys):
    argv = ["DiT:smoke", "--runtime", "onnx", "--precision", "int8", "--runs", "2", "--names", "blocks.*.mlp"]
    says(capsys, [*argv, "-o", tmp_path / "c.json"])
    (entry,) = Costs.load(tmp_path / "c.json").entries
    assert (entry.op, entry.precision) == ("MLP", "int8") and "onnxruntime" in entry.device and entry.ms > 0


@pytest.mark.slow
@NEEDS_ONNX
def test_to_a_phone_and_back(tmp_path, capsys):
    folder, names = tmp_path / "blocks", ["--names", "blocks.*.cross", "blocks.*.mlp"]
    out = says(capsys, ["DiT:smoke", "--export", folder, *names])
    assert sorted(p.name for p in folder.iterdir()) == ["00-Attention.onnx", "01-MLP.onnx", "blocks.json"]
    assert "fill in 'ms'" in out
    take = ["--take", folder, "--device", "iPhone 16", "-o", tmp_path / "phone.json"]
    assert "00-Attention.onnx: 'ms' is None, expected a positive number" in says(capsys, take, 2)
    listed = json.loads((folder / "blocks.json").read_text())
    assert listed["entries"][0]["feeds"] == {"in0": [1, 16, 64], "in1": [1, 12, 64], "in2": [1, 12]}
    for i, row in enumerate(listed["entries"]):
        row["ms"] = 5.0 - i
    (folder / "blocks.json").write_text(json.dumps(listed))
    says(capsys, take)
    table = Costs.load(tmp_path / "phone.json")
    assert table.devices == ["iPhone 16"]
    with torch.device("meta"):
        deeper = DiT(replace(PRESETS["smoke"], depth=3))
    found = calls(deeper, deeper.example(1, "meta"), ["blocks.*.cross", "blocks.*.mlp"])
    assert table.total(found)[0] == 3 * (5.0 + 4.0)


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.parametrize("name", ["blocks.0", "blocks.0.attn"])
def test_an_exported_block_is_the_block(name, tmp_path):
    from pocketdiffusion.export import onnx
    from pocketdiffusion.export.parity import relative

    torch.manual_seed(0)
    model = DiT(PRESETS["smoke"]).eval().requires_grad_(False)
    torch.nn.init.normal_(model.blocks[0].cross.out.weight, std=0.05)
    (call,) = calls(model, model.example(2), [name])
    program = flattened(name, call.module, call.inputs)
    torch.testing.assert_close(program()["out0"], call.module(*call.inputs), rtol=0, atol=0)
    onnx.write(program, tmp_path / "a.onnx", "fp32")
    assert relative(program, onnx.opened(tmp_path / "a.onnx", 1), [dict(program.inputs)]) < 1e-4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--runtime", "coreml"], "--runtime coreml: expected eager or onnx"),
        (["--threads", "0"], "--batch and --threads: expected 1 or more"),
        (["--precision", "w3"], "dtype w3: expected fp32, bf16, fp16"),
        (["--device", "toaster"], "device toaster: expected auto, cpu, cuda or mps"),
        (["--component", "tail"], "--component tail: expected transformer"),
        (["--component", "vae"], "AutoencoderKL lists no BLOCKS and BRANCHES; name its parts"),
        (["--names", "blocks.9"], "DiT has no submodule 'blocks.9'"),
        (["--take", "none.json"], "--take: say on what"),
        (["--take", "none.json", "--device", "a", "-o", "b.json"], "none.json: not a readable table"),
        (["--take", "a", "--export", "b"], "--export writes blocks"),
    ],
)
def test_user_errors_are_one_line(tiny_folder, capsys, flags, message):
    assert message in says(capsys, [tiny_folder, *flags], 2)


@NEEDS_ONNX
def test_user_errors_of_onnx(capsys, tmp_path):
    assert "--precision bf16: ONNX has" in says(capsys, ["--runtime", "onnx", "--precision", "bf16"], 2)
    assert "no preset 'huge'" in says(capsys, ["DiT:huge"], 2)
    (tmp_path / "mine.txt").write_text("")
    argv = ["DiT:smoke", "--export", tmp_path, "--names", "blocks.*.mlp"]
    assert "holds other files; name a new folder" in says(capsys, argv, 2)
