"""What is added to an autoencoder's loss: each term against a case with a known answer."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from pocketdiffusion.autoencoders.h3ae import H3AE
from pocketdiffusion.autoencoders.h3ae import PRESETS as H3AES
from pocketdiffusion.autoencoders.kl import PRESETS, AutoencoderKL
from pocketdiffusion.methods import chopping, consistency, equivariance, perceptual, wavelet
from pocketdiffusion.methods.autoencode import Autoencode, Pass, Weighed, frames, taught
from pocketdiffusion.methods.patch_gan import PatchGAN
from pocketdiffusion.nn.heads import PatchHead
from pocketdiffusion.types import Batch


@pytest.fixture
def net():
    torch.manual_seed(0)
    return AutoencoderKL(PRESETS["smoke"])


def through(net, x):
    return Autoencode(net).run(x)


def first(method, x, player="autoencoder"):
    torch.manual_seed(1)
    return next(method.losses(player, Batch(x, [""] * len(x))))


# -- the method


def test_terms_are_weighed_named_and_ramped(net):
    x = net.example(2)[0]
    terms = {"one": Weighed(lambda found: torch.tensor(2.0), 0.5, ramp=9)}
    method = Autoencode(net, beta=0.0, terms=terms)
    for step, weight in ((0, 0.05), (4, 0.25), (100, 0.5)):
        method.turn(step)
        parts = first(method, x)
        torch.testing.assert_close(parts["loss"], parts["l1"] + weight * 2)
        assert parts["one"] == 2


def test_a_term_of_weight_nothing_equals_the_control(net):
    """Same seed, same losses: it draws no random numbers."""
    x = net.example(2)[0]
    term = {"se": Weighed(equivariance.scale_equivariance(4), 0.0)}
    a, b = first(Autoencode(net, terms=term), x), first(Autoencode(net), x)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_first_frames_are_told_to_some_rows():
    torch.manual_seed(0)
    net = H3AE(H3AES["smoke"])
    nn.init.normal_(net.decoder.inject[0][0].weight)
    x = net.example(8)[0]
    seen = []
    decode = net.decode
    net.decode = lambda z, first=None, told=None: seen.append((first, told)) or decode(z, first, told)
    first(Autoencode(net, told=0.5), x)
    (given, told) = seen[0]
    assert torch.equal(given, x[:, :, 0]) and set(told.tolist()) == {0.0, 1.0}
    seen.clear()
    first(Autoencode(net, told=0.5), x[:, :, 0])
    assert seen == [(None, None)], "a picture is its own first frame"


def test_a_decoder_learns_from_another(net):
    found = through(net, net.example(2)[0])
    assert taught(net.decode)(found) == 0
    other = AutoencoderKL(PRESETS["smoke"])
    torch.testing.assert_close(taught(other.decode)(found), (other.decode(found.z) - found.y).abs().mean())


def test_a_view_and_terms_are_refused(net):
    with pytest.raises(ValueError, match="terms have no meaning"):
        terms = {"latent": Weighed(consistency.latent_mse, 0.1)}
        Autoencode(net, view=equivariance.eq_vae(4), terms=terms)


def test_frames_of_clips_and_pictures():
    clip = torch.randn(2, 3, 5, 4, 6)
    assert torch.equal(frames(clip)[5 + 2], clip[1, :, 2])
    assert frames(clip[:, :, 0]).shape == (2, 3, 4, 6)


# -- latent consistency


def test_kl_between_is_torchs():
    parts = [torch.randn(4, 5) for _ in range(4)]
    p, q = (Normal(m, (v / 2).exp()) for m, v in (parts[:2], parts[2:]))
    torch.testing.assert_close(consistency.kl_between(*parts), kl_divergence(p, q).mean())


@pytest.mark.parametrize("term", [consistency.latent_kl, consistency.latent_mse])
def test_a_perfect_reconstruction_is_consistent(net, term):
    x = net.example(2)[0]
    mean, logvar = net.posterior(x)
    assert term(Pass(net, x, mean, logvar, mean, x)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("term", [consistency.latent_kl, consistency.latent_mse])
def test_the_second_pass_teaches_the_decoder_and_not_the_encoder(net, term):
    x = net.example(2)[0]
    mean, logvar = net.posterior(x)
    z = mean.detach()
    term(Pass(net, x, mean, logvar, z, net.decode(z))).backward()
    assert all(p.grad is None or not p.grad.any() for p in net.encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in net.decoder.parameters())
    assert all(p.requires_grad for p in net.parameters())


# -- scale equivariance


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (9, 5)])
def test_smaller_sizes_are_a_quarter_to_a_half(size):
    for seed in range(50):
        torch.manual_seed(seed)
        h, w = equivariance.smaller(size)
        assert size[0] / 4 <= h <= size[0] / 2
        assert abs(w - size[1] * h / size[0]) <= 0.5


def test_resizing_is_torchs_for_pictures_and_frames():
    clip = torch.randn(2, 3, 4, 16, 16)
    y = equivariance.resized(clip, (8, 4))
    assert y.shape == (2, 3, 4, 8, 4)
    one = F.interpolate(clip[:, :, 1], (8, 4), mode="bilinear", antialias=True)
    torch.testing.assert_close(y[:, :, 1], one)


class Pixels(nn.Module):
    """Latents are 4 x 4 means of pixels, decoded by repetition: nearly equivariant to scale by itself."""

    def __init__(self, blind=False):
        super().__init__()
        self.blind, self.bias = blind, nn.Parameter(torch.zeros(()))

    def posterior(self, x):
        mean = F.avg_pool2d(x, 4)
        return mean, torch.full_like(mean, -30)

    def decode(self, z, first=None):
        x = z.repeat_interleave(4, -1).repeat_interleave(4, -2)
        return x * 0 if self.blind else x


def test_an_equivariant_autoencoder_has_nothing_to_learn():
    x = F.interpolate(torch.rand(2, 3, 3, 3), (64, 64), mode="bilinear")
    term = equivariance.scale_equivariance(4)
    torch.manual_seed(0)
    error, blind = term(through(Pixels(), x)), term(through(Pixels(blind=True), x))
    assert error < 0.1 * blind


@pytest.mark.parametrize("kind, config", [(AutoencoderKL, PRESETS["smoke"]), (H3AE, H3AES["smoke"])])
@torch.no_grad()
def test_resized_latents_decode_to_whole_sizes(kind, config):
    """The spec's check 14: f h' and f w', of pictures and clips that are not square; time is kept."""
    net, frames_ = kind(config), (5,) if kind is H3AE else ()
    f = config.factor
    x = torch.rand(1, 3, *frames_, 4 * f, 7 * f) * 2 - 1
    z = net.encode(x)
    for seed in range(4):
        torch.manual_seed(seed)
        h, w = equivariance.smaller((4, 7))
        y = net.decode(equivariance.resized(z, (h, w)))
        assert y.shape == (1, 3, *frames_, f * h, f * w)
        assert y.shape == equivariance.resized(x, (f * h, f * w)).shape


