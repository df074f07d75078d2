"""Autoencoders by themselves: programs, states, and clips put together on the device's side."""

import json
from dataclasses import replace

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders import h3ae, kl, tiny
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.export.rewrite import TIME, rewritten
from pocketdiffusion.export.streams import FILE, agreed, chained, export, programs
from pocketdiffusion.nn.causal import CausalConv, TimeDown

SMALL = replace(
    h3ae.PRESETS["smoke"], widths=(8, 16), blocks=(1, 1), flat=1, halve=(0, 1), mlp=32, side=16, window=3
)


@pytest.fixture(scope="module")
def clips():
    torch.manual_seed(0)
    net = h3ae.H3AE(SMALL)
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


@pytest.mark.parametrize("layer", [CausalConv(3, 5), CausalConv(3, 5, (3, 1, 1)), TimeDown(3)])
@torch.no_grad()
def test_flat_convolutions_change_nothing(layer):
    x = torch.randn(2, 3, 9, 6, 4)
    torch.testing.assert_close(rewritten(layer, TIME)(x), layer(x), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(m, torch.nn.Conv3d) for m in rewritten(layer, TIME).modules())


def test_programs_of_pictures_and_decoders():
    vae = programs(kl.AutoencoderKL(kl.PRESETS["smoke"]), 32)
    assert list(vae) == ["encoder", "decoder"]
    assert vae["encoder"]()["z"].shape == vae["decoder"].inputs["z"].shape == (1, 4, 8, 8)
    assert list(programs(tiny.TinyDecoder(tiny.PRESETS["smoke"]))) == ["decoder"]
    assert list(programs(tiny.TinyDecoder(tiny.PRESETS["smoke_clips"]))) == ["decoder_first", "decoder_next"]
    with pytest.raises(ValueError, match="multiple of 4 pixels, got 30"):
        programs(kl.AutoencoderKL(kl.PRESETS["smoke"]), 30)


def test_states_come_back_in_the_shape_they_went(clips):
    made = programs(clips)
    assert list(made) == ["encoder_first", "encoder_next", "decoder_first", "decoder_next"]
    for direction in ("encoder", "decoder"):
        program = made[f"{direction}_next"]
        out = {k.removeprefix("out_"): v.shape for k, v in program().items() if k.startswith("out_")}
        into = {k.removeprefix("in_"): v.shape for k, v in program.inputs.items() if k.startswith("in_")}
        assert out == into and out
    assert made["decoder_next"]()["x"].shape == (1, 3, 4, 16, 16)


@torch.no_grad()
def test_programs_chained_are_the_whole_clip(clips):
    made = programs(clips)
    run = {name: lambda given, p=p: run_one(p, given) for name, p in made.items()}
    assert min(agreed(clips, run, made, "fp32")) > 80
    x = torch.rand(1, 3, 13, 16, 16) * 2 - 1
    torch.testing.assert_close(chained(run, "encode", x, 4, {}), clips.encode(x), atol=1e-4, rtol=1e-3)


def run_one(program, given):
    return {k: v.numpy() for k, v in program({k: torch.as_tensor(v) for k, v in given.items()}).items()}


@pytest.mark.slow
def test_a_video_autoencoder_on_a_runtime(clips, tmp_path):
    pytest.importorskip("onnxruntime")
    report = export(clips, tmp_path / "out", "onnx", "fp32")
    # decoded knowing the first frame and not, and encoded
    assert len(report.psnr) == 3 and min(report.psnr) > 60
    told = json.loads((tmp_path / "out" / FILE).read_text())
    assert told["time_factor"] == 4 and set(told["programs"]) == set(programs(clips))
    assert all((tmp_path / "out" / p["file"]).exists() for p in told["programs"].values())


@pytest.mark.slow
def test_a_decoder_of_clips_on_core_ml(tmp_path):
    pytest.importorskip("coremltools")
    torch.manual_seed(0)
    config = replace(tiny.PRESETS["smoke_clips"], widths=(8, 8), blocks=(1, 1), double=(0,))
    decoder = tiny.TinyDecoder(config)
    assert min(export(decoder, tmp_path / "out", "coreml", "fp16").psnr) > 30
    with pytest.raises(ValueError, match="clips go to onnx and coreml"):
        export(decoder, tmp_path / "no", "executorch")


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    store.save(tiny.TinyDecoder(tiny.PRESETS["smoke"]), tmp_path / "decoder")
    assert guarded(["export", str(tmp_path / "decoder"), "--dry-run"]) == 0
    assert "decoder  z (1, 4, 8, 8)" in capsys.readouterr().out
    assert guarded(["export", str(tmp_path / "decoder"), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "decoder.onnx").exists()
    assert guarded(["export", str(tmp_path / "decoder"), "--target", "web", "-o", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()
