"""Pipelines of diffusers through the command line: info, bench, export, and the bundle that comes out."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
import tiny_pipelines as tiny
import tiny_text

from pocketdiffusion import store
from pocketdiffusion.autoencoders import tiny as tiny_decoder
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.bits import Plan, uniform
from pocketdiffusion.data.latents import Latents, latents_hash, weights_hash
from pocketdiffusion.export import bundle, foreign, onnx
from pocketdiffusion.export.parity import LIMITS, recorded, relative
from pocketdiffusion.export.program import programs
from pocketdiffusion.models import unet
from pocketdiffusion.pipeline import Pipeline, Schedule
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


@pytest.mark.filterwarnings("ignore:prompt cut")
def test_generate_draws_with_them_and_takes_another_decoder(folders, tmp_path, capsys):
    """What is written is what the sampler makes of the parts; a decoder of other latents is refused."""
    folder, pipe = folders("sd3"), foreign.opened(folders("sd3"))
    argv = ["generate", "two stars", "--model", folder, "--steps", "2", "--device", "cpu", "-o"]
    says(capsys, [*argv, tmp_path / "a.png"])
    made = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(made, np.asarray(pipe(["two stars"], steps=2)[0])) and made.shape == (32, 32, 3)

    of_vae = pipe.vae.config
    config = tiny_decoder.Config(of_vae.channels, (8, 16), (1, 1), groups=8, latents=latents_hash(pipe.vae))
    assert of_vae.factor == config.factor
    store.save(tiny_decoder.TinyDecoder(config), tmp_path / "small")
    says(capsys, [*argv, tmp_path / "b.png", "--decoder", tmp_path / "small"])
    other = foreign.opened(folder, tmp_path / "small")
    assert np.array_equal(Image.open(tmp_path / "b.png"), np.asarray(other(["two stars"], steps=2)[0]))
    assert list(programs(other)["decoder"]()) == ["picture"]

    store.save(tiny_decoder.TinyDecoder(replace(config, latents="0" * 32)), tmp_path / "alien")
    line = says(capsys, [*argv, tmp_path / "c.png", "--decoder", tmp_path / "alien"], 2)
    assert "reads latents of autoencoder 00000000" in line and not (tmp_path / "c.png").exists()


def test_what_is_refused(folders, tmp_path, capsys):
    folder, out = folders("sd1.5"), tmp_path / "out"
    argv = ["export", folder, "-o", out]
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
        ("sdxl", "denoiser", "fp32"),
        ("pixart-alpha", "denoiser", "fp32"),
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


@SLOW
def test_plans_under_a_budget(folders, tmp_path, capsys, monkeypatch):
    """Bits are chosen for every layer, written, and read again; T5's table counts under one name."""
    monkeypatch.setattr(onnx, "LIBRARY", "")
    folder, plans = folders("pixart-alpha"), tmp_path / "plans"
    every = programs(foreign.opened(folder))
    sixteen, four = (sum(uniform(p.module, b).bytes for p in every.values()) for b in (16, 4))
    budget = (sixteen + four) / 2
    argv = ["export", folder, "--precision", "w4", "--plan", plans, "--components", "text_encoder"]
    says(capsys, [*argv, "--size-mb", budget / 1e6, "-o", tmp_path / "a"])
    chosen = {name: Plan.load(plans / f"{name}.json") for name in every}
    assert four < sum(plan.bytes for plan in chosen.values()) <= budget
    assert len({b for plan in chosen.values() for b in plan.bits.values()}) > 1
    named = [name for name in chosen["text_encoder"].bits if name.endswith(("shared", "embed_tokens"))]
    assert len(named) == 1
    says(capsys, [*argv, "-o", tmp_path / "b"])
    files = [tmp_path / name / "text_encoder.onnx" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def pictures(folder):
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 48), (50 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("two green stars"[: 9 + i])
    return folder


@SLOW
@pytest.mark.parametrize("family", ["sd3", "pixart-alpha"])
def test_a_cache_of_foreign_encoders(folders, family, tmp_path, capsys):
    folder = folders(family)
    argv = ["cache", pictures(tmp_path / "in"), "-o", tmp_path / "c", "--model", folder, "--size", "32"]
    says(capsys, [*argv, "--text", "--batch", "2", "--dtype", "fp32", "--device", "cpu"])
    pipe = foreign.opened(folder)
    data = Latents(tmp_path / "c", 3, weights_hash(pipe.vae), weights_hash(pipe.text_encoder))
    for i in range(3):
        stored, wanted = data.sample(i).text, pipe.text_encoder.embed(["two green stars"[: 9 + i]])
        torch.testing.assert_close(stored.tokens, wanted.tokens, atol=1e-5, rtol=1e-5)
        assert torch.equal(stored.mask, wanted.mask)
    assert data.sample(0).x.shape == (1, 4, 16, 16)


# A denoiser of ours beside foreign parts


@pytest.fixture(scope="module")
def student(folders, tmp_path_factory):
    """What snapgen_full ends with."""
    home, sd3 = tmp_path_factory.mktemp("student"), folders("sd3")
    tiny_text.part("gemma", home / "gemma", home / "gemma")
    parts = {
        name: sd3 / name for name in ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    }
    parts |= {"text_encoder_3": home / "gemma", "tokenizer_3": home / "gemma"}
    torch.manual_seed(0)
    config = replace(unet.PRESETS["smoke"], channels=4, text=40, pooled=40)
    network = unet.UNet(config)
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    schedule = Schedule("renoise", 4, times=(1.0, 0.75, 0.5, 0.25), size=32)
    for _ in range(2):  # in place of what was there
        foreign.save(home / "pipe", network, schedule, parts)
    return home / "pipe", network, schedule


def test_a_student_beside_foreign_parts_is_a_pipeline(student):
    folder, network, schedule = student
    pipe = foreign.opened(folder)
    assert pipe.schedule == schedule and pipe.unit == 2 * network.config.patch
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])
    a, b = (foreign.opened(folder)("two green stars", seed=3)[0] for _ in range(2))
    assert np.array_equal(np.asarray(a), np.asarray(b)) and a.size == (32, 32)
    assert pipe.example(2)[2].pooled.shape == (2, 40)


