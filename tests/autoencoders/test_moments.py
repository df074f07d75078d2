"""Moments in parts are those of the whole, and no more than a few rows are encoded at once."""

import pytest
import torch

from pocketdiffusion.autoencoders.h3ae import H3AE
from pocketdiffusion.autoencoders.h3ae import PRESETS as H3AES
from pocketdiffusion.autoencoders.kl import PRESETS, AutoencoderKL
from pocketdiffusion.autoencoders.moments import ROWS, moments


@pytest.mark.parametrize("shape", [(9, 5, 4, 6), (6, 3, 2, 4, 4)])
def test_moments_are_those_of_the_whole(shape):
    x = 3 + 2 * torch.randn(shape)
    seen = []
    mean, variance = moments(lambda part: seen.append(len(part)) or -part, x)
    rest = [d for d in range(x.ndim) if d != 1]
    torch.testing.assert_close(mean, -x.double().mean(rest))
    torch.testing.assert_close(variance, x.double().var(rest, correction=0))
    assert max(seen) == ROWS and sum(seen) == len(x)


@pytest.mark.parametrize("kind, config", [(AutoencoderKL, PRESETS["smoke"]), (H3AE, H3AES["smoke"])])
def test_autoencoders_calibrate_in_parts(kind, config):
    net = kind(config)
    rows = []
    net.encoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    net.calibrate(net.example(9)[0])
    assert rows == [4, 4, 1]