def test_eq_vae_turns_and_scales_both_alike():
    view = equivariance.eq_vae(4, often=1.0)
    x = F.interpolate(torch.rand(1, 3, 3, 3), (64, 64), mode="bilinear")
    z = F.avg_pool2d(x, 4)
    for seed in range(10):
        torch.manual_seed(seed)
        encoded, change = view(x)
        x2, z2 = change(x, z)
        assert encoded is x
        assert x2.shape[-1] == 4 * z2.shape[-1] and 8 / 32 <= z2.shape[-2] / 16 < 1
        # what is decoded is still what is expected
        assert (F.avg_pool2d(x2, 4) - z2).abs().mean() < 0.05
    assert equivariance.eq_vae(4, often=0.0, prior=0.0)(x) == (x, None)


def test_eq_vae_s_other_branch_makes_pictures_smaller_before_they_are_encoded(net):
    x = net.example(2)[0]
    method = Autoencode(net, view=equivariance.eq_vae(4, often=0.0, prior=1.0))
    torch.manual_seed(0)
    found = method.run(x)
    assert found.x.shape[-1] < x.shape[-1] and found.x.shape == found.y.shape
    assert found.mean.shape[-1] * 4 == found.x.shape[-1]
    torch.testing.assert_close(found.x, equivariance.resized(x, tuple(found.x.shape[-2:])))
    often = [equivariance.eq_vae(4)(x) for _ in range(400)]
    assert sum(change is not None for _, change in often) == pytest.approx(200, abs=50)
    assert sum(encoded is not x for encoded, _ in often) == pytest.approx(50, abs=30)


# -- chopping


def test_chopping_removes_diagonals_and_nothing_else():
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(chopping.undone(chopping.dct(x)), x)
    left, whole = (chopping.dct(v).flatten(0, -3) for v in (chopping.low(x, 5), x))
    for u in range(8):
        for v in range(8):
            # of the diagonals u + v = 0 .. 14 the last five are gone
            wanted = whole[:, u, v] if u + v < 10 else torch.zeros((), dtype=x.dtype)
            torch.testing.assert_close(left[:, u, v], wanted.expand(len(left)))
    torch.testing.assert_close(chopping.low(x, 0), x)


