"""Every kind of network goes through every exporter at its smoke preset."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils import _pytree

from pocketdiffusion import store
from pocketdiffusion.export import onnx as target
from pocketdiffusion.export.parity import relative
from pocketdiffusion.export.program import Program

pytestmark = pytest.mark.slow
if not importlib.util.find_spec("onnxruntime"):
    pytest.skip("needs the extra onnx", allow_module_level=True)


class Flat(nn.Module):
    """A network whose inputs and outputs are spelled out as plain tensors."""

    def __init__(self, network, spec):
        super().__init__()
        self.network, self.spec = network, spec

    def forward(self, *leaves):
        found = self.network(*_pytree.tree_unflatten(list(leaves), self.spec))
        return tuple(x for x in _pytree.tree_leaves(found) if torch.is_tensor(x) and x.is_floating_point())


def program(kind):
    module = store.kind(kind)
    torch.manual_seed(0)
    network = getattr(module, kind)(module.PRESETS["smoke"]).eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    leaves, spec = _pytree.tree_flatten(network.example())
    inputs = {f"in{i}": x for i, x in enumerate(leaves) if x is not None}
    flat = Flat(network, spec)
    outputs = flat(*leaves)
    return Program(kind, flat, inputs, tuple(f"out{i}" for i in range(len(outputs))))


@pytest.mark.parametrize("kind", sorted(store.KINDS))
def test_onnx(kind, tmp_path):
    made = program(kind)
    target.write(made, tmp_path / "a.onnx", "fp32")
    assert relative(made, target.opened(tmp_path / "a.onnx", 1), [dict(made.inputs)]) < 1e-4
