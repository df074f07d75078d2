"""Pipelines of diffusers through the command line: info, bench, export, and the bundle that comes out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
import tiny_pipelines as tiny

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.bits import uniform
from pocketdiffusion.export import bundle, foreign, onnx
from pocketdiffusion.export.parity import LIMITS, recorded, relative
from pocketdiffusion.export.program import programs
from pocketdiffusion.runtime.bundle import Words

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny.saved(family, tmp_path_factory.mktemp("foreign") / family)
        return made[family]

    return get


def says(capsys, argv, code=0):
    """What was printed: to stdout, or the one line of an error."""
    assert guarded([str(a) for a in argv]) == code
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("pocket: error:")]
    assert len(lines) == (1 if code else 0), error
    return lines[0] if code else out


def test_info_reads_headers_and_configs(folders, capsys, monkeypatch):
    folder = folders("sd3")
    monkeypatch.setattr("pocketdiffusion.teachers.pipeline.load", None)
    lines = says(capsys, ["info", folder]).splitlines()
    assert lines[0] == f"{folder} StableDiffusion3Pipeline"
    rows = {line.split()[0]: line.split() for line in lines[3:8]}
    assert rows["transformer"][1] == "SD3Transformer2DModel"
    assert rows["text_encoder_3"][1] == "T5EncoderModel"
    assert "latents: 4 x 16 x 16 for 32 x 32 pixels, 2 to a side" in lines
    assert "text: clip_l 77 tokens, clip_g 77 tokens, t5 256 tokens" in lines
    assert "schedule: flow matching, steps 28, guidance 7, shift 3" in lines


def test_info_of_a_pipeline_that_cannot_be_loaded(folders, tmp_path, capsys):
    source = folders("sd1.5")
    for path in source.iterdir():
        if path.name != "model_index.json":
            (tmp_path / path.name).symlink_to(path)
    told = json.loads((source / "model_index.json").read_text()) | {"_class_name": "OtherPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(told))
    out = says(capsys, ["info", tmp_path])
    assert "UNet2DConditionModel" in out and "cannot be loaded" in out and "a OtherPipeline; known" in out
    assert "a OtherPipeline; known pipelines" in says(capsys, ["export", tmp_path, "-o", tmp_path / "o"], 2)


@pytest.mark.slow
def test_bench_measures_what_a_picture_takes(folders, tmp_path, capsys):
    out = tmp_path / "rows.json"
    argv = [
        "bench",
        "--model",
        folders("sd1.5"),
        "--runs",
        "2",
        "--no-memory",
        "--out",
        out,
        "--device",
        "cpu",
    ]
    says(capsys, argv)
    rows = {row["part"]: row for row in json.loads(out.read_text())}
    assert set(rows) == {"text encoder", "denoising step", "decoder"}
    pipe = foreign.opened(folders("sd1.5"))
    assert pipe.example(1)[0].shape == (1, 4, 16, 16) and pipe.example(1)[2].tokens.shape == (1, 77, 16)
    # the decoder alone: without the encoder's weights
    whole = sum(p.numel() for p in pipe.vae.parameters())
    encoder = sum(
        p.numel() for part in (pipe.vae.model.encoder, pipe.vae.model.quant_conv) for p in part.parameters()
    )
    alone = foreign.decoding(pipe.vae)
    assert sum(p.numel() for p in alone.parameters()) == whole - encoder
    z = torch.randn(1, 4, 8, 8)
    assert torch.equal(alone(z), pipe.vae.decode(z)) and pipe.vae.model.encoder is not None


def test_the_same_velocity_in_operators_that_exporters_know(folders):
    denoiser = foreign.opened(folders("sdxl")).transformer
    x, _, cond = denoiser.example(6)
    # outside the table at both ends, at its ends, on a level and between two
    levels = denoiser.path.levels.float()
    t = torch.tensor([0.001, levels[0], 0.3, levels[500], levels[-1], 1.0])
    ours, theirs = foreign.exportable(denoiser)(x, t, cond), denoiser(x, t, cond)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    assert denoiser.path.velocity(lambda y, k: y, x, t).isfinite().all()


@pytest.mark.parametrize("family", ["sd3", "pixart-alpha", "sana"])
@pytest.mark.filterwarnings("ignore:prompt cut")
def test_a_bundle_reads_prompts_as_the_encoders_do(folders, family, tmp_path):
    tokenizer = foreign.opened(folders(family)).text_encoder.tokenizer
    tokenizer.save(tmp_path)
    words = Words(tmp_path, json.loads(json.dumps(tokenizer.described())))
    for prompt in ["Two GREEN stars ", "", "a \u00e9\u4e2d\U0001f600", "red " * 400]:
        ids, mask = tokenizer([prompt], tokenizer.length)
        found = words(prompt)
        assert np.array_equal(found[0], ids.numpy()) and np.array_equal(found[1] > 0, mask.numpy())


def test_what_is_refused(folders, tmp_path, capsys):
    folder, out = folders("sd1.5"), tmp_path / "out"
    argv = ["export", folder, "-o", out]
    assert "keeps its own" in says(capsys, [*argv, "--decoder", folder], 2)
    assert "multiple of 4 pixels, got 30 x 30" in says(capsys, [*argv, "--size", "30"], 2)
    line = says(capsys, [*argv, "--target", "web"], 2)
    assert "its page cannot read prompts as a StableDiffusionPipeline does; use target onnx" in line
    assert not out.exists()
    table = says(capsys, ["export", folder, "--dry-run"])
    assert "x (2, 4, 16, 16), t (2,), tokens (2, 77, 16), mask (2, 77)" in table


@SLOW
def test_a_bundle_draws_what_the_pipeline_draws(folders, tmp_path, capsys, monkeypatch):
    # a fresh process for every part
    monkeypatch.setattr(onnx, "LIBRARY", "")
    out, folder = tmp_path / "bundle", folders("sd1.5")
    printed = says(capsys, ["export", folder, "-o", out])
    assert "pictures agree to" in printed
    argv = ["generate", "two green stars", "--bundle", out, "--steps", "3", "--seed", "5"]
    says(capsys, [*argv, "-o", tmp_path / "a.png"])
    pipe = foreign.opened(folder)
    wanted = pipe("two green stars", steps=3, seed=5)[0]
    found = Image.open(tmp_path / "a.png")
    off = np.asarray(found, np.int16) - np.asarray(wanted, np.int16)
    assert np.abs(off).max() <= 1 and np.asarray(wanted).std() > 5


@pytest.fixture(scope="module")
def made(folders):
    """Family -> programs and what each is given on the way."""
    known = {}

    def get(family):
        if family not in known:
            pipe = foreign.opened(folders(family))
            every = programs(pipe)
            manifest = bundle.manifest_of(pipe, every, bundle.Choice(), family)
            known[family] = every, recorded(every, bundle.shortened(pipe, manifest), pipe, ["a star"])[1]
        return known[family]

    return get


@SLOW
@pytest.mark.parametrize(
    "family, part, precision",
    [
        ("sd1.5", "denoiser", "int8"),
        ("sd1.5", "denoiser", "w8"),
        ("sd1.5", "decoder", "fp16"),
        ("sd3", "denoiser", "fp32"),
        ("sd3", "denoiser", "w8"),
        ("sd3", "text_encoder", "w8"),
        ("sana", "text_encoder", "fp32"),
    ],
)
def test_programs_in_every_precision(made, family, part, precision, tmp_path):
    every, probes = made(family)
    program, path = every[part], tmp_path / "a.onnx"
    plan = uniform(program.module, 8) if precision == "w8" else None
    onnx.write(program, path, precision, plan.bits if plan else None, probes[part])
    rel = relative(program, onnx.opened(path), probes[part])
    assert 0 < rel <= LIMITS[precision][0]
    if precision == "w8":
        from onnx import TensorProto, load

        # a byte for each weight, whatever else the graph holds (masks, tables of positions)
        bytes_ = [
            p for p in load(path).graph.initializer if p.data_type in (TensorProto.INT8, TensorProto.UINT8)
        ]
        # T5's table of tokens has two names
        tables = {id(m.weight): m.weight.numel() for m in onnx.layers(program.module).values()}
        assert sum(int(np.prod(p.dims)) for p in bytes_) >= sum(tables.values())
