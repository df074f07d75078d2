import pytest
import torch
from torch import nn

from pocketdiffusion.nn.taps import tap


class Pair(nn.Module):
    def forward(self, x):
        return [x + 1, x - 1]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.pair, self.last = nn.Linear(4, 4), Pair(), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.pair(self.first(x))[0])


def hooks(model):
    return sum(len(m._forward_hooks) for m in model.modules())


def test_features_are_the_submodules_outputs():
    net, x = Net(), torch.randn(3, 4)
    y, seen = tap(net, ["first", "pair"])(x)
    assert list(seen) == ["first", "pair"]
    assert torch.equal(seen["first"], net.first(x))
    assert torch.equal(seen["pair"], net.first(x) + 1)  # the first tensor of a list
    assert torch.equal(y, net(x))


def test_gradient_flows_through_features():
    net = Net()
    _, seen = tap(net, ["first"])(torch.randn(3, 4))
    seen["first"].sum().backward()
    assert net.first.weight.grad is not None
    assert net.last.weight.grad is None


def test_nothing_is_left_behind():
    net = Net()
    call = tap(net, ["first", "last"])
    call(torch.randn(3, 4))
    with pytest.raises(RuntimeError):
        call(torch.randn(3, 5))
    assert hooks(net) == 0


def test_taps_nest():
    net, x = Net(), torch.randn(3, 4)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return tap(self.net, ["first"])(x)

    (y, inner), outer = tap(Outer(), ["net.first"])(x)
    assert torch.equal(inner["first"], outer["net.first"])
    assert torch.equal(y, net(x))
    assert hooks(net) == 0


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="Net has no submodule 'middle'"):
        tap(Net(), ["first", "middle"])
