"""Where a NaN begins is named, through functions around networks; what comes in is nobody's fault."""

import pytest
import torch
from torch import nn

from pocketdiffusion.nn.finite import finite, good, watched


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.SiLU(), nn.Linear(4, 4)), nn.Linear(4, 4))


def broken():
    model = network()
    with torch.no_grad():
        model[1][1].weight[0, 0] = torch.nan
    return model


def hooks(model):
    return sum(len(m._forward_hooks) for m in model.modules())


def test_good_looks_into_structures_and_at_floats_alone():
    nan = torch.tensor(float("nan"))
    assert good({"a": (torch.ones(2), [torch.ones(2, dtype=torch.long)], None, "nan")})
    assert not good({"a": (torch.ones(2), [nan])}) and not good(torch.tensor([1.0, torch.inf]))


def test_the_innermost_layer_is_named():
    model, x = broken(), torch.ones(2, 4)
    told = r"^1.1 \(Linear\) of Sequential: .* first that is not finite, in fp32$"
    with pytest.raises(ValueError, match=told), watched(model, "fp32"):
        model(x)
    assert not hooks(model)


def test_the_layer_is_named_through_any_function_and_nothing_is_left_behind():
    model, other, x = broken(), network(), torch.ones(2, 4, requires_grad=True)
    told = r"^1.1 \(Linear\) of Sequential: its output is the first that is not finite, in the teacher$"
    with pytest.raises(ValueError, match=told):
        finite("the teacher", lambda x: {"v": model(other(x)) + 1}, x)
    assert not hooks(model) and not hooks(other) and not nn.modules.module._global_forward_pre_hooks
    assert torch.equal(finite("the teacher", other, x), other(x))
    finite("the teacher", other, x).sum().backward()
    assert x.grad.any()


def test_what_comes_in_is_returned_as_it_is():
    found = finite("the teacher", network(), torch.full((2, 4), torch.nan))
    assert found.isnan().all()


def test_a_function_alone_may_be_what_is_wrong():
    model = network()
    with pytest.raises(ValueError, match=r"^the teacher: not finite, though the output of every layer is$"):
        finite("the teacher", lambda x: model(x) / 0, torch.ones(2, 4))
