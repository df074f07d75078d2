"""Every recipe runs for a few steps."""

import json

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.autoencoders import kl
from pocketdiffusion.bench.picture import picture
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.cli.train import load, recipes
from pocketdiffusion.compress.bits import Plan
from pocketdiffusion.compress.round import rounded
from pocketdiffusion.device import bf16
from pocketdiffusion.export.program import programs
from pocketdiffusion.models import unet
from pocketdiffusion.models.unet import UNet
from pocketdiffusion.pipeline import Pipeline
from pocketdiffusion.recipes import snapgen_speed
from pocketdiffusion.recipes.snapgen_claims import ARMS, equal
from pocketdiffusion.recipes.snapgen_scenes_kd import student_of
from pocketdiffusion.recipes.snapgen_speed import achieved

pytestmark = pytest.mark.slow


def train(*argv):
    assert guarded(["train", *map(str, argv)]) == 0


def test_every_recipe_is_listed_with_args_and_main():
    for name in recipes():
        module = load(name)
        assert callable(module.main)
        assert f"pocket train {name}" in module.__doc__


def test_smoke(tmp_path):
    train("smoke", "--out", tmp_path / "run", "--steps", "6", "--steps-autoencoder", "6", "--batch", "8")
    assert Pipeline.from_pretrained(tmp_path / "run" / "pipeline")("a red circle")[0].size == (32, 32)
    assert (tmp_path / "run" / "args.json").exists()


def test_scenes_autoencoder(tmp_path):
    flags = ["--steps", "3", "--batch", "2", "--preset", "smoke", "--size", "32", "--bf16", "False"]
    train("scenes_autoencoder", "--out", tmp_path, *flags)
    z = store.load(tmp_path / "vae").encode(kl.AutoencoderKL(kl.PRESETS["smoke"]).example()[0])
    assert z.shape == (2, 4, 8, 8)


def test_scenes_decoder_leaves_the_encoder_alone(tmp_path):
    before = kl.AutoencoderKL(kl.PRESETS["smoke"])
    store.save(before, tmp_path / "vae")
    flags = ["--steps", "3", "--batch", "2", "--size", "32", "--bf16", "False"]
    train("scenes_decoder", "--vae", tmp_path / "vae", "--out", tmp_path / "run", *flags)
    after = store.load(tmp_path / "run" / "vae")
    x = before.example()[0]
    assert torch.equal(before.encode(x), after.encode(x))
    assert not torch.equal(before.decode(before.encode(x)), after.decode(after.encode(x)))


def test_live(tiny_folder, tmp_path):
    train("live", "--model", tiny_folder, "--out", tmp_path, "--steps", "3", "--batch", "4")
    assert (tmp_path / "live.png").exists()


def test_scenes_throughput(tmp_path):
    flags = ["--preset", "smoke", "--repeats", "1", "--batch", "2", "--no-compile"]
    train("scenes_throughput", "--out", tmp_path, *flags)
    rows = json.loads((tmp_path / "throughput.json").read_text())
    half = ["eager bf16"] if bf16(torch.device("cpu")) else []
    assert [r["what"] for r in rows] == ["drawing", "eager fp32", *half]


def test_scenes_teacher(tmp_path):
    store.save(kl.AutoencoderKL(kl.PRESETS["smoke"]), tmp_path / "vae")
    flags = [
        "--steps",
        "3",
        "--batch",
        "2",
        "--preset",
        "smoke",
        "--no-compile",
        "--bf16",
        "False",
        "--look",
        "2",
    ]
    train("scenes_teacher", "--out", tmp_path / "run", "--vae", tmp_path / "vae", *flags)
    assert Pipeline.from_pretrained(tmp_path / "run" / "pipeline")("two green stars", steps=2)[0].size == (
        64,
        64,
    )


