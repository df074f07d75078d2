import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.data.shapes import COLOURS, SHAPES
from pocketdiffusion.eval.features import PRESETS, SceneNet, count


@pytest.fixture(params=sorted(PRESETS))
def network(request):
    torch.manual_seed(0)
    return SceneNet(PRESETS[request.param]).eval()


def test_shapes_of_logits_and_features(network):
    x = network.example(3)[0]
    assert network(x).shape == (3, len(SHAPES) + len(COLOURS), network.config.most + 1)
    features = network.features(x)
    assert features.shape == (3, network.config.dim)
    assert (features >= 0).all()


def test_the_number_of_parameters_follows_from_the_config(network):
    assert sum(p.numel() for p in network.parameters()) == count(network.config)
    assert count(PRESETS["scenes"]) < 400_000


def test_every_parameter_gets_a_gradient(network):
    network(network.example()[0]).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_picture_has_the_same_features_alone_and_in_a_batch(network):
    x = network.example(4)[0]
    torch.testing.assert_close(network.features(x)[2:3], network.features(x[2:3]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_resolution_hardly_matters(network, factor):
    side = network.config.side
    g = torch.Generator().manual_seed(0)
    x, other = F.interpolate(torch.rand(2, 3, 4, 4, generator=g) * 2 - 1, (side, side), mode="bicubic").split(
        1
    )
    large = F.interpolate(x, scale_factor=factor, mode="bicubic")
    a, b, c = network.features(x), network.features(large), network.features(other)
    assert large.shape[-1] == factor * side
    assert (a - b).norm() < 0.2 * (a - c).norm()


def test_what_is_not_a_picture_is_refused():
    with pytest.raises(ValueError, match="pictures"):
        SceneNet(PRESETS["smoke"]).features(torch.zeros(1, 4, 16, 16))