@pytest.mark.parametrize("shape", [(1, 4, 12, 16), (1, 4, 3, 8, 9), (1, 4, 4, 4)])
def test_chopping_cuts_nothing_off(shape):
    sides = " x ".join(map(str, shape[-2:]))
    with pytest.raises(ValueError, match=f"chopping {sides} positions: expected sides .* multiples of 8$"):
        chopping.low(torch.zeros(shape), 3)


def test_a_decoder_that_keeps_frequencies_apart_has_nothing_to_chop():
    class Same(nn.Module):
        def decode(self, z, first=None):
            return z

    x = torch.randn(2, 3, 16, 16)
    found = Pass(Same(), x, x, x, x, x)
    torch.testing.assert_close(chopping.chopping()(found), torch.tensor(0.0))
    torch.manual_seed(0)
    assert chopping.chopping()(Pass(Same(), x, x, x, x.flip(0), x)) > 0.1


# -- perceptual and wavelet


def test_perceptual_distance_is_lpips_without_weights():
    maps = lambda x: [x, 2 * F.avg_pool2d(x, 2)]  # noqa: E731
    a, b = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[3.0]]]])
    # unit vectors at right angles: squared distance 2 per map
    torch.testing.assert_close(perceptual.distance([a, a], [b, b]), torch.tensor([4.0]))
    x = torch.rand(2, 3, 8, 8)
    assert perceptual.perceptual(maps)(Pass(None, x, x, x, x, x)) == 0
    assert perceptual.perceptual(maps)(Pass(None, x, x, x, x, x.flip(1))) > 0


def test_any_distance_of_pictures_is_a_term_and_teaches_the_decoder(net):
    """As LPIPS is: two batches of frames -> a number each."""
    clip = torch.rand(2, 3, 4, 8, 8)
    term = perceptual.judged(lambda a, b: (a - b).square().flatten(1).mean(1))
    wanted = (clip - clip.flip(2)).square().mean()
    torch.testing.assert_close(term(Pass(None, clip, clip, clip, clip, clip.flip(2))), wanted)
    found = through(net, net.example(2)[0])
    term(found).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.decoder.parameters())


def test_haar_keeps_energy_and_a_constant_is_all_low():
    x = torch.randn(2, 3, 4, 8, 6)
    bands = wavelet.haar(x, (-3, -2, -1))
    assert bands.shape == (8, 2, 3, 2, 4, 3)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    flat = wavelet.haar(torch.ones(1, 1, 4, 4), (-2, -1))
    torch.testing.assert_close(flat[0], torch.full((1, 1, 2, 2), 2.0))
    assert not flat[1:].any()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 5, 8, 8), (2, 3, 1, 8, 8)])
def test_wavelet_term_of_a_known_error(shape):
    x = torch.zeros(shape)
    found = wavelet.wavelet(Pass(None, x, x, x, x, x + 1))
    bands, low = (8, 2**1.5) if len(shape) == 5 and shape[2] > 1 else (4, 2.0)
    torch.testing.assert_close(found, torch.tensor(low / bands))


# -- adversarial


def test_patches_see_patches():
    head = PatchHead(width=8).eval()
    x = torch.randn(2, 3, 32, 48)
    assert head(x).shape == (2, 1, 4, 6)
    torch.testing.assert_close(head(x)[:1], head(x[:1]), atol=1e-5, rtol=1e-4)


def test_adversarial_turns_and_losses(net):
    gan = PatchGAN(Autoencode(net), PatchHead(width=8), weight=0.5, start=3)
    x = net.example(2)[0]
    assert gan.turn(2) == gan.turn(3) == ("autoencoder", "discriminator")
    gan.turn(2)
    assert "gan" not in first(gan, x)
    gan.turn(3)
    parts = first(gan, x)
    torch.testing.assert_close(parts["loss"], parts["l1"] + 1e-4 * parts["kl"] + 0.5 * parts["gan"])
    parts["loss"].backward()
    assert all(p.grad is None for p in gan.discriminator.parameters())
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    hinge = first(gan, x, "discriminator")
    assert 0 < hinge["loss"] < 10
    hinge["loss"].backward()
    assert all(p.grad is None for p in net.parameters())
    # (a last bias moves real and fake alike)
    assert all(p.grad.any() for p in gan.discriminator.parameters() if p.ndim > 1)


def test_a_discriminator_may_come_late(net):
    gan = PatchGAN(Autoencode(net), PatchHead(width=8), start=10, ahead=4)
    assert gan.turn(5) == ("autoencoder",)
    assert gan.turn(6) == gan.turn(10) == ("autoencoder", "discriminator")
    x = net.example(2)[0]
    assert "gan" in first(gan, x)
    gan.turn(9)
    assert "gan" not in first(gan, x)