def test_scenes_teacher_goes_on_from_a_pipeline(tiny_folder, tmp_path):
    flags = ["--steps", "1", "--batch", "2", "--no-compile", "--bf16", "False", "--look", "0", "--lr", "0"]
    flags += ["--world", "counts"]
    train("scenes_teacher", "--init", tiny_folder, "--vae", tiny_folder / "vae", "--out", tmp_path, *flags)
    before, after = Pipeline.from_pretrained(tiny_folder), Pipeline.from_pretrained(tmp_path / "pipeline")
    for name in ("transformer", "text_encoder"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert all(torch.allclose(new[k], v, rtol=1e-3, atol=1e-4) for k, v in old.items())
    assert before.text_encoder.tokenizer.inner.to_str() == after.text_encoder.tokenizer.inner.to_str()


def test_scenes_bits(tiny_folder, tmp_path, capsys):
    """Tuned weights lie on the plan's grid, so the export changes none of them."""
    pytest.importorskip("onnxruntime")
    flags = ["--pipeline", tiny_folder, "--steps", "3", "--batch", "2", "--size-mb", "0.2"]
    train("scenes_bits", *flags, "--out", tmp_path)
    told = capsys.readouterr().out
    assert "bits a weight" in told and "when tuned" in told
    before, after = Pipeline.from_pretrained(tiny_folder), Pipeline.from_pretrained(tmp_path / "pipeline")
    made = programs(after)
    for name, program in made.items():
        plan = Plan.load(tmp_path / "plans" / f"{name}.json")
        assert set(plan.bits.values()) - {16}
        on_grid = rounded(program.module, plan.bits).state_dict()
        for key, value in program.module.state_dict().items():
            torch.testing.assert_close(value, on_grid[key], rtol=1e-6, atol=1e-9)
    old, new = before.transformer.blocks[0].mlp.up, after.transformer.blocks[0].mlp.up
    assert not torch.equal(old.weight, new.weight) and not torch.equal(old.bias, new.bias)


def test_scenes_features(tmp_path):
    train("scenes_features", "--out", tmp_path, "--steps", "3", "--batch", "4")
    assert store.load(tmp_path / "features") is not None


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Args:\n    number: int = 1\n\n"
        "def main(args):\n    open(__file__ + '.out', 'w').write(str(args.number))\n"
    )
    train(path, "--number", "42")
    assert (tmp_path / "mine.py.out").read_text() == "42"


