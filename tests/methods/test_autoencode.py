from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from pocketdiffusion.autoencoders import h3ae, tiny
from pocketdiffusion.autoencoders.h3ae import H3AE
from pocketdiffusion.autoencoders.kl import PRESETS, AutoencoderKL
from pocketdiffusion.autoencoders.tiny import Grafted
from pocketdiffusion.eval.spectrum import curves
from pocketdiffusion.methods.autoencode import Autoencode, Weighed, kl
from pocketdiffusion.methods.consistency import latent_kl
from pocketdiffusion.methods.equivariance import scale_equivariance
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.train.optimisers import adamw
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


def blurred(seed, step):
    g = torch.Generator().manual_seed(step)
    x = torch.rand(2, 3, 8, 8, generator=g) * 1.8 - 0.9
    return Batch(x.repeat_interleave(4, -1).repeat_interleave(4, -2), ["", ""])


def trained(net, half=False, data=blurred):
    """Three steps with scale equivariance and latent consistency, and what was measured in the last."""
    terms = {"se": Weighed(scale_equivariance(net.config.factor), 0.25), "lc": Weighed(latent_kl, 0.1, 1)}
    method = Autoencode(net, terms=terms)
    optimiser = adamw(method.players["autoencoder"], 1e-2)
    return fit(method, data, {"autoencoder": optimiser}, {"net": net}, Run(3, bf16=half)).seen


def small(clips=False):
    torch.manual_seed(0)
    if clips:
        return H3AE(
            replace(h3ae.PRESETS["smoke"], widths=(8, 16), blocks=(1, 1), flat=1, halve=(0, 1), mlp=32)
        )
    return AutoencoderKL(PRESETS["smoke"])


def clips_of(seed, step):
    x = blurred(seed, step).x
    return Batch(torch.stack([x, x.roll(1, -1), x.roll(2, -1), x.roll(3, -1), x.roll(4, -1)], 2), ["", ""])


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("graft", [False, True], ids=["own", "grafted"])
@pytest.mark.parametrize("clips", [False, True], ids=["pictures", "clips"])
def test_terms_train_pictures_clips_and_grafts(clips, graft, half):
    net = small(clips)
    if graft:
        config = tiny.PRESETS["smoke_clips" if clips else "smoke"]
        levels = {"widths": (8, 16), "blocks": (1, 1), "double": (0, 1)} if clips else {}
        net = Grafted(net, tiny.TinyDecoder(replace(config, **levels)))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    seen = trained(net, half, clips_of if clips else blurred)
    assert {"autoencoder/se", "autoencoder/lc"} <= set(seen)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    # (a graft's encoder is in autoencoder.)
    assert any(k.startswith("decoder.") for k in moved)
    assert any(k.startswith("encoder.") for k in moved) != graft
    assert not any(k.startswith("autoencoder.") for k in moved)


def test_half_precision_lets_no_gradient_of_the_second_pass_into_the_encoder():
    """Autocast keeps copies of weights that it has seen before they were held constant."""
    net = small()
    x = blurred(0, 0).x
    with torch.autocast("cpu", torch.bfloat16):
        found = Autoencode(net).run(x)
        term = latent_kl(replace(found, y=net.decode(found.z.detach()).float()))
    term.backward()
    assert all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in net.decoder.parameters())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_s_spectrum_is_exactly_as_it_was(frozen):
    """So scale equivariance has to train both sides."""
    net = small()
    x = [torch.randn(2, 3, 32, 32).clamp(-1, 1)]
    before = curves(net, x)
    net.encoder.requires_grad_(not frozen)
    trained(net)
    after = curves(net, x)
    for name in ("latents", "sampled"):
        assert torch.equal(before[name].sums, after[name].sums) == frozen
