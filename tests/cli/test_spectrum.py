"""pocket spectrum: its table, its files, and what it says when something is wrong."""

import json
import shutil
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion import store
from pocketdiffusion.autoencoders import kl
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.cli.spectrum import side
from pocketdiffusion.eval.spectrum import curves, equivariance_error


def run(capsys, *argv, code=0):
    assert guarded(["spectrum", *map(str, argv)]) == code
    told = capsys.readouterr()
    if code:
        lines = [line for line in told.err.splitlines() if line.startswith("pocket: error:")]
        assert len(lines) == 1
        return lines[0]
    return told.out


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def autoencoder(folder, seed):
    torch.manual_seed(seed)
    network = kl.AutoencoderKL(kl.PRESETS["smoke"])
    store.save(network, folder)
    return network.eval()


def test_before_and_after_are_two_models(tiny_folder, tmp_path, capsys, photographs):
    after = autoencoder(tmp_path / "after", 3)
    out = tmp_path / "new" / "out"
    text = run(capsys, tiny_folder, tmp_path / "after", "--data", photographs, "--count", 10, "-o", out)
    found = json.loads((out / "spectrum.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == ["spectrum.json", "spectrum.svg"]
    assert [c["curve"] for c in found["curves"]] == ["pixels", *["latents", "sampled"] * 2]
    assert {c["pictures"] for c in found["curves"]} == {10}
    assert (found["size"], found["seed"], found["data"]) == (64, 0, str(photographs))
    assert found["zigzag"][:4] == [0, 1, 8, 16]
    assert all(f"{c['slope']:.4g}" in text and f"{c['HF']:.4g}" in text for c in found["curves"])
    assert [c["SE"] is None for c in found["curves"]] == [True, False, True, False, True]
    # the numbers are those of the library, on the pictures that the source gives
    from pocketdiffusion.data.photos import Photos

    x = Photos(32, 64, "all", photographs)(10**6, 0).x[:10]
    expected = curves(after, [x])
    assert found["curves"][3]["power"] == pytest.approx(expected["latents"].power.tolist(), rel=1e-4)
    assert found["curves"][4]["amplitude"] == pytest.approx(expected["sampled"].amplitude.tolist(), rel=1e-4)
    assert found["curves"][3]["SE"] == pytest.approx(equivariance_error(after, x, 8), abs=1e-3)
    assert found["curves"][0]["slope"] == pytest.approx(expected["pixels"].slope, abs=1e-3)


def test_the_plot_has_a_line_per_curve(tmp_path, capsys):
    autoencoder(tmp_path / "vae", 0)
    run(capsys, tmp_path / "vae", "--count", 4, "-o", tmp_path)
    root = ET.parse(tmp_path / "spectrum.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    texts = [e.get("points").split() for e in root.iter(f"{name}polyline")]
    drawn = [[tuple(map(float, p.split(","))) for p in points] for points in texts]
    assert [len(points) for points in drawn] == [64, 64, 64]
    x, y = zip(*drawn[0])
    assert list(x) == sorted(x) and y[0] < min(y[1:]), "DC is on top"
    words = {e.text for e in root.iter(f"{name}text")}
    assert {"pixels", "zigzag index", "60"} <= words and "80" not in words
    dashed = ["stroke-dasharray" in e.attrib for e in root.iter(f"{name}polyline")]
    assert dashed == [False, False, True], "samples lie on their means, which must be seen"
    assert sum(w.endswith("latents") or w.endswith("sampled") for w in words) == 2


def test_the_default_size_gives_every_latent_a_whole_block():
    def networks(**factors):
        return {name: SimpleNamespace(config=SimpleNamespace(factor=f)) for name, f in factors.items()}

    assert side(networks(a=4), None) == side(networks(a=4, b=8), None) == 64
    assert side(networks(a=4, b=32), None) == 256
    assert side(networks(a=4, b=32), 288) == 288
    with pytest.raises(ValueError, match=r"--size 128: b makes 32 x 32 .* multiple of 32, at least 256"):
        side(networks(a=4, b=32), 128)


@pytest.mark.parametrize("data, pictures", [("scenes", 6), ("photos", 6), ("clips", 17)])
def test_every_source(tmp_path, capsys, data, pictures):
    autoencoder(tmp_path / "vae", 0)
    run(capsys, tmp_path / "vae", "--data", data, "--count", 6, "-o", tmp_path, "--size", 32)
    found = json.loads((tmp_path / "spectrum.json").read_text())
    assert [c["pictures"] for c in found["curves"]] == [pictures] * 3
    assert found["curves"][0]["slope"] < -0.005


def test_the_seed_chooses_the_pictures(tmp_path, capsys):
    autoencoder(tmp_path / "vae", 0)
    told = [
        run(capsys, tmp_path / "vae", "--count", 4, "-o", tmp_path, "--size", 32, "--seed", s)
        for s in (1, 1, 2)
    ]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--count", "0"], "--count 0: expected 1 or more"),
        (
            ["--size", "24"],
            "--size 24: .* makes 4 x 4 pixels one .* multiple of 4, at least 32",
        ),
        (["--size", "66"], "--size 66"),
        (["--data", "nonsense"], "--data nonsense: expected scenes, clips, photos or a folder"),
        (["--data", "photos", "--size", "1024"], "photos: no pictures .* pixels"),
        (["--device", "toaster"], "device toaster"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, flags, message):
    import re

    autoencoder(tmp_path / "vae", 0)
    assert re.search(message, run(capsys, tmp_path / "vae", *flags, "-o", tmp_path, code=2))


def test_models_that_are_none(tiny_folder, tmp_path, capsys):
    assert "no pipeline 'nonsense'" in run(capsys, "nonsense", code=2)
    assert "expected an autoencoder" in run(capsys, tiny_folder / "transformer", code=2)
    assert "twice" in run(capsys, tiny_folder, tiny_folder, code=2)
    shutil.copytree(tiny_folder / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"1234")
    assert "safetensors" in run(capsys, tmp_path / "vae", code=2)
