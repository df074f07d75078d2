"""Every kind of network goes through every exporter at its smoke preset."""

import importlib.util

import pytest

from pocketdiffusion import store
from pocketdiffusion.export import onnx as target
from pocketdiffusion.export.parity import relative

pytestmark = pytest.mark.slow
if not importlib.util.find_spec("onnxruntime"):
    pytest.skip("needs the extra onnx", allow_module_level=True)


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-4), ("int8", 0.15)])
@pytest.mark.parametrize("kind", sorted(store.KINDS))
def test_onnx(kind, precision, limit, program_of, tmp_path):
    made = program_of(kind)
    target.write(made, tmp_path / "a.onnx", precision)
    assert relative(made, target.opened(tmp_path / "a.onnx", 1), [dict(made.inputs)]) < limit
