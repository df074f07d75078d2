import pytest
import torch

from pocketdiffusion.autoencoders.kl import PRESETS, AutoencoderKL, Config


@pytest.fixture
def net():
    torch.manual_seed(0)
    return AutoencoderKL(PRESETS["smoke"]).eval()


@pytest.fixture
def calibrated(net):
    net.calibrate(net.example(8)[0])
    return net


@torch.no_grad()
def test_round_trip_shapes(net):
    x = torch.rand(2, 3, 24, 40) * 2 - 1
    z = net.encode(x)
    assert z.shape == (2, 4, 6, 10)
    assert net.decode(z).shape == net(x).shape == x.shape


@pytest.mark.parametrize("preset, factor, channels", [("f4", 4, 3), ("f8", 8, 4), ("scenes", 4, 4)])
def test_presets(preset, factor, channels):
    config = PRESETS[preset]
    assert config.factor == factor
    with torch.device("meta"):
        net = AutoencoderKL(config)
        mean, logvar = net.posterior(torch.empty(1, 3, 64, 64))
    assert mean.shape == logvar.shape == (1, channels, 64 // factor, 64 // factor)


@torch.no_grad()
def test_calibrate_gives_zero_mean_and_unit_variance(calibrated):
    z = calibrated.encode(calibrated.example(8)[0])
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-5, rtol=0)


@torch.no_grad()
def test_calibrating_changes_no_reconstruction_and_may_be_repeated(net):
    x = net.example(8)[0]
    before = net(x)
    for _ in range(2):
        net.calibrate(x)
        torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-4)
    assert {"scale", "shift"} <= set(net.state_dict())


@torch.no_grad()
def test_sampling_in_the_normalised_space_is_sampling_in_the_raw_one(calibrated):
    """mean and logvar are scaled together: the same noise decodes to the same picture."""
    x = calibrated.example(2)[0]
    mean, logvar = calibrated.posterior(x)
    noise = torch.randn_like(mean)
    ours = calibrated.decode(mean + (logvar / 2).exp() * noise)
    raw_mean, raw_logvar = calibrated.encoder(x).chunk(2, dim=1)
    raw = calibrated.decoder(raw_mean + (raw_logvar / 2).exp() * noise)
    torch.testing.assert_close(ours, raw, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_encode_is_the_mean(calibrated):
    x = calibrated.example(2)[0]
    assert torch.equal(calibrated.encode(x), calibrated.posterior(x)[0])


@torch.no_grad()
def test_log_variance_is_bounded(net):
    net.encoder[-1].weight.mul_(1e6)
    _, logvar = net.posterior(net.example(2)[0])
    assert logvar.min() >= -30 and logvar.max() <= 20


def test_factor_follows_the_levels():
    assert Config(widths=(8, 8, 8, 8, 8)).factor == 16


@pytest.mark.parametrize(
    "call, shape, said",
    [
        ("encode", (1, 3, 30, 32), r"pixels of 30 x 32: expected multiples of 4$"),
        ("encode", (1, 4, 32, 32), r"pixels of shape \(1, 4, 32, 32\): expected \(B, 3, H, W\)$"),
        ("encode", (1, 3, 5, 32, 32), r"expected \(B, 3, H, W\); frames of clips come as a batch$"),
        ("posterior", (3, 32, 32), r"pixels of shape \(3, 32, 32\): expected \(B, 3, H, W\)$"),
        ("decode", (1, 5, 8, 8), r"latents of shape \(1, 5, 8, 8\): expected \(B, 4, H, W\)$"),
        ("decode", (1, 4, 2, 8, 8), r"latents of shape .*; frames of clips come as a batch$"),
    ],
)
def test_what_does_not_fit_is_refused(net, call, shape, said):
    with pytest.raises(ValueError, match=said):
        getattr(net, call)(torch.zeros(shape))
