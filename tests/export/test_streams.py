"""Autoencoders by themselves: programs, states, and clips put together on the device's side."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pocketdiffusion import store
from pocketdiffusion.autoencoders import h3ae, kl, tiny
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.export import streams
from pocketdiffusion.export.parity import relative
from pocketdiffusion.export.rewrite import TIME, rewritten
from pocketdiffusion.export.streams import FILE, agreed, chained, export, probes, programs, shown
from pocketdiffusion.nn.causal import CausalConv, TimeDown
from pocketdiffusion.pipeline import SHIPPED, latents_hash

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


@torch.no_grad()
def test_probes_are_what_pictures_make_of_every_input():
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"]).eval()
    x = shown(vae, 32)
    assert x.shape == (16, 3, 32, 32) and torch.equal(x, shown(vae, 32))
    found = probes(programs(vae, 32), x, 1)
    assert torch.equal(torch.cat([p["x"] for p in found["encoder"]]), x)
    z = torch.cat([p["z"] for p in found["decoder"]])
    torch.testing.assert_close(z, vae.encode(x), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_probes_of_clips_carry_the_states_of_streams(clips):
    x = shown(clips, 16)
    assert x.shape == (2, 3, 37, 16, 16)
    found = probes(programs(clips), x[:1, :, :9], 4)
    # two chunks after the first, decoded untold and told
    assert {k: len(v) for k, v in found.items()} == {
        "encoder_first": 1,
        "encoder_next": 2,
        "decoder_first": 2,
        "decoder_next": 4,
    }
    assert torch.equal(found["encoder_next"][1]["x"], x[:1, :, 5:9])
    assert [p["told"].item() for p in found["decoder_first"]] == [0, 1]
    state = clips.stream_encode(x[:1, :, :5])[1]
    for name, value in state.items():
        given = found["encoder_next"][1]["in_" + name.replace(".", "_")]
        torch.testing.assert_close(given, value, atol=1e-4, rtol=1e-3)


@pytest.fixture
def written(monkeypatch):
    """A runtime that computes by itself, and what it was given to calibrate on."""
    seen, made = {}, {}

    class Eager:
        PRECISIONS, SUFFIX = ("int8",), ".eager"

        @staticmethod
        def write(program, path, precision, bits, probes):
            seen[program.name], made[path] = probes, program
            path.write_text(program.name)

        @staticmethod
        def opened(path):
            return lambda given: run_one(made[path], given)

        @staticmethod
        def operators(path):
            return {}

    monkeypatch.setattr(streams, "target", lambda name: Eager)
    return seen


def test_int8_is_calibrated_on_pictures(clips, written, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 40), (255, 0, 0)).save(folder / "red.png")
    vae = kl.AutoencoderKL(kl.PRESETS["smoke"])
    export(vae, tmp_path / "a", precision="int8", size=32)
    torch.testing.assert_close(torch.cat([p["x"] for p in written["encoder"]]), shown(vae, 32))
    export(vae, tmp_path / "b", precision="int8", size=32, source=folder)
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    assert all(torch.allclose(p["x"], red.expand(3, 32, 32)) for p in written["encoder"])
    export(clips, tmp_path / "c", precision="int8")
    assert len(written["encoder_next"]) == 2 * 9
    export(tiny.TinyDecoder(tiny.PRESETS["smoke"]), tmp_path / "d", precision="int8")
    told = [json.loads((tmp_path / n / FILE).read_text())["calibrated"] for n in "abcd"]
    assert told == ["scenes", str(folder), "scenes", "normal latents"]
    with pytest.raises(ValueError, match="gone: no such folder"):
        export(vae, tmp_path / "e", precision="int8", size=32, source=tmp_path / "gone")
    assert not (tmp_path / "e").exists()


def test_a_stream_is_checked_on_a_clip_that_calibrated_nothing(clips, written, tmp_path, monkeypatch):
    given = []
    check = streams.agreed
    monkeypatch.setattr(streams, "agreed", lambda *args: given.append(args[-1]) or check(*args))
    export(clips, tmp_path / "a", precision="int8")
    seen = torch.cat([p["x"] for p in written["encoder_first"]])
    (x,) = given
    assert x.shape == (1, 3, 37, 16, 16) and len(seen) == 2
    assert min((x[:, :, :1] - one).abs().max() for one in seen.split(1)) > 0.1
    assert torch.equal(x, shown(clips, 16, step=1)[:1])


def test_a_bundle_says_whose_latents_it_is_of(clips, written, tmp_path):
    whose = "0123456789abcdef" * 2
    small = tiny.PRESETS["smoke"]
    parts = {
        "clips": (clips, latents_hash(clips)),
        "told": (tiny.TinyDecoder(replace(small, latents=whose)), whose),
        "untold": (tiny.TinyDecoder(small), ""),
    }
    for name, (network, expected) in parts.items():
        export(network, tmp_path / name, precision="int8")
        assert json.loads((tmp_path / name / FILE).read_text())["latents"] == expected


@pytest.mark.slow
def test_pictures_calibrate_better_than_noise(tmp_path):
    """int8 of the shipped encoder, measured on pictures that calibrated neither."""
    onnx = pytest.importorskip("pocketdiffusion.export.onnx")
    pytest.importorskip("onnxruntime")
    vae = store.load(SHIPPED / "scenes" / "pipeline" / "vae")
    program, pixels = programs(vae, 32)["encoder"], shown(vae, 32)
    unseen = [{"x": x} for x in pixels[8:].split(1)]
    off = {}
    for name, given in {
        "pictures": [{"x": x} for x in pixels[:8].split(1)],
        "noise": [program.inputs],
    }.items():
        onnx.write(program, tmp_path / f"{name}.onnx", "int8", None, given)
        off[name] = relative(program, onnx.opened(tmp_path / f"{name}.onnx"), unseen)
    assert off["pictures"] < off["noise"]
