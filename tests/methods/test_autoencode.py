import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from pocketdiffusion.autoencoders.kl import PRESETS, AutoencoderKL
from pocketdiffusion.methods.autoencode import Autoencode, kl
from pocketdiffusion.types import Batch


class Fixed(nn.Module):
    """An autoencoder with a known posterior and the identity as its decoder."""

    def __init__(self, logvar):
        super().__init__()
        self.bias, self.logvar = nn.Parameter(torch.zeros(())), logvar

    def posterior(self, x):
        return x + self.bias, torch.full_like(x, self.logvar)

    def decode(self, z, first=None):
        return z


def losses(net, x, **options):
    torch.manual_seed(0)
    return next(Autoencode(net, **options).losses("autoencoder", Batch(x, [""] * len(x))))


def test_kl_is_torchs():
    mean, logvar = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    truth = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl(mean, logvar), truth)
    assert kl(torch.zeros(2), torch.zeros(2)) == 0


@pytest.mark.parametrize("std", [0.1, 1.0])
def test_posterior_is_sampled_with_its_own_spread(std):
    """|z - mean| of a normal is std sqrt(2 / pi) on average."""
    parts = losses(Fixed(2 * torch.tensor(std).log().item()), torch.zeros(100, 500))
    torch.testing.assert_close(parts["l1"], torch.tensor(std * (2 / torch.pi) ** 0.5), rtol=0.02, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_is_the_sum(beta):
    parts = losses(Fixed(-1.0), torch.randn(8, 10), beta=beta)
    torch.testing.assert_close(parts["loss"], parts["l1"] + beta * parts["kl"])


def test_gradient_reaches_encoder_and_decoder():
    net = AutoencoderKL(PRESETS["smoke"])
    losses(net, net.example(2)[0])["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_the_player_is_what_trains():
    net = AutoencoderKL(PRESETS["smoke"])
    net.encoder.requires_grad_(False)
    method = Autoencode(net)
    assert {id(p) for p in method.players["autoencoder"]} == {id(p) for p in net.decoder.parameters()}
    assert method.turn(3) == ("autoencoder",)
