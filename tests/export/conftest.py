"""Every kind of network at its smoke preset, as a Program; of a supernet its narrowest width."""

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.export.program import flattened


def program(kind):
    module = store.kind(kind)
    torch.manual_seed(0)
    network = getattr(module, kind)(module.PRESETS["smoke"]).eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    if hasattr(network, "extract"):
        network = network.extract(network.config.names[0]).eval().requires_grad_(False)
    return flattened(kind, network, network.example())


@pytest.fixture
def program_of():
    return program
