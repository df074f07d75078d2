"""PSNR against values known by hand."""

import torch

from pocketdiffusion.autoencoders import kl
from pocketdiffusion.eval.reconstruction import psnr, reconstruct


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 3, 4, 4)
    y = x + torch.tensor([0.2, 0.02])[:, None, None, None]
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 40.0]))


def test_equal_pictures_are_finite():
    x = torch.rand(1, 3, 4, 4)
    assert psnr(x, x) == 100


def test_reconstruct_is_clamped_and_has_the_input_s_shape():
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"])
    x = vae.example()[0]
    y = reconstruct(vae, x)
    assert y.shape == x.shape and y.abs().max() <= 1