def test_info_of_a_student(student, capsys):
    lines = says(capsys, ["info", student[0]]).splitlines()
    assert lines[0] == f"{student[0]} SnapGenPipeline"
    rows = {line.split()[0]: line.split()[1] for line in lines[3:8]}
    assert rows["transformer"] == "UNet" and rows["text_encoder_3"] == "Gemma2Model"
    assert rows["vae"] == "AutoencoderKL" and set(rows) & {"tokenizer", "tokenizer_3"} == set()
    assert "latents: 4 x 16 x 16 for 32 x 32 pixels, 2 to a side" in lines
    assert "text: clip_l 77 tokens, clip_g 77 tokens, gemma 128 tokens" in lines
    assert "schedule: flow matching, steps 4, guidance 1, shift 1" in lines


@SLOW
def test_bench_and_export_of_a_student(student, tmp_path, capsys, monkeypatch):
    # a fresh process for every part
    monkeypatch.setattr(onnx, "LIBRARY", "")
    argv = ["bench", "--model", student[0], "--runs", "2", "--no-memory", "--device", "cpu"]
    assert "denoising step" in says(capsys, argv)
    assert "pictures agree to" in says(capsys, ["export", student[0], "-o", tmp_path / "out"])


def test_a_student_that_reads_other_text_is_refused(student, tmp_path):
    folder, _, schedule = student
    wrong = unet.UNet(replace(unet.PRESETS["smoke"], channels=4, text=40, pooled=48))
    names = [p.name for p in folder.iterdir() if p.is_symlink()]
    foreign.save(tmp_path / "a", wrong, schedule, {name: folder / name for name in names})
    with pytest.raises(ValueError, match=r"a: the transformer reads a pooled text of width 48, not 40"):
        foreign.opened(tmp_path / "a")


def test_where_pipelines_of_ours_are_wanted_others_are_told(folders, student, capsys, tmp_path):
    told = "with parts of diffusers; pocket info, generate, bench, export and cache take it"
    for folder, kind in ((folders("sd3"), "StableDiffusion3Pipeline"), (student[0], "SnapGenPipeline")):
        with pytest.raises(ValueError, match=rf"{folder}: a {kind}, {told}$"):
            Pipeline.from_pretrained(folder)
