import pytest
import torch
from torch import nn

from pocketdiffusion.train.ema import Ema


def test_closed_form():
    """shadow = sum of the weights seen, each times its (1 - d) and all later d."""
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.zero_()
    ema, truth = Ema({"net": net}, 0.9), 0.0
    for step in range(200):
        net.weight.data.fill_(step)
        ema.update(step)
        d = min(0.9, (1 + step) / (10 + step))
        truth = d * truth + (1 - d) * step
    torch.testing.assert_close(ema.shadow["net.weight"], torch.full((1, 2), truth))


def test_the_first_steps_forget_the_start():
    net = nn.Linear(4, 4)
    ema = Ema({"net": net}, 0.9999)
    net.weight.data.fill_(1.0)
    for step in range(30):
        ema.update(step)
    torch.testing.assert_close(ema.shadow["net.weight"], torch.ones(4, 4), atol=1e-3, rtol=0)


def test_applied_and_back():
    net = nn.Linear(2, 2)
    ema, before = Ema({"net": net}, 0.5), net.weight.detach().clone()
    ema.shadow["net.weight"].fill_(7.0)
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert net.weight.eq(7).all()
        raise RuntimeError("inside")
    assert torch.equal(net.weight, before)


def test_frozen_parameters_have_no_shadow():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    assert list(Ema({"net": net}, 0.5).shadow) == ["net.weight"]


def test_state():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    saved = {k: v.clone() for k, v in Ema({"net": a}, 0.5).state_dict().items()}
    ema = Ema({"net": b}, 0.5)
    ema.load_state_dict(saved)
    assert torch.equal(ema.shadow["net.weight"], a.weight)
    assert not torch.equal(b.weight, a.weight)
