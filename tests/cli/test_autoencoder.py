"""Which autoencoder a name means, shipped ones by themselves too; folders of the wrong kind."""

import json

import pytest
import torch

from pocketdiffusion import pipeline, store
from pocketdiffusion.autoencoders import h3ae, kl, tiny
from pocketdiffusion.cli.autoencoder import autoencoder_of
from pocketdiffusion.cli.main import guarded


def says(capsys, *argv, code=0):
    assert guarded([*map(str, argv)]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("pocket: error:")]
    assert len(lines) == (1 if code else 0)
    return lines[0] if code else out


@pytest.fixture
def shipped(tmp_path, tiny_folder, monkeypatch):
    """A pipeline called scenes and a video autoencoder called scenes_video, as they would be shipped."""
    torch.manual_seed(0)
    (tmp_path / "weights" / "scenes").mkdir(parents=True)
    (tmp_path / "weights" / "scenes" / "pipeline").symlink_to(tiny_folder)
    store.save(h3ae.H3AE(h3ae.PRESETS["smoke"]), tmp_path / "weights" / "scenes_video" / "vae")
    monkeypatch.setattr(pipeline, "SHIPPED", tmp_path / "weights")
    return tmp_path / "weights"


def test_a_shipped_autoencoder_by_name(shipped, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(autoencoder_of("scenes")).__name__ == "AutoencoderKL"
    assert type(autoencoder_of("scenes_video")).__name__ == "H3AE"
    assert "H3AE" in says(capsys, "info", "scenes_video")
    assert "decoder_next" in says(capsys, "export", "scenes_video", "--dry-run")
    flags = ["--data", "clips", "--count", "17", "--size", "128", "-o", tmp_path / "spectrum"]
    says(capsys, "spectrum", "scenes_video", *flags)
    found = json.loads((tmp_path / "spectrum" / "spectrum.json").read_text())
    assert found["models"] == ["scenes_video"]


def test_a_shipped_autoencoder_reconstructs(shipped, tmp_path, capsys):
    pytest.importorskip("av")
    from pocketdiffusion.data.clips import write_clip

    write_clip(torch.rand(3, 5, 32, 32), tmp_path / "a.png", 8)
    says(capsys, "reconstruct", tmp_path / "a.png", "--model", "scenes_video", "-o", tmp_path / "b.png")
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["model"] == "scenes_video" and len(found["each"][0]["psnr_by_frame"]) == 5


def test_unknown_names_list_what_there_is(shipped, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = "no pipeline 'nonsense': give a folder or one of scenes, scenes_video (an autoencoder)"
    for command in (["spectrum", "nonsense"], ["info", "nonsense"], ["export", "nonsense", "--dry-run"]):
        assert there in says(capsys, *command, code=2)
    message = "scenes_video: a network by itself, expected a pipeline"
    assert message in says(capsys, "generate", "a", "--model", "scenes_video", code=2)


def test_clips_or_pictures(shipped):
    with pytest.raises(ValueError, match="scenes: an autoencoder of pictures; leave out --clips"):
        autoencoder_of("scenes", clips=True)
    with pytest.raises(ValueError, match="scenes_video: an autoencoder of clips; give --clips"):
        autoencoder_of("scenes_video", clips=False)
    assert autoencoder_of("scenes_video", clips=True).config.time_factor == 4


def test_folders_of_the_wrong_kind(tiny_folder, tmp_path, capsys):
    store.save(kl.AutoencoderKL(kl.PRESETS["smoke"]), tmp_path / "vae")
    store.save(tiny.TinyDecoder(tiny.PRESETS["smoke"]), tmp_path / "decoder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip").mkdir()
    export = ["export", "-o", tmp_path / "out"]
    told = says(capsys, *export, tiny_folder / "transformer", code=2)
    assert "a DiT has no decode, expected an autoencoder, a decoder or a pipeline" in told
    told = says(capsys, *export, tiny_folder / "text_encoder", code=2)
    assert "a TextTransformer has no decode" in told
    assert "no pipeline" in says(capsys, *export, tmp_path / "empty", code=2)
    told = says(capsys, *export, tmp_path / "vae", "--decoder", tmp_path / "decoder", code=2)
    assert "--width and --lazy are for pipelines" in told
    for flags in (["--webgpu"], ["--target", "web"], ["--components", "decoder"]):
        for more in ([], ["--dry-run"]):
            told = says(capsys, *export, tmp_path / "vae", *flags, *more, code=2)
            assert "vae: --target web, --webgpu and --components are for pipelines" in told
    for folder, message in {
        tiny_folder / "transformer": "transformer: a DiT, expected a decoder of latents",
        tiny_folder / "text_encoder": "text_encoder: a TextTransformer, expected a decoder of latents",
        tmp_path / "empty": "config.json: no such file",
        tiny_folder: "config.json: no such file",
    }.items():
        flags = ["--model", tiny_folder, "--decoder", folder]
        assert message in says(capsys, "eval", *flags, "--prompts", "1", code=2)
        assert message in says(capsys, *export, tiny_folder, "--decoder", folder, code=2)
    assert not (tmp_path / "out").exists()


def test_a_pipeline_is_not_calibrated_on_a_folder(tmp_path, capsys):
    assert guarded(["export", "scenes", "--calibrate", "photos", "-o", str(tmp_path / "out")]) == 2
    assert "--calibrate photos: is for an autoencoder by itself" in capsys.readouterr().err
