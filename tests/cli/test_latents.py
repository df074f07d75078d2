"""Files of latents: whose they are, and what a file must hold."""

import json

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders import kl, tiny
from pocketdiffusion.cli import latents
from pocketdiffusion.disk import save_tensors

ABOUT = {"still": True, "fps": 24.0, "height": 30, "width": 45}


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return kl.AutoencoderKL(kl.PRESETS["smoke"]).eval()


@torch.no_grad()
def test_another_decoder_and_half_precision_read_the_same_latents(vae, tmp_path):
    path, z = tmp_path / "z.safetensors", torch.randn(4, 1, 8, 12)
    latents.write(path, z, vae, "mine", ABOUT)
    grafted = tiny.Grafted(vae, tiny.TinyDecoder(tiny.PRESETS["smoke"]))
    store.save(vae, tmp_path / "half", torch.float16)
    for reader in (vae, grafted, store.load(tmp_path / "half")):
        found, about = latents.read(path, reader, "mine")
        assert torch.equal(found, z) and about == ABOUT
    next(vae.decoder.parameters()).add_(1)
    assert torch.equal(latents.read(path, vae, "tuned")[0], z)
    latents.write(path, z, grafted, "mine", ABOUT)
    assert torch.equal(latents.read(path, vae, "mine")[0], z)
    next(vae.encoder.parameters()).add_(1)
    with pytest.raises(
        ValueError, match=r"z.safetensors: latents of autoencoder .* \(--model mine\), --model x"
    ):
        latents.read(path, vae, "x")


@pytest.mark.parametrize(
    "z, about, said",
    [
        (
            torch.zeros(1, 4, 1, 8, 12),
            {},
            r"z is torch.float32 \(1, 4, 1, 8, 12\), expected floats \(4, T, h, w\)",
        ),
        (torch.zeros(5, 1, 8, 12), {}, r"\(5, 1, 8, 12\), expected floats \(4, T, h, w\)"),
        (torch.zeros(4, 1, 8, 12, dtype=torch.int32), {}, "z is torch.int32"),
        (torch.zeros(4, 0, 8, 12), {}, "expected floats"),
        (torch.zeros(4, 2, 8, 12), {}, "z has 2 frames, expected 1 of a picture"),
        (torch.zeros(4, 1, 8, 11), {}, "does not fit 30 x 45 pixels, 4 per position"),
        (torch.zeros(4, 1, 8, 12), {"height": "30"}, "height in about is '30', expected a positive number"),
        (torch.zeros(4, 1, 8, 12), {"fps": 0}, "fps in about is 0, expected a positive number"),
        (torch.zeros(4, 1, 8, 12), {"width": None}, "width in about is None"),
        (torch.zeros(4, 1, 8, 12), {"still": 1}, "still in about is 1, expected true or false"),
        (torch.zeros(4, 1, 8, 12), "[1]", "still in about is None"),
        (torch.zeros(4, 1, 8, 12), "{", "about is not valid JSON"),
    ],
)
def test_what_a_file_must_hold(vae, tmp_path, z, about, said):
    text = about if isinstance(about, str) else json.dumps(ABOUT | about)
    told = {"autoencoder": latents.maker(vae), "model": "mine", "about": text}
    save_tensors({"z": z}, tmp_path / "z.safetensors", told)
    with pytest.raises(ValueError, match=f"z.safetensors: .*{said}"):
        latents.read(tmp_path / "z.safetensors", vae, "mine")
