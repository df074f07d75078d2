"""Every kind of network goes through every exporter at its smoke preset."""

import importlib.util

import pytest
import torch
from torch import nn

from pocketdiffusion import store
from pocketdiffusion.export import onnx as target
from pocketdiffusion.export.parity import relative
from pocketdiffusion.export.program import flattened

pytestmark = pytest.mark.slow
if not importlib.util.find_spec("onnxruntime"):
    pytest.skip("needs the extra onnx", allow_module_level=True)


def program(kind):
    module = store.kind(kind)
    torch.manual_seed(0)
    network = getattr(module, kind)(module.PRESETS["smoke"]).eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return flattened(kind, network, network.example())


@pytest.mark.parametrize("kind", sorted(store.KINDS))
def test_onnx(kind, tmp_path):
    made = program(kind)
    target.write(made, tmp_path / "a.onnx", "fp32")
    assert relative(made, target.opened(tmp_path / "a.onnx", 1), [dict(made.inputs)]) < 1e-4
