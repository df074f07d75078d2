"""Core ML packages: every kind of network converts, packing changes no value, names and types are ours."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketdiffusion import store
from pocketdiffusion.compress.round import grid, layers, rounded
from pocketdiffusion.export import coreml as target
from pocketdiffusion.export import mil
from pocketdiffusion.export.parity import LIMITS, relative
from pocketdiffusion.export.program import Program, programs
from pocketdiffusion.nn import rope
from pocketdiffusion.nn.attention.full import Attention

if not importlib.util.find_spec("coremltools"):
    pytest.skip("needs the extra coreml", allow_module_level=True)
pytestmark = pytest.mark.slow


class Small(nn.Module):
    """Each kind of layer that is packed in its own way; a scale behind a convolution; two outputs."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 64)
        self.linear = nn.Linear(64, 16)
        self.odd = nn.Linear(16, 8)
        self.point = nn.Conv2d(64, 6, 1)
        self.kernel = nn.Conv2d(32, 7, 3)
        self.depth = nn.Conv2d(32, 32, 3, groups=32, padding=1)

    def forward(self, ids, x):
        y = self.kernel(self.depth(x)) * 1.5
        z = self.point(torch.cat([x, x], 1))
        return self.odd(self.linear(self.table(ids))), y.mean((2, 3)) + z.mean()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    module = Small().eval().requires_grad_(False)
    inputs = {"ids": torch.tensor([[3, 0, 49]], dtype=torch.int32), "x": torch.randn(2, 32, 6, 6)}
    return Program("small", module, inputs, ("said", "seen"))


def off(program, path):
    return relative(program, target.opened(path, 1), [dict(program.inputs)])


@pytest.mark.parametrize("kind", sorted(store.KINDS))
def test_kinds(kind, program_of, tmp_path):
    made = program_of(kind)
    target.write(made, tmp_path / "a.mlpackage", "fp32")
    assert off(made, tmp_path / "a.mlpackage") < 1e-4
    found = target.operators(tmp_path / "a.mlpackage")
    if kind in ("DiT", "TextTransformer"):
        assert found["scaled_dot_product_attention"] and "softmax" not in found


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_key_value_heads(kv_heads, tmp_path):
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(32, 4, 8, kv_heads)
            self.register_buffer("table", rope.angles(rope.grid(3, 4), 8))

        def forward(self, x, mask):
            return self.attention(x, self.table, mask=mask > 0.5)

    mask = (torch.arange(12)[None] < torch.tensor([[12], [5]])).float()
    inputs = {"x": torch.randn(2, 12, 32), "mask": mask}
    made = Program("both", Both().eval().requires_grad_(False), inputs, ("y",))
    target.write(made, tmp_path / "a.mlpackage", "fp32")
    assert off(made, tmp_path / "a.mlpackage") < 1e-5
    assert target.operators(tmp_path / "a.mlpackage")["scaled_dot_product_attention"] == 1


@pytest.mark.parametrize("precision", target.PRECISIONS)
def test_names_and_types(small, tmp_path, precision):
    """They are the program's own in every precision."""
    import coremltools as ct
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType as Kind

    path = tmp_path / "a.mlpackage"
    target.write(small, path, precision)
    described = ct.utils.load_spec(str(path)).description
    kinds = {i.name: i.type.multiArrayType.dataType for i in [*described.input, *described.output]}
    assert kinds == {"ids": Kind.INT32, "x": Kind.FLOAT32, "said": Kind.FLOAT32, "seen": Kind.FLOAT32}
    found = target.opened(path)({key: value.numpy() for key, value in small.inputs.items()})
    assert {key: value.dtype for key, value in found.items()} == {"said": np.float32, "seen": np.float32}
    assert off(small, path) < (1e-6 if precision == "fp32" else LIMITS[precision][0])
    # nothing but what belongs there: no notes for ExecuTorch
    assert sorted(p.name for p in path.iterdir()) == ["Data", "Manifest.json"]


