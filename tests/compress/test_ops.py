"""What makes two blocks one op."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion.compress.ops import blocks, branches, calls
from pocketdiffusion.models.dit import PRESETS, DiT

SMOKE = PRESETS["smoke"]


def ops(config, names=("blocks.*",), device="meta", batch=2):
    with torch.device(device):
        model = DiT(config)
    return [(c.op, c.shapes) for c in calls(model, model.example(batch, device), names)]


def test_every_block_and_branch_is_called_and_gets_what_it_really_gets():
    model = DiT(SMOKE)
    found = calls(model, model.example(2), [*blocks(model), *branches(model)])
    assert {c.name for c in found} == {
        f"blocks.{i}{b}" for i in (0, 1) for b in ("", ".attn", ".cross", ".mlp")
    }
    for call in found:
        y = call.module(*call.inputs)
        assert y.shape == call.inputs[0].shape == (2, 16, 64)
    attn, cross = (next(c for c in found if c.name == f"blocks.0.{b}") for b in ("attn", "cross"))
    # defaults that were not given are spelled out
    assert attn.shapes.inputs == ("2x16x64", "2x16x16", "None", "None")
    assert cross.shapes.inputs == ("2x16x64", "None", "2x12x64", "2x12 bool")
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_equal_blocks_are_one_op_whatever_their_place_weights_and_device():
    first, second = ops(SMOKE)
    assert first == second
    assert set(ops(replace(SMOKE, depth=5))) == {first} == set(ops(SMOKE, device="cpu"))
    assert hash(first) == hash(second)


@pytest.mark.parametrize(
    "other",
    [{"mlp": 96}, {"heads": 1}, {"dim": 96}, {"side": 12}, {"heads": 4, "head_dim": 16, "cross_heads": 4}],
)
def test_another_width_or_size_is_another_op(other):
    assert ops(replace(SMOKE, **other))[0] != ops(SMOKE)[0]


def test_batch_counts_and_a_mixed_model_has_both():
    assert ops(SMOKE, batch=1)[0] != ops(SMOKE)[0]
    wide, narrow = ops(replace(SMOKE, mlp=(128, 96)))
    assert wide == ops(SMOKE)[0] and narrow == ops(replace(SMOKE, mlp=96))[0]


def test_what_no_weight_tells_counts_too():
    def op(*layers):
        return calls(nn.Sequential(*layers), (torch.zeros(1, 4, 8, 8),), [""])[0].shapes

    assert op(nn.Conv2d(4, 4, 3, padding=1)) != op(nn.Conv2d(4, 4, 3, padding=1, stride=2))
    assert op(nn.ReLU()) != op(nn.GELU())
    assert op(nn.GroupNorm(2, 4, eps=1e-5)) == op(nn.GroupNorm(2, 4, eps=1e-6))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="Linear lists no BLOCKS"):
        blocks(nn.Linear(2, 2))
    model = DiT(SMOKE)
    with pytest.raises(ValueError, match=r"DiT has no submodule 'blocks\.\*\.conv'"):
        calls(model, model.example(), ["blocks.*.conv"])
