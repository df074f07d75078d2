"""The transform against its definition, curves of signals whose spectrum is known, SE where it is known."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.data.photos import Photos
from pocketdiffusion.eval.spectrum import Spectrum, curves, equivariance_error, zigzag
from pocketdiffusion.methods.chopping import dct, matrix
from pocketdiffusion.methods.equivariance import resized


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Blocks:
    """Encodes by averaging f x f pixels and decodes by repeating them; logvar is given."""

    def __init__(self, factor=4, logvar=-30.0, time_factor=1):
        self.config = SimpleNamespace(factor=factor, channels=3, time_factor=time_factor)
        self.logvar = logvar

    def posterior(self, x):
        f = self.config.factor
        z = F.avg_pool3d(x, (1, f, f)) if x.ndim == 5 else F.avg_pool2d(x, f)
        return z, torch.full_like(z, self.logvar)

    def encode(self, x):
        return self.posterior(x)[0]

    def decode(self, z, first=None):
        f = self.config.factor
        return z.repeat_interleave(f, -1).repeat_interleave(f, -2)


def test_the_transform_is_orthogonal_and_is_the_dct():
    c = matrix()
    torch.testing.assert_close(c @ c.T, torch.eye(8).double(), atol=1e-6, rtol=0)
    assert c[3, 5].item() == pytest.approx(math.sqrt(2 / 8) * math.cos(math.pi * 11 * 3 / 16))
    assert c[0, 7].item() == pytest.approx(math.sqrt(1 / 8))


def test_each_block_is_transformed_alone():
    x = noise(2, 3, 16, 24).double()
    found = dct(x)
    assert found.shape == (2, 3, 2, 3, 8, 8)
    torch.testing.assert_close(found[1, 2, 1, 2], matrix() @ x[1, 2, 8:, 16:] @ matrix().T)


def test_a_wave_is_one_coefficient():
    u, v = 2, 5
    x = torch.outer(matrix()[u], matrix()[v])[None, None]
    expected = torch.zeros(8, 8).double()
    expected[u, v] = 1
    torch.testing.assert_close(dct(x)[0, 0, 0, 0], expected)


def test_energy_is_kept():
    x = noise(4, 3, 32, 16) + 0.5
    power = Spectrum().add(x).power
    assert power.sum().item() == pytest.approx(64 * x.square().mean().item(), rel=1e-5)


def test_a_constant_picture_has_nothing_but_dc():
    spectrum = Spectrum().add(torch.full((2, 3, 16, 16), 0.7))
    assert spectrum.amplitude[0] == 1 and spectrum.amplitude[1:].max() < 1e-6
    assert spectrum.power[0].item() == pytest.approx((0.7 * 8) ** 2, rel=1e-5)
    flat = Spectrum().add(torch.zeros(1, 1, 8, 8))
    assert flat.high == 0 and math.isfinite(flat.slope)


def test_white_noise_is_flat():
    spectrum = Spectrum().add(noise(64, 3, 64, 64))
    # 12288 blocks: a mean of |D| is known to 0.7 %
    assert (spectrum.amplitude - 1).abs().max() < 0.035
    assert spectrum.high == pytest.approx(32 / 63, abs=0.005)
    assert abs(spectrum.slope) < 3e-4


def test_natural_pictures_decay_steeply():
    photos = Spectrum().add(Photos(14, 64, "all")(0, 0).x)
    assert photos.slope < -0.01 and photos.high < 0.15
    curve = photos.amplitude
    assert 0.5 > curve[1:10].mean() > 2 * curve[10:32].mean() > 3 * curve[48:].mean()


def test_the_slope_is_that_of_a_straight_line():
    spectrum = Spectrum()
    index = torch.arange(64).double()
    spectrum.blocks, spectrum.sums = 1, torch.stack((3 * 10 ** (-0.02 * index), 10 ** (-0.04 * index)))
    assert spectrum.slope == pytest.approx(-0.02)
    power = 10 ** (-0.04 * index)
    assert spectrum.high == pytest.approx((power[32:].sum() / power[1:].sum()).item())


def test_the_zigzag():
    path = zigzag()
    assert sorted(path) == list(range(64))
    assert path[:10] == (0, 1, 8, 16, 9, 2, 3, 10, 17, 24) and path[-2:] == (62, 63)


def test_batches_and_clips_add_up():
    x = noise(4, 3, 5, 16, 24)
    whole = Spectrum().add(x)
    parts = Spectrum()
    for frame in x.unbind(2):
        parts.add(frame[:1]).add(frame[1:])
    assert whole.count == parts.count == 20 and whole.blocks == parts.blocks == 20 * 3 * 6
    torch.testing.assert_close(whole.power, parts.power, rtol=1e-5, atol=0)
    torch.testing.assert_close(whole.amplitude, parts.amplitude, rtol=1e-5, atol=0)


def test_sides_are_cut_to_whole_blocks_and_must_have_one():
    x = noise(2, 3, 23, 17)
    torch.testing.assert_close(Spectrum().add(x).power, Spectrum().add(x[..., :16, :16]).power)
    with pytest.raises(ValueError, match="at least 8, got 7 x 32"):
        Spectrum().add(torch.zeros(1, 3, 7, 32))
    with pytest.raises(ValueError, match="expected"):
        Spectrum().add(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="no picture"):
        _ = Spectrum().slope


def test_curves_of_pixels_means_and_samples():
    x = [F.interpolate(noise(8, 3, 8, 8), 64, mode="bilinear") for _ in range(2)]
    quiet, loud = curves(Blocks(logvar=-30), x), curves(Blocks(logvar=0.0), x)
    assert quiet["pixels"].count == 16 and quiet["latents"].blocks == 16 * 3 * 2 * 2
    torch.testing.assert_close(quiet["latents"].power, Spectrum().add(F.avg_pool2d(x[0], 4)).power)
    torch.testing.assert_close(quiet["sampled"].power, quiet["latents"].power, rtol=1e-3, atol=1e-4)
    # unit noise on every latent adds a power of one to every coefficient
    more = loud["sampled"].power - loud["latents"].power
    assert more.mean().item() == pytest.approx(1, abs=0.1)
    assert loud["sampled"].slope > loud["latents"].slope + 0.001
    again = curves(Blocks(logvar=0.0), x, seed=0)["sampled"]
    assert torch.equal(again.power, loud["sampled"].power)
    assert not torch.equal(curves(Blocks(logvar=0.0), x, seed=1)["sampled"].power, again.power)


def test_an_autoencoder_is_given_what_it_takes():
    clips, pictures = noise(2, 3, 5, 32, 32), noise(2, 3, 32, 32)
    found = curves(Blocks(), [clips])
    assert found["latents"].count == 10
    # one of pictures and one of clips that works frame by frame
    other = curves(Blocks(time_factor=4), [clips])
    torch.testing.assert_close(found["latents"].power, other["latents"].power)
    assert curves(Blocks(time_factor=4), [pictures])["latents"].count == 2


def test_an_equivariant_decoder_has_no_error():
    class Identity(Blocks):
        def posterior(self, x):
            return x, torch.zeros_like(x)

        def decode(self, z, first=None):
            return z

    for x in (noise(2, 3, 24, 24), noise(2, 3, 3, 24, 24)):
        assert equivariance_error(Identity(factor=1), x, 8) == 0
        assert equivariance_error(Identity(factor=1, time_factor=2), x, (8, 12)) == 0
    constant = torch.full((1, 3, 32, 32), 0.3)
    assert equivariance_error(Blocks(), constant, 4) < 1e-6


def test_the_error_is_the_distance_to_the_small_picture():
    class Black(Blocks):
        def decode(self, z, first=None):
            return torch.full((z.shape[0], 3, 4 * z.shape[2], 4 * z.shape[3]), -1.0)

    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = (F.interpolate(x, (16, 20), mode="bilinear", antialias=True) + 1).mean().item()
    assert equivariance_error(Black(), x, (4, 5)) == pytest.approx(expected, rel=1e-5)


def test_resizing_averages_instead_of_picking():
    x = torch.zeros(1, 1, 6, 6)
    x[..., 1::3, 1::3] = 9.0
    small = resized(x, (2, 2))
    assert small.max() < 3  # without antialiasing the centre pixel, 9
    clip = torch.stack((x, 2 * x), 2)
    torch.testing.assert_close(resized(clip, (2, 2))[:, :, 1], 2 * small)


def test_a_size_that_is_none_is_refused():
    for size in (0, 17, (8, 17)):
        with pytest.raises(ValueError, match="can only be made smaller"):
            equivariance_error(Blocks(factor=2), noise(1, 3, 32, 32), size)


def test_our_autoencoder():
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"]).eval()
    x = vae.example()[0]
    found = curves(vae, [x])
    assert not found["latents"].power.requires_grad and found["latents"].count == 2
    assert 0 < equivariance_error(vae, x, 5) < 2
