"""ExecuTorch: every kind through XNNPACK, one call of it per denoising step, and its precisions."""

import importlib.util

import pytest
import torch
from torch import nn

from pocketdiffusion import store
from pocketdiffusion.export.parity import LIMITS, relative
from pocketdiffusion.export.program import Program, programs

if not importlib.util.find_spec("executorch"):
    pytest.skip("needs the extra executorch", allow_module_level=True)
from pocketdiffusion.export import executorch as target

pytestmark = pytest.mark.slow


def exported(program, path, precision="fp32", bits=None):
    target.write(program, path, precision, bits, [dict(program.inputs)])
    return relative(program, target.opened(path, 1), [dict(program.inputs)])


@pytest.mark.parametrize("kind", sorted(set(store.KINDS) - {"DiT", "H3AE"}))
def test_kinds(kind, program_of, tmp_path):
    """The DiT goes through as a denoising step, below; XNNPACK's partitioner finds cycles in H3AE."""
    assert exported(program_of(kind), tmp_path / "a.pte") < 1e-4


@pytest.fixture
def step(tiny_pipe):
    return programs(tiny_pipe)["denoiser"]


def test_a_denoising_step_is_one_call(step, tmp_path):
    assert exported(step, tmp_path / "a.pte") < 1e-5
    found = target.operators(tmp_path / "a.pte")
    assert found["delegate"] == 1
    assert not {"aten::mm", "aten::addmm", "aten::bmm", "aten::mul"} & set(found)


@pytest.mark.parametrize("precision", ["int8", "8da4w"])
def test_precisions(tiny_pipe, tmp_path, precision):
    text = programs(tiny_pipe)["text_encoder"]
    rel = exported(text, tmp_path / "a.pte", precision)
    assert 1e-4 < rel < LIMITS[precision][0]
    # layers that a plan keeps are exact: here all
    kept = {name: 16 for name, m in text.module.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    assert exported(text, tmp_path / "b.pte", precision, kept) < 1e-5
    assert (tmp_path / "a.pte").stat().st_size < (tmp_path / "b.pte").stat().st_size


def test_convolutions_in_int8(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3)).eval()
    net.requires_grad_(False)
    program = Program("conv", net, {"x": torch.randn(1, 3, 8, 8)}, ("y",))
    assert 1e-4 < exported(program, tmp_path / "c.pte", "int8") < 0.05


def test_a_plan_of_another_model(step, tmp_path):
    with pytest.raises(ValueError, match="of another model"):
        target.write(step, tmp_path / "a.pte", "int8", {"nowhere": 16})


def test_a_whole_bundle(tiny_folder, tmp_path, capsys):
    """By the command line; then drawn from and timed with one thread and with two."""
    from pocketdiffusion.cli.main import guarded

    folder, out = str(tmp_path / "bundle"), str(tmp_path / "a.png")
    assert guarded(["export", str(tiny_folder), "--target", "executorch", "-o", folder]) == 0
    assert "delegate calls" in capsys.readouterr().out
    assert guarded(["generate", "a red circle", "--bundle", folder, "-o", out]) == 0
    more = ["--threads", "1", "2", "--runs", "2", "--pictures", "2", "--no-memory"]
    assert guarded(["bench", "--model", str(tiny_folder), "--bundle", folder, *more]) == 0
    assert capsys.readouterr().out.count(folder) == 4
    assert not (tmp_path / "bundle" / "run.py").exists()  # which knows onnxruntime alone
