"""pocket reconstruct --data: one row per autoencoder, the library's numbers."""

import json

import pytest
import torch
from PIL import Image

from pocketdiffusion import store
from pocketdiffusion.autoencoders import h3ae, kl, tiny
from pocketdiffusion.cli.autoencoder import autoencoder_of
from pocketdiffusion.cli.judge import side
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.cli.spectrum import source
from pocketdiffusion.eval.reconstruction import measure
from pocketdiffusion.pipeline import SHIPPED


def says(capsys, *argv, code=0):
    assert guarded(["reconstruct", *map(str, argv)]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("pocket: error:")]
    assert len(lines) == (1 if code else 0)
    return lines[0] if code else out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the autoencoders and decoders of a test lie."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    store.save(kl.AutoencoderKL(kl.PRESETS["smoke"]), tmp_path / "pictures")
    store.save(h3ae.H3AE(h3ae.PRESETS["smoke"]), tmp_path / "videos")
    store.save(tiny.TinyDecoder(tiny.PRESETS["smoke"]), tmp_path / "small")
    return tmp_path


def test_a_row_per_model_on_the_same_pictures(folder, capsys):
    pages = folder / "pages"
    pages.mkdir()
    for i in range(3):
        Image.effect_noise((80, 70), 40).convert("RGB").save(pages / f"{i}.png")
    flags = ["--data", pages, "--count", "6", "-o", folder / "n.json"]
    said = says(capsys, *flags, "--model", "pictures", "--model", "videos")
    found = json.loads((folder / "n.json").read_text())
    assert found["size"] == 64 and set(found["each"]) == {"pictures", "videos"}
    features = store.load(SHIPPED / "scenes" / "features")
    x = source(str(pages), 32, 64)(10**6, 0).x[:6]
    for name, numbers in found["each"].items():
        expected = measure(autoencoder_of(name), [x], features)
        assert numbers == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert f"{numbers['psnr']:.4g}" in said and f"{numbers['ratio']:.4g}" in said
    header = said.splitlines()[0].split()
    assert header == ["model", "pictures", "ratio", "PSNR", "SSIM", "SceneNet", "frechet", "cycle"]


def test_clips_and_another_decoder(folder, capsys):
    flags = ["--data", "clips", "--count", "10", "--max-frames", "5", "--size", "32"]
    said = says(capsys, *flags, "--model", "pictures", "--decoder", "small")
    found = json.loads((folder / "reconstruction.json").read_text())["each"]
    assert list(found) == ["pictures", "+ small"]
    own, other = found.values()
    assert own["pictures"] == other["pictures"] == 10 and own["psnr"] != other["psnr"]
    assert "flicker" in said and own["flicker"] > 0


def test_a_folder_of_videos(folder, capsys):
    pytest.importorskip("av")
    from pocketdiffusion.data.clips import write_clip

    (folder / "films").mkdir()
    write_clip(torch.rand(3, 6, 48, 48) * 2 - 1, folder / "films" / "a.mp4", 8)
    flags = ["--data", "films", "--count", "5", "--max-frames", "5", "--size", "48", "--model", "videos"]
    assert "flicker" in says(capsys, *flags)


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "give IN or --data"),
        (["a.png", "--data", "photos"], "give IN or --data, not both"),
        (["a.png", "--model", "a", "--model", "b"], "several --model: is for --data"),
        (["a.png", "--count", "3"], "--count: is for --data"),
        (["--data", "photos", "--count", "0"], "--count 0: expected 1 or more"),
        (["--data", "photos", "--first"], "--first: has no meaning with --data"),
        (["--data", "photos", "--dtype", "bf16"], "--dtype: has no meaning with --data"),
        (["--data", "photos", "-o", "a.png"], "-o a.png: expected NAME.json"),
        (["--data", "gone"], "--data gone: expected scenes, clips, photos or a folder"),
        (["--data", "photos", "--size", "30"], "--size 30: scenes takes multiples of 4"),
        (
            ["--data", "photos", "--model", "a", "--model", "b", "--decoder", "c"],
            "--decoder: expected one --model",
        ),
        (["--data", "photos", "--model", "pictures", "--model", "pictures"], "the same model twice"),
    ],
)
def test_user_errors_are_one_line(folder, capsys, flags, said):
    before = sorted(folder.iterdir())
    assert said in says(capsys, *flags, code=2)
    assert sorted(folder.iterdir()) == before


def test_a_size_that_all_can_take():
    networks = {n: kl.AutoencoderKL(kl.Config(widths=(8,) * n)) for n in (3, 6, 8)}
    assert [side({n: networks[n]}, None) for n in networks] == [64, 64, 128]
    assert side(networks, None) == 128 and side(networks, 256) == 256
