"""Adapters: nothing at first, alone in training, gone when merged."""

import pytest
import torch

from pocketdiffusion.models import dit
from pocketdiffusion.train import lora

pytest.importorskip("peft")
PATTERN = r"blocks\.\d+\.\w+\.(q|k|v|out|up|down)"


def network():
    torch.manual_seed(0)
    model = dit.DiT(dit.PRESETS["smoke"]).eval()
    for p in model.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    return model


@torch.no_grad()
def test_attach_learn_merge():
    model = network()
    inputs, names = model.example(), set(model.state_dict())
    before = model(*inputs)
    owned = lora.attach(model, 2, 4.0, PATTERN)
    assert torch.equal(model(*inputs), before)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in owned}
    found = lora.learned(model)
    layers = ("q", "k", "v", "out", "up", "down")
    every = (n for n, _ in network().named_modules() if n.startswith("blocks."))
    assert set(found) == {n for n in every if n.rpartition(".")[2] in layers}
    for p in owned:
        torch.nn.init.normal_(p, std=0.1)
    changed = model(*inputs)
    assert not torch.allclose(changed, before)
    a, b = lora.learned(model)["blocks.0.mlp.up"]
    lora.merge(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(*inputs), changed, atol=1e-5, rtol=1e-4)
    gap = model.blocks[0].mlp.up.weight - network().blocks[0].mlp.up.weight
    torch.testing.assert_close(gap, 2.0 * b @ a, atol=1e-6, rtol=1e-5)


def test_merging_what_has_none_changes_nothing():
    model = network()
    assert lora.merge(model) is model and not lora.learned(model)


def test_what_is_refused():
    with pytest.raises(ValueError, match="rank 0"):
        lora.attach(network(), 0, 1.0, PATTERN)
