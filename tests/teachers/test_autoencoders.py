"""Foreign autoencoders: diffusers' own functions, with the house's conventions around them."""

import sys
from pathlib import Path

import pytest
import torch

from pocketdiffusion.data.latents import weights_hash
from pocketdiffusion.teachers.autoencoders import SHARP, Foreign, published

pytest.importorskip("diffusers")
sys.path.append(str(Path(__file__).parent))
from tiny_autoencoders import SIX, TINY, VIDEO, clip, foreign, pixels, statistics, tiny

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("moving", [False, True], ids=["picture", "clip"])
def test_parity_with_diffusers(name, moving):
    model = foreign(name)
    x = clip(name) if moving else pixels(name)
    own = x
    if TINY[name][3] > 1 and not moving:
        own = x[:, :, None]
    if TINY[name][3] == 1 and moving:
        own = x.transpose(1, 2).reshape(-1, 3, *x.shape[-2:])
    mean, std = statistics(model)
    with torch.no_grad():
        found = model.encode(own)
        raw = found.latent if name == "dc" else found.latent_dist.mode()
        logvar = torch.full_like(raw, SHARP) if name == "dc" else found.latent_dist.logvar - 2 * std.log()
        temb = (torch.zeros(len(own)),) if name == "ltx_timed" else ()
        back = model.decode(raw, *temb).sample
        z, spread = Foreign(model).posterior(x)
        decoded = Foreign(model).decode(z)
    factor, time_factor, channels = TINY[name][2:]
    frames = (1 + (x.shape[2] - 1) // time_factor,) if moving else ()
    assert z.shape == spread.shape == (2, channels, *frames, *(s // factor for s in x.shape[-2:]))
    assert decoded.shape == x.shape

    def house(y):
        if TINY[name][3] > 1:
            return y if moving else y[:, :, 0]
        return y.reshape(2, -1, *y.shape[1:]).transpose(1, 2) if moving else y

    torch.testing.assert_close(z, house((raw - mean) / std), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(spread, house(logvar.expand_as(raw)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded, house(back), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Foreign(model)(x), decoded)


def test_logvar_is_that_of_the_normalised_latent():
    """Samples of the model's own posterior, normalised, have the variance that the wrapper tells."""
    model = foreign("kl_means")
    x = pixels("kl_means")
    mean, std = statistics(model)
    with torch.no_grad():
        own, (_, logvar) = model.encode(x).latent_dist, Foreign(model).posterior(x)
        z = torch.stack([(own.sample() - mean) / std for _ in range(2000)])
    assert (z.var(0) / logvar.exp()).sub(1).abs().max() < 0.25


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_part(name):
    model = tiny(name)
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.model.parameters()}
    model(clip(name)).square().sum().backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    assert not [k for k, g in grads.items() if g is None]
    for part in ("encoder", "decoder"):
        moved = [g.abs().max() > 0 for k, g in grads.items() if part in k]
        assert sum(moved) > 0.9 * len(moved)


def test_tiles_are_off():
    model = foreign("kl")
    model.enable_tiling()
    model.enable_slicing()
    Foreign(model)
    assert not model.use_tiling and not model.use_slicing


@pytest.mark.parametrize("name", SIX)
def test_calibrate(name):
    model = tiny(name)
    x = clip(name)
    with torch.no_grad():
        before = model(x)
    model.calibrate(x)
    with torch.no_grad():
        z, after = model.encode(x), model(x)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    if name == "dc":
        assert abs(z.square().mean() - 1) < 1e-5
        return
    assert z.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert (z.std((0, 2, 3, 4), correction=0) - 1).abs().max() < 1e-4


def test_calibrating_encodes_a_few_at_a_time():
    model = tiny("kl")
    rows, encode = [], model.encode
    model.encode = lambda x: rows.append(len(x)) or encode(x)
    model.calibrate(pixels("kl", batch=9))
    assert rows == [4, 4, 1]


def test_the_hash_follows_weights_and_statistics():
    model = tiny("ltx")
    first = weights_hash(model)
    with torch.no_grad():
        model.model.decoder.conv_in.conv.bias[0] += 1e-3
    second = weights_hash(model)
    model.calibrate(pixels("ltx", 9))
    assert len({first, second, weights_hash(model)}) == 3


@pytest.mark.parametrize("name", SIX)
def test_example(name):
    model = tiny(name)
    (x,) = model.example()
    assert x.shape[:2] == (2, 3) and x.ndim == (5 if name in VIDEO else 4)
    with torch.no_grad(), torch.device("meta"):
        model.to("meta").encode(model.example(device="meta")[0])


@pytest.mark.parametrize(
    "name, call, shape, message",
    [
        ("kl", "encode", (1, 3, 5, 4), r"pixels of 5 x 4: expected multiples of 2"),
        ("wan2.2", "encode", (1, 3, 16, 24), r"pixels of 16 x 24: expected multiples of 16"),
        ("wan2.1", "encode", (1, 3, 4, 8, 8), r"pixels of 4 frames: expected 1 \+ 4 k"),
        ("ltx", "encode", (1, 3, 8, 32, 32), r"pixels of 8 frames: expected 1 \+ 8 k"),
        ("cogvideox", "encode", (1, 3, 5, 8, 8), r"pixels of 5 frames: expected 1 \+ 8 k"),
        ("cogvideox", "decode", (1, 4, 2, 1, 1), r"latents of 2 frames: expected 1 \+ 2 k"),
        ("qwen-image", "decode", (1, 16, 1, 1), r"latents of shape \(1, 16, 1, 1\): expected \(B, 4, H, W\)"),
        ("kl", "encode", (1, 1, 4, 4), r"pixels of shape \(1, 1, 4, 4\): expected \(B, 3, H, W\)"),
        ("kl", "encode", (3, 4, 4), r"pixels of shape \(3, 4, 4\)"),
    ],
)
def test_shapes_are_checked(name, call, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny(name), call)(torch.zeros(shape))


def test_cogvideox_gives_four_frames_for_each_of_an_even_number():
    """Why its clips have 1 + 8 k frames: diffusers returns more frames than it was given."""
    model = foreign("cogvideox")
    with torch.no_grad():
        z = model.encode(torch.zeros(1, 3, 5, 8, 8)).latent_dist.mode()
        assert model.decode(z).sample.shape[2] == 8


def test_other_models_are_refused():
    with pytest.raises(ValueError, match=r"unknown class of autoencoder 'Linear'; known: AutoencoderKL, "):
        Foreign(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"unknown autoencoder 'sd9'"):
        published("sd9")


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ModuleNotFoundError, match="diffusers"):
        published("sdxl")