def test_scenes_runtimes(tiny_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    flags = ["--targets", "onnx:int8", "--threads", "1", "--runs", "2", "--pictures", "2", "--no-compile"]
    train("scenes_runtimes", "--model", tiny_folder, "--out", tmp_path, *flags)
    rows = json.loads((tmp_path / "runtimes.json").read_text())
    assert [r["runtime"] for r in rows] == ["eager fp32", "onnx-int8"]
    assert rows[0]["speed (1 thr)"] == 1 and all(r["picture s (1 thr)"] > 0 for r in rows)
    assert "onnx-int8" in capsys.readouterr().out


def test_h3ae_scenes(tmp_path):
    flags = ["--steps", "5", "--batch", "2", "--preset", "smoke", "--size", "32", "--frames", "5"]
    flags += ["--held-out", "2"]
    train("h3ae_scenes", "--out", tmp_path, *flags)
    vae = store.load(tmp_path / "vae")
    assert vae.encode(vae.example()[0]).shape == (2, 8, 3, 2, 2)


def test_tiny_decoder_leaves_the_encoder_alone(tmp_path):
    before = kl.AutoencoderKL(kl.PRESETS["smoke"])
    store.save(before, tmp_path / "vae")
    flags = ["--steps", "3", "--batch", "2", "--preset", "smoke", "--size", "32", "--perceptual", "0.1"]
    train("tiny_decoder", "--vae", tmp_path / "vae", "--out", tmp_path / "run", *flags)
    decoder = store.load(tmp_path / "run" / "decoder")
    x = before.example()[0]
    assert decoder.decode(before.encode(x)).shape == x.shape


def test_autoencoder_claims_are_kept_and_not_repeated(tmp_path, capsys):
    flags = ["--steps", "2", "--batch", "1", "--frames", "5", "--held-out", "2", "--seeds", "0"]
    flags += ["--out", tmp_path, "--arms", "l1", "gan", "consistency"]
    train("autoencoder_claims", *flags)
    assert "gan - l1" in capsys.readouterr().out
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*-0.json")}
    assert set(kept) == {"l1-0.json", "gan-0.json", "consistency-0.json"}
    train("autoencoder_claims", *flags)
    assert kept == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*-0.json")}


def test_scale_equivariance(tmp_path):
    store.save(kl.AutoencoderKL(kl.PRESETS["smoke"]), tmp_path / "vae")
    flags = ["--steps", "2", "--batch", "4", "--dit-steps", "2", "--pictures", "32", "--seeds", "0"]
    flags += ["--vae", tmp_path / "vae", "--arms", "control", "se", "eq", "--held-out", "8"]
    train("scale_equivariance", "--out", tmp_path / "run", *flags)
    assert (tmp_path / "run" / "spectra.svg").read_text().startswith("<svg")
    assert (tmp_path / "run" / "se-0.json").exists()


def test_autoencoder_speed_counts(tmp_path):
    train("autoencoder_speed", "--out", tmp_path, "--pairs", "8x32x32", "1x8x8", "--count-only")
    rows = {r["autoencoder"]: r for r in json.loads((tmp_path / "speed.json").read_text())}
    ours, peer = rows["H3AE 8x32x32_c128"], rows["diffusers ltx-0.9"]
    assert ours["compression"] == peer["compression"] == 192
    assert ours["decode kMACs/px"] < peer["decode kMACs/px"]
    for ours in ("TinyDecoder snapgen_4", "TinyDecoder snapgen_4_fast"):
        assert rows["diffusers sdxl"]["decode M params"] > 30 * rows[ours]["decode M params"]


def test_snapgen_ladder(tiny_folder, tmp_path, capsys):
    flags = ["--train", "--arms", "mqa", "qk_rope", "--seeds", "0", "--steps", "3", "--batch", "2"]
    flags += ["--preset", "smoke", "--pipeline", tiny_folder, "--held-out", "2", "--uses", "1"]
    train("snapgen_ladder", "--out", tmp_path, *flags)
    rows = {r["step"]: r for r in json.loads((tmp_path / "ladder.json").read_text())}
    assert rows["low_attention"]["MACs"] == "-16.9 %" and rows["expanded"]["parameters"] == "-15.1 %"
    assert rows["snapgen_imagenet"]["M parameters"] == 370.3
    assert json.loads((tmp_path / "qk_rope-0.json").read_text())["loss"] > 0
    told = capsys.readouterr().out
    assert "published are 372 M" in told and "qk_rope - mqa" in told


def test_snapgen_speed(tmp_path):
    train("snapgen_speed", "--out", tmp_path, "--models", "smoke", "--side", "8", "--no-memory")
    rows = json.loads((tmp_path / "speed.json").read_text())
    assert [r["model"] for r in rows] == ["smoke eager"]
    assert rows[0]["ms per step"] > 0 and rows[0]["TFLOP/s"] > 0 and "of peak" not in rows[0]


def test_snapgen_speed_beside_the_peak(tmp_path, capsys):
    found = achieved(4_000_000_000, 2.0, 8.0)
    assert found == {"TFLOP/s": 2.0, "of peak": 0.25, "floor ms": 0.5}
    flags = ["--models", "smoke", "--side", "8", "--no-memory", "--peak-tflops", "0.1"]
    train("snapgen_speed", "--out", tmp_path, *flags)
    (row,) = json.loads((tmp_path / "speed.json").read_text())
    assert row["of peak"] == pytest.approx(row["TFLOP/s"] / 0.1)
    assert row["floor ms"] == pytest.approx(row["of peak"] * row["ms per step"])
    assert "floor ms" in capsys.readouterr().out
    assert guarded(["train", "snapgen_speed", "--out", str(tmp_path / "b"), "--peak-tflops", "0"]) == 2
    assert "--peak-tflops 0.0: expected more than 0" in capsys.readouterr().err


def test_snapgen_speed_compiles_who_is_asked_for(tmp_path, monkeypatch):
    """Ours by --compile, the others by --compile-peers."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model: asked.append(type(model).__name__) or model)
    monkeypatch.setattr(snapgen_speed, "PEERS", {"snapgen": 8})
    monkeypatch.setattr(snapgen_speed, "built", lambda name, device: UNet(unet.PRESETS["smoke"]).to(device))
    for i, (flags, made) in enumerate([([], 0), (["--compile"], 1), (["--compile-peers"], 1)]):
        asked.clear()
        names = ["--models", "smoke", "snapgen", "--side", "8", "--no-memory", "--runs", "2"]
        train("snapgen_speed", "--out", tmp_path / str(i), *names, *flags)
        assert len(asked) == made
        ways = {r["model"] for r in json.loads((tmp_path / str(i) / "speed.json").read_text())}
        compiled = {"--compile": {"smoke compiled"}, "--compile-peers": {"snapgen compiled"}}
        assert ways == {"smoke eager", "snapgen eager"} | (compiled[flags[0]] if flags else set())


def test_snapgen_speed_counts_the_peers(tmp_path):
    pytest.importorskip("diffusers")
    flags = ["--models", "snapgen", "pixart-alpha-1024", "--side", "32", "--count-only"]
    train("snapgen_speed", "--out", tmp_path, *flags)
    ours, theirs = json.loads((tmp_path / "speed.json").read_text())
    assert round(ours["M parameters"]) == 379 and round(theirs["M parameters"]) == 611
    assert ours["GMACs"] < theirs["GMACs"]


DISTIL = ["--steps", "3", "--batch", "2", "--bf16", "False"]


@pytest.mark.parametrize("flags", [[], ["--own-text", "--no-features", "--trust", "cautious"]])
def test_snapgen_scenes_kd_then_4step(flags, tiny_folder, tmp_path):
    flags = [*flags, *DISTIL, "--teacher", tiny_folder, "--preset", "smoke", "--look", "2"]
    train("snapgen_scenes_kd", *flags, "--out", tmp_path / "kd")
    student = Pipeline.from_pretrained(tmp_path / "kd" / "pipeline")
    teacher = Pipeline.from_pretrained(tiny_folder)
    assert type(student.transformer).__name__ == "UNet"
    ours, theirs = (p.text_encoder.tokens.weight for p in (student, teacher))
    assert torch.allclose(ours, theirs, atol=1e-3) == ("--own-text" not in flags)

    flags = [*DISTIL, "--teacher", tiny_folder, "--student", tmp_path / "kd" / "pipeline", "--width", "16"]
    flags += ["--objective", "relativistic", "--r1", "0.1"] if "--own-text" in flags else []
    train("snapgen_scenes_4step", *flags, "--look", "3", "--out", tmp_path / "few")
    made = Pipeline.from_pretrained(tmp_path / "few" / "pipeline")
    assert (made.schedule.sampler, made.schedule.guidance, len(made.schedule.times)) == ("renoise", 1.0, 4)
    assert made("two green stars")[0].size == (32, 32)
    # and that one may teach another
    flags += ["--few-step-teacher", tmp_path / "few" / "pipeline", "--look", "0", "--steps", "1"]
    train("snapgen_scenes_4step", *flags, "--out", tmp_path / "again")
    # a student of few steps goes on as one of many
    start = tmp_path / "few" / "pipeline"
    flags = [*DISTIL, "--teacher", tiny_folder, "--start", start, "--look", "0", "--steps", "1", "--lr", "0"]
    train("snapgen_scenes_kd", *flags, "--out", tmp_path / "many")
    many = Pipeline.from_pretrained(tmp_path / "many" / "pipeline")
    assert many.schedule == teacher.schedule
    for key, value in made.transformer.state_dict().items():
        torch.testing.assert_close(many.transformer.state_dict()[key], value, rtol=1e-2, atol=1e-3)


def test_snapgen_scenes_path(tiny_folder, tmp_path):
    flags = [*DISTIL, "--teacher", tiny_folder, "--preset", "smoke", "--look", "2", "--pool", "2"]
    train("snapgen_scenes_path", *flags, "--fine", "2", "--uses", "1", "--out", tmp_path / "path")
    made = Pipeline.from_pretrained(tmp_path / "path" / "pipeline")
    assert (made.schedule.sampler, made.schedule.guidance, len(made.schedule.times)) == ("euler", 1.0, 4)
    assert made("two green stars")[0].size == (32, 32)
    # and that one goes on
    flags += ["--student", tmp_path / "path" / "pipeline", "--steps", "1"]
    train("snapgen_scenes_path", *flags, "--out", tmp_path / "more")


def test_snapgen_scenes_4step_refuses_another_latent_space(tiny_folder, tmp_path, capsys):
    other = Pipeline.from_pretrained(tiny_folder)
    other.vae.encoder[0].weight.data += 0.1
    other.save_pretrained(tmp_path / "other")
    argv = ["snapgen_scenes_4step", "--student", tmp_path / "other", "--teacher", tiny_folder]
    assert guarded(["train", *map(str, argv), "--out", str(tmp_path / "run")]) == 2
    assert "both must share one latent space" in capsys.readouterr().err


def test_snapgen_kd_ladder_is_kept_and_not_repeated(tiny_folder, tmp_path, capsys):
    flags = [*DISTIL, "--out", tmp_path, "--teacher", tiny_folder, "--preset", "smoke", "--seeds", "0"]
    flags += [
        "--arms",
        "task",
        "output_0.3",
        "scaled",
        "--held-out",
        "32",
        "--pictures",
        "32",
        "--prompts",
        "0",
    ]
    train("snapgen_kd_ladder", *flags)
    assert "scaled - task" in capsys.readouterr().out
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*-0.json")}
    assert set(kept) == {"task-0.json", "output_0.3-0.json", "scaled-0.json"}
    train("snapgen_kd_ladder", *flags)
    assert kept == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*-0.json")}
    assert guarded(["train", "snapgen_kd_ladder", "--out", str(tmp_path / "b"), "--arms", "output_x"]) == 2


@pytest.fixture(scope="module")
def untrained(tiny_folder, tmp_path_factory):
    """A student of many steps whose outputs are not zero."""
    teacher, folder = Pipeline.from_pretrained(tiny_folder), tmp_path_factory.mktemp("student")
    torch.manual_seed(1)
    student = student_of("UNet", "smoke", teacher)
    for p in student.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    Pipeline(student, teacher.text_encoder, teacher.vae, teacher.schedule).save_pretrained(folder)
    return folder


def test_snapgen_claims_are_kept_and_not_repeated(tiny_folder, untrained, tmp_path, capsys):
    flags = [*DISTIL, "--out", tmp_path, "--teacher", tiny_folder, "--student", untrained, "--seeds", "0"]
    flags += ["--width", "16", "--pool", "1", "--pictures", "32", "--prompts", "1"]
    train("snapgen_claims", *flags)
    assert "adversarial - undistilled" in capsys.readouterr().out
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*-0.json")}
    assert set(kept) == {f"{arm}-0.json" for arm in ARMS}
    found = {arm: json.loads((tmp_path / f"{arm}-0.json").read_text()) for arm in ARMS}
    # four calls without guidance are what three arms share
    macs = {arm: row["GMACs"] for arm, row in found.items()}
    assert macs["adversarial"] == macs["kd"] == macs["path"] < macs["undistilled"]
    assert macs["adversarial"] <= macs["teacher_equal_macs"] <= macs["teacher"]
    assert all(0 <= row["scene_eval"] <= 1 and row["frechet"] > 0 for row in found.values())
    assert len({found[arm]["frechet"] for arm in ("adversarial", "kd", "path")}) == 3
    train("snapgen_claims", *flags)
    assert kept == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*-0.json")}


def test_the_fewest_steps_of_equal_cost(tiny_pipe):
    costs = [picture(tiny_pipe, n).macs for n in (1, 2, 3)]
    assert costs == sorted(set(costs))
    assert [equal(tiny_pipe, budget) for budget in (1, costs[0] + 1, costs[1], 10**18)] == [1, 2, 2, 3]


def test_what_the_claims_refuse(tmp_path, capsys):
    argv = ["train", "snapgen_claims", "--student", "x", "--arms", "none", "--out", str(tmp_path)]
    assert guarded(argv) == 2
    assert "--arms none: expected some of adversarial, kd, path" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["snapgen_scenes_kd", "snapgen_kd_ladder"])
def test_a_student_that_is_no_denoiser_is_refused(recipe, tiny_folder, tmp_path, capsys):
    argv = ["train", recipe, "--student", "AutoencoderKL", "--preset", "smoke", "--teacher", tiny_folder]
    assert guarded([*map(str, argv), "--out", str(tmp_path)]) == 2
    told = "--student AutoencoderKL: expected the class of a denoiser: DiT, UNet, ElasticDiT"
    assert capsys.readouterr().err == f"pocket: error: {told}\n"