def weights(path):
    """All decompressed weights of a package, by shape."""
    function = mil.read(path)
    steps = [mil.Step(op) for op in list(function.operations) if op.op_type != "const"]
    known = {
        op.outputs[0].name: mil.constant(op.outputs[0].val)
        for op in list(function.operations)
        if op.op_type == "const"
    }
    found = {}
    for step in steps:
        if all(name in known for name in step.reads()):
            step.run(known, True)
            found[tuple(known[step.outputs[0][0]].shape)] = known[step.outputs[0][0]]
    return found


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_changes_no_value(small, tmp_path, bits):
    """Integers are those of the rounded model; values off by the rounding of s and of q s to fp16."""
    path = tmp_path / "a.mlpackage"
    target.write(small, path, f"w{bits}")
    found = weights(path)
    for layer in layers(small.module).values():
        w = grid(layer.weight, bits)
        packed = found[tuple(w.shape)]
        torch.testing.assert_close(packed, w, rtol=2**-10, atol=0)
        # a step of the grid is 2^4 or 2^8 below the largest weight, a rounding 2^11
        assert (packed - layer.weight).norm() > (100 if bits == 4 else 8) * (packed - w).norm()
    plain = replace(small, module=rounded(small.module, dict.fromkeys(layers(small.module), bits)))
    # activations in half precision are most of what is left
    assert off(plain, path) < 2e-3 and off(small, path) > 3 * off(plain, path)
    assert target.operators(path)["constexpr_blockwise_shift_scale"] == 6


def test_scales_that_fp16_holds_are_packed_exactly(tmp_path):
    """With powers of two for scales nothing is rounded: bit for bit the rounded model's fp16 weights."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-7, 8, (16, 64)) * 2.0**-6)
        layer.weight[:, ::32] = -(2.0**-3)
    made = Program("one", nn.Sequential(layer).requires_grad_(False), {"x": torch.randn(1, 64)}, ("y",))
    target.write(made, tmp_path / "a.mlpackage", "w4")
    assert torch.equal(weights(tmp_path / "a.mlpackage")[16, 64], layer.weight)


def test_plans_of_bits(small, tmp_path):
    names = list(layers(small.module))
    bits = {name: (4, 8, 16)[i % 3] for i, name in enumerate(names)}
    path = tmp_path / "a.mlpackage"
    target.write(small, path, "w4", bits)
    assert off(replace(small, module=rounded(small.module, bits)), path) < 2e-3
    assert target.operators(path)["constexpr_blockwise_shift_scale"] == sum(b < 16 for b in bits.values())
    with pytest.raises(ValueError, match="'more' is in one of them only"):
        target.write(small, path, "w4", bits | {"more": 8})


def test_sizes(tmp_path):
    """A package holds what its bits and scales take, and little more; it is written over."""
    layer = nn.Sequential(nn.Linear(512, 256, bias=False)).requires_grad_(False)
    made = Program("one", layer, {"x": torch.randn(1, 512)}, ("y",))
    scales = {"w8": 2 * 256, "w4": 2 * 256 * 16}
    for precision, bits in {"fp32": 32, "fp16": 16, "w8": 8, "w4": 4}.items():
        path = tmp_path / "a.mlpackage"
        target.write(made, path, precision)
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        assert 0 < size - 512 * 256 * bits / 8 - scales.get(precision, 0) < 4000


def test_a_real_pipeline_in_half_precision(tiny_pipe, tmp_path):
    text = programs(tiny_pipe)["text_encoder"]
    target.write(text, tmp_path / "t.mlpackage", "fp16")
    assert 1e-5 < off(text, tmp_path / "t.mlpackage") < 5e-3


def test_a_whole_bundle(tiny_folder, tmp_path, capsys):
    """By the command line, drawn from by the interpreter; its times are not measured."""
    from pocketdiffusion.cli.main import guarded

    folder, out = str(tmp_path / "bundle"), str(tmp_path / "a.png")
    assert guarded(["export", str(tiny_folder), "--target", "coreml", "--precision", "w8", "-o", folder]) == 0
    assert guarded(["generate", "a red circle", "--bundle", folder, "-o", out]) == 0
    capsys.readouterr()
    assert guarded(["bench", "--model", str(tiny_folder), "--bundle", folder, "--runs", "2"]) == 2
    assert "coreml is interpreted here" in capsys.readouterr().err
