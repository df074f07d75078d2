"""Recipes of autoencoders: clips, late GANs, and runs that are killed and go on as if nothing had been."""

import json
import os
import signal

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders import h3ae, kl
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.pipeline import latents_hash
from pocketdiffusion.recipes import (
    autoencoder_claims,
    autoencoder_speed,
    h3ae_scenes,
    scale_equivariance,
    tiny_decoder,
)

pytestmark = pytest.mark.slow


def train(*argv, code=0):
    assert guarded(["train", *map(str, argv)]) == code


@pytest.fixture
def vaes(tmp_path):
    torch.manual_seed(0)
    store.save(kl.AutoencoderKL(kl.PRESETS["smoke"]), tmp_path / "pictures")
    store.save(h3ae.H3AE(h3ae.PRESETS["scenes"]), tmp_path / "clips")
    return tmp_path


def killed(monkeypatch, where, nth):
    """SIGTERM while the ``nth`` batch from now on is drawn by ``where``."""
    calls, draw = [0], where.__call__

    def interrupted(self, seed, step):
        calls[0] += 1
        if calls[0] == nth:
            # else the signal would end the tests
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "not in fit()"
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, seed, step)

    monkeypatch.setattr(where, "__call__", interrupted)


@pytest.mark.parametrize("part", ["autoencoder", "dit"])
def test_scale_equivariance_goes_on_where_it_was_killed(vaes, monkeypatch, part):
    args = scale_equivariance.Args(
        vae=str(vaes / "pictures"),
        arms=("se",),
        seeds=(0,),
        steps=4,
        dit_steps=4,
        batch=2,
        pictures=32,
        held_out=4,
        size=32,
        bf16=False,
        out=vaes / "whole",
    )
    scale_equivariance.main(args)
    cut = scale_equivariance.replace(args, out=vaes / "cut")
    where = scale_equivariance.Scenes if part == "autoencoder" else scale_equivariance.Encoded
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        killed(patched, where, 3)
        scale_equivariance.main(cut)
    assert not (vaes / "cut" / "se-0.json").exists()
    scale_equivariance.main(cut)
    assert (vaes / "cut" / "se-0.json").read_text() == (vaes / "whole" / "se-0.json").read_text()
    assert "frechet_dit" in (vaes / "cut" / "se-0.json").read_text()


