"""The judge of counts: sums of a density, phrases, and that it learns."""

import pytest
import torch

from pocketdiffusion.data.scenes import Scenes, World
from pocketdiffusion.methods.regress import Regress
from pocketdiffusion.rewards import regressor
from pocketdiffusion.rewards.regressor import CountNet
from pocketdiffusion.train.fit import Run, fit


@pytest.mark.parametrize("name", list(regressor.PRESETS))
def test_size_and_shape(name):
    config = regressor.PRESETS[name]
    net = CountNet(config)
    assert sum(p.numel() for p in net.parameters()) == regressor.count(config)
    density = net.density(*net.example())
    assert density.shape[:3] == (2, len(config.shapes), len(config.colours)) and density.min() >= 0
    torch.testing.assert_close(net(*net.example()), density.sum((-2, -1)))


def test_a_phrase_is_all_that_it_may_mean():
    net = CountNet(regressor.PRESETS["smoke"])
    x = net.example()[0]
    found, told = net(x), net.count(x, ["star", "red star", "small red star"])
    shape, colour = net.config.shapes.index("star"), net.config.colours.index("red")
    torch.testing.assert_close(told[:, 0], found[:, shape].sum(-1))
    torch.testing.assert_close(told[:, 1], found[:, shape, colour])
    assert torch.equal(told[:, 2], told[:, 1])
    with pytest.raises(ValueError, match="does not know 'red lighthouse'"):
        net.count(x, ["red lighthouse"])
    with pytest.raises(ValueError, match=r"expected pictures \(B, 3, H, W\)"):
        net(x[:, :1])


def test_it_learns():
    torch.manual_seed(0)
    net = CountNet(regressor.PRESETS["smoke"])
    method = Regress(net, net.config.shapes, net.config.colours)
    batch = Scenes(World(), 8, 32)(0, 0)
    before = next(method.losses("network", batch))["loss"].item()
    fit(method, lambda *_: batch, {"network": torch.optim.Adam(net.parameters(), 1e-2)}, {"n": net}, Run(120))
    assert next(method.losses("network", batch))["loss"].item() < 0.4 * before