def test_claims_go_on_where_they_were_killed(tmp_path, monkeypatch):
    args = autoencoder_claims.Args(
        arms=("consistency_se",),
        control="gan",
        seeds=(0,),
        steps=4,
        still=0,
        batch=1,
        frames=5,
        held_out=2,
        bf16=False,
        out=tmp_path / "whole",
    )
    autoencoder_claims.main(args)
    cut = autoencoder_claims.replace(args, out=tmp_path / "cut")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        # the second of a step's two players: its discriminator learns
        killed(patched, autoencoder_claims.Clips, 4)
        autoencoder_claims.main(cut)
    assert not list((tmp_path / "cut").glob("*-0.json"))
    autoencoder_claims.main(cut)
    for name in ("consistency_se-0.json", "gan-0.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_scale_equivariance_of_a_video_autoencoder(vaes, capsys):
    flags = ["--vae", vaes / "clips", "--clips", "--frames", "5", "--size", "64", "--steps", "2"]
    flags += ["--batch", "4", "--dit-steps", "2", "--pictures", "32", "--held-out", "4", "--seeds", "0"]
    train("scale_equivariance", *flags, "--arms", "lc_se", "chop", "eq", "--out", vaes / "run")
    found = json.loads((vaes / "run" / "lc_se-0.json").read_text())
    assert {"se_error", "flicker", "frechet_dit"} <= set(found)
    assert store.load(vaes / "run" / "chop-0" / "vae").config.time_factor == 4
    capsys.readouterr()
    train("scale_equivariance", "--vae", vaes / "clips", "--out", vaes / "no1", code=2)
    assert "an autoencoder of clips; give --clips" in capsys.readouterr().err
    train(
        "scale_equivariance",
        "--vae",
        vaes / "clips",
        "--clips",
        "--size",
        "32",
        "--out",
        vaes / "no2",
        code=2,
    )
    assert "--size 32: expected 64 or more" in capsys.readouterr().err


def test_tiny_decoder_of_clips_with_a_late_gan(vaes, monkeypatch, capsys):
    turns = []
    turn = tiny_decoder.PatchGAN.turn
    monkeypatch.setattr(tiny_decoder.PatchGAN, "turn", lambda s, i: turns.append(turn(s, i)) or turns[-1])
    flags = ["--clips", "--frames", "5", "--steps", "5", "--batch", "1", "--gan", "0.1", "--gan-from", "0.8"]
    flags += ["--preset", "scenes_clips", "--vae", vaes / "clips", "--perceptual", "0.1"]
    train("tiny_decoder", *flags, "--out", vaes / "run")
    # it learns in as many steps before it counts as it counts in
    assert [len(t) for t in turns] == [1, 1, 1, 2, 2]
    decoder, vae = store.load(vaes / "run" / "decoder"), store.load(vaes / "clips")
    assert decoder.config.latents == latents_hash(vae)
    assert decoder.decode(vae.encode(torch.zeros(1, 3, 5, 64, 64))).shape == (1, 3, 5, 64, 64)
    capsys.readouterr()
    train("tiny_decoder", "--vae", vaes / "pictures", "--clips", "--out", vaes / "no3", code=2)
    assert "an autoencoder of pictures; leave out --clips" in capsys.readouterr().err
    train("tiny_decoder", "--vae", vaes / "pictures", "--gan-from", "2", "--out", vaes / "no4", code=2)
    assert "--gan-from 2.0: expected 0 to 1" in capsys.readouterr().err


def test_tiny_decoder_with_lpips_says_what_that_needs(vaes, monkeypatch, capsys):
    flags = ["--vae", vaes / "pictures", "--preset", "smoke", "--steps", "2", "--batch", "2", "--size", "32"]
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics", None)
    train("tiny_decoder", *flags, "--lpips", "1", "--out", vaes / "no5", code=2)
    assert "LPIPS needs torchmetrics" in capsys.readouterr().err

    trained = []

    def distance(network, device):
        assert network == "vgg"

        def far(x, y):
            trained.append(x.requires_grad or y.requires_grad)
            return (x - y).square().mean((1, 2, 3))

        return far

    monkeypatch.setattr(tiny_decoder, "lpips", distance)
    train("tiny_decoder", *flags, "--lpips", "1", "--out", vaes / "run")
    assert trained == [True, True]


def test_speed_goes_on_with_the_rows_that_are_missing(tmp_path, monkeypatch, capsys):
    measured, row = [], autoencoder_speed.row

    def counted(pair, kind, preset, args, device):
        if len(measured) == 1:
            measured.append("cut")
            raise KeyboardInterrupt
        measured.append(preset)
        return row(pair, kind, preset, args, device)

    monkeypatch.setattr(autoencoder_speed, "row", counted)
    flags = ["autoencoder_speed", "--out", tmp_path, "--count-only", "--pairs", "1x8x8"]
    assert guarded(["train", *map(str, flags)]) != 0
    assert len(json.loads((tmp_path / "speed.json").read_text())) == 1
    train(*flags)
    rows = json.loads((tmp_path / "speed.json").read_text())
    assert measured == ["snapgen_4", "cut", "snapgen_4_fast", "taesd", "sdxl"] and len(rows) == 4
    capsys.readouterr()
    train(*flags, "--side", "64", code=2)
    assert "holds a run with --side 256, not 64" in capsys.readouterr().err


def test_h3ae_of_ones_own_videos_with_every_term(vaes, monkeypatch, capsys):
    pytest.importorskip("av")
    from pocketdiffusion.data.clips import write_clip

    for part, count in (("train", 3), ("test", 1)):
        (vaes / "videos" / part).mkdir(parents=True)
        for i in range(count):
            write_clip(torch.rand(3, 7, 48, 48) * 2 - 1, vaes / "videos" / part / f"{i}.mp4", 8)
    shapes, losses, made = [], set(), h3ae_scenes.Autoencode.parts

    def parts(self, found):
        shapes.append(tuple(found.x.shape))
        losses.update(made(self, found))
        return made(self, found)

    monkeypatch.setattr(h3ae_scenes.Autoencode, "parts", parts)
    flags = ["--init", vaes / "clips", "--data", vaes / "videos", "--consistency", "0.1", "--se", "0.25"]
    flags += ["--steps", "4", "--still", "2", "--batch", "1", "--frames", "5", "--size", "32"]
    train("h3ae_scenes", *flags, "--held-out", "3", "--out", vaes / "run")
    assert shapes == [(2, 3, 32, 32)] * 2 + [(1, 3, 5, 32, 32)] * 2
    before, after = store.load(vaes / "clips"), store.load(vaes / "run" / "vae")
    assert before.config == after.config and latents_hash(before) != latents_hash(after)
    assert losses == {"loss", "l1", "kl", "se", "consistency"}
    # the numbers are those of the file
    told = capsys.readouterr().out
    unseen = h3ae_scenes.source(h3ae_scenes.Args(data=str(vaes / "videos"), size=32), "test", 3, 5, "cpu")
    found = h3ae_scenes.measured(after, 32, 5, torch.device("cpu"), 3, unseen)
    assert found["pictures"] == 15 and f"psnr {found['psnr']:.4g}, " in told


def test_h3ae_refuses_what_it_would_meet_late(vaes, capsys):
    (vaes / "half" / "train").mkdir(parents=True)
    for flags, said in (
        (
            ["--data", vaes / "half"],
            "half: no test/ in it; expected scenes, or a folder with train/ and test/",
        ),
        (["--init", vaes / "pictures"], "pictures: a AutoencoderKL, expected an H3AE"),
        (["--frames", "6"], "6 frames: expected 1 + 4 k"),
        (["--size", "60"], "60 x 60 pixels: sides must be multiples of 8"),
        (["--held-out", "0"], "--held-out 0: expected 1 or more"),
    ):
        train("h3ae_scenes", *flags, "--out", vaes / f"no{said[:4].strip()}", code=2)
        assert said in capsys.readouterr().err


def test_h3ae_draws_as_before_and_measures_every_clip(vaes):
    """The defaults' batches are those of the world itself, and a remainder of eight is judged too."""
    args, cpu = h3ae_scenes.Args(still=2, batch=1, frames=5, size=32), torch.device("cpu")
    clips = h3ae_scenes.Clips(h3ae_scenes.WORLD, 1, 32, 5)
    pictures = h3ae_scenes.Scenes(h3ae_scenes.WORLD, 2, 32)
    data = h3ae_scenes.mixed(args, cpu)
    for step, expected in enumerate([pictures, pictures, clips, clips, pictures, clips]):
        assert torch.equal(data(7, step).x, expected(7, step).x)
    vae = store.load(vaes / "clips")
    found = h3ae_scenes.measured(vae, 32, 5, cpu, 10)
    assert found["pictures"] == 50
    drawn = h3ae_scenes.Clips(h3ae_scenes.WORLD, 8, 32, 5)
    x = torch.cat([drawn(10**6, i).x for i in range(2)])[:10]
    with torch.no_grad():
        expected = h3ae_scenes.by_frame(x, vae.decode(vae.encode(x)).clamp(-1, 1))[1:].mean()
    assert found["rest"] == pytest.approx(expected.item(), abs=1e-3)
