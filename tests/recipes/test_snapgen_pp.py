"""SnapGen++'s recipes run for a few steps, and say what they cannot do."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.models.elastic_dit import PRESETS, ElasticDiT
from pocketdiffusion.models.supernet import Supernet
from pocketdiffusion.pipeline import Pipeline
from pocketdiffusion.recipes import assa_bench, dmd_scenes, elastic_scenes_4step, snapgen_pp_claims

pytestmark = pytest.mark.slow
FEW = ["--steps", "3", "--batch", "2", "--bf16", "False", "--look", "2"]


def train(*argv):
    assert guarded(["train", *map(str, argv)]) == 0


def refused(capsys, *argv):
    capsys.readouterr()
    assert guarded([*map(str, argv)]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("pocket: error:") and "\n" not in line
    return line


@pytest.fixture(scope="module")
def elastic(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("elastic")
    train("elastic_scenes", *FEW, "--teacher", tiny_folder, "--preset", "smoke", "--out", out)
    return out / "pipeline"


@pytest.fixture(scope="module")
def few(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("dmd")
    train("dmd_scenes", *FEW, "--teacher", tiny_folder, "--out", out)
    return out / "pipeline"


def test_every_width_comes_from_one_folder(elastic, tmp_path, capsys):
    assert type(store.load(elastic / "transformer")) is Supernet
    pictures = {w: Pipeline.from_pretrained(elastic, width=w).sample(["a star"]) for w in ("half", "full")}
    assert type(Pipeline.from_pretrained(elastic).transformer) is ElasticDiT
    assert torch.equal(Pipeline.from_pretrained(elastic).sample(["a star"]), pictures["full"])
    assert not torch.allclose(pictures["half"], pictures["full"])
    pipe = Pipeline.from_pretrained(elastic)
    assert pipe.unit == 2 * pipe.vae.config.factor * pipe.transformer.config.patch  # merged by two
    argv = ["generate", "a star", "--model", elastic, "--device", "cpu", "-o", tmp_path / "a.png"]
    assert guarded([*map(str, argv), "--width", "half"]) == 0
    line = refused(capsys, *argv, "--size", pipe.unit * 3 // 2)
    assert f"size must be a positive multiple of {pipe.unit} pixels" in line
    assert "no width 'huge'; there are half, full" in refused(capsys, *argv, "--width", "huge")


def test_other_widths_of_ones_own(tiny_folder, tmp_path, capsys):
    flags = [*FEW, "--teacher", tiny_folder, "--preset", "smoke", "--no-teach", "--look", "0"]
    train("elastic_scenes", *flags, "--widths", "a=0.5", "b=1.0", "--out", tmp_path / "run")
    net = store.load(tmp_path / "run" / "pipeline" / "transformer")
    assert net.config.names == ("a", "b")
    line = refused(capsys, "train", "elastic_scenes", *flags, "--widths", "a", "--out", tmp_path / "no")
    assert "expected NAME=SHARE" in line


def priced(elastic, path, *flags, half=5.0, full=50.0):
    """A table of the two widths with times that are known."""
    argv = ["costs", elastic, "--runs", "2", "--device", "cpu", *flags, "-o", path]
    assert guarded([*map(str, argv)]) == 0
    rows = json.loads(path.read_text())
    whole = [r for r in rows["entries"] if r["op"] == "ElasticDiT"]
    assert len(whole) == 2
    for row in whole:
        row["ms"] = half if "weight=16x16" in row["parts"]["patchify"] else full
    path.write_text(json.dumps(rows))
    return path


def test_the_widest_that_is_fast_enough(elastic, tmp_path, capsys):
    table = priced(elastic, tmp_path / "costs.json", "--batch", "2")  # its steps are guided
    argv = ["generate", "a star", "--model", elastic, "--device", "cpu", "-o", tmp_path / "a.png"]
    argv += ["--costs", table]
    for budget, width in ((60, "full"), (20, "half")):
        capsys.readouterr()
        assert guarded([*map(str, argv), "--step-ms", str(budget)]) == 0
        assert f"width {width}: half 5 ms, full 50 ms" in capsys.readouterr().out
    assert "no width takes 1 ms or less; half takes 5 ms" in refused(capsys, *argv, "--step-ms", "1")
    assert "give both or none" in refused(capsys, *argv)
    line = refused(capsys, *argv, "--step-ms", "9", "--width", "half")
    assert "both choose a width" in line
    assert "leave --size out" in refused(capsys, *argv, "--step-ms", "9", "--size", "64")
    # a step without guidance, or in another precision, is another row
    line = refused(capsys, *argv, "--step-ms", "9", "--guidance", "1")
    assert "no row for a ElasticDiT" in line and f"pocket costs {elastic} measures it" in line
    line = refused(capsys, *argv, "--step-ms", "9", "--dtype", "bf16")
    assert f"pocket costs {elastic} --precision bf16 --batch 2 measures it" in line
    half = priced(elastic, tmp_path / "half.json", "--precision", "bf16")
    argv[-1] = half
    assert guarded([*map(str, argv), "--step-ms", "20", "--dtype", "bf16", "--guidance", "1"]) == 0
    assert "width half" in capsys.readouterr().out


def test_a_model_of_one_width(tiny_folder, tmp_path, capsys):
    line = refused(capsys, "generate", "a star", "--model", tiny_folder, "--width", "small")
    assert "a DiT has one width, there is no 'small'" in line
    flags = ["--few-step-teacher", tiny_folder, "--out", tmp_path / "run"]
    line = refused(capsys, "train", "kdmd_scenes", "--model", tiny_folder, *flags)
    assert "a DiT, expected an elastic model" in line


@pytest.mark.parametrize("flags", [["--rank", "2"], ["--gan", "--sampler", "euler", "--look", "0"]])
def test_dmd_scenes(flags, tiny_folder, tmp_path):
    train("dmd_scenes", *FEW, *flags, "--ratio", "2", "--teacher", tiny_folder, "--out", tmp_path)
    made, teacher = Pipeline.from_pretrained(tmp_path / "pipeline"), Pipeline.from_pretrained(tiny_folder)
    assert (made.schedule.guidance, len(made.schedule.times)) == (1.0, 4)
    assert made.schedule.sampler == ("euler" if "euler" in flags else "renoise")
    assert made.transformer.state_dict().keys() == teacher.transformer.state_dict().keys()
    changed = {
        n
        for n, p in made.transformer.state_dict().items()
        if not torch.allclose(p, teacher.transformer.state_dict()[n].half().float())
    }
    assert changed and ("--rank" not in flags or all(".weight" in n and "blocks." in n for n in changed))


def test_a_student_of_few_steps_is_bettered(few, tiny_folder, tmp_path, capsys):
    """Its critic begins as the teacher, since a student of few steps has no scores."""
    args = dmd_scenes.Args(tmp_path, str(tiny_folder), str(few), rank=0)
    teacher, base = (dmd_scenes.opened(str(name), args) for name in (tiny_folder, few))
    with torch.no_grad():
        for weight in base.transformer.parameters():
            weight += 0.1
    made = dmd_scenes.prepared(args, teacher, base)
    for network, begins in (("critic", teacher), ("transformer", base)):
        for name, value in begins.transformer.state_dict().items():
            assert torch.equal(value, made.networks[network].state_dict()[name])
    train("dmd_scenes", *FEW, "--student", few, "--teacher", tiny_folder, "--out", tmp_path)
    assert Pipeline.from_pretrained(tmp_path / "pipeline").schedule == base.schedule
    flags = ["train", "dmd_scenes", "--student", few]
    line = refused(capsys, *flags, "--teacher", tiny_folder, "--sampler", "euler", "--out", tmp_path / "a")
    assert "--sampler euler: the student was taught its steps by renoise" in line
    line = refused(capsys, *flags, "--teacher", few, "--out", tmp_path / "b")
    assert "has few steps and so no scores" in line


def test_kdmd_scenes_teaches_every_width(elastic, few, tiny_folder, tmp_path, capsys):
    flags = [*FEW, "--model", elastic, "--few-step-teacher", few, "--teacher", tiny_folder, "--rank", "2"]
    train("kdmd_scenes", *flags, "--ratio", "1", "--out", tmp_path / "run")
    before, after = (store.load(p / "transformer") for p in (elastic, tmp_path / "run" / "pipeline"))
    assert after.config.rank == 2 and all(v.any() for v in after.lora_b.values())
    for name, value in before.full.state_dict().items():
        assert torch.equal(value, after.full.state_dict()[name])
    made = Pipeline.from_pretrained(tmp_path / "run" / "pipeline", width="half")
    assert len(made.schedule.times) == 4 and made("a star")[0].size == (32, 32)
    flags += ["--model", tmp_path / "run" / "pipeline", "--out", tmp_path / "again"]
    for width in ("half", "full"):
        file = tmp_path / "run" / f"{width}.safetensors"
        own = Pipeline.from_pretrained(elastic, width=str(file))
        plain = Pipeline.from_pretrained(elastic, width=width).transformer.state_dict()
        moved = {n for n, v in own.transformer.state_dict().items() if not torch.equal(v, plain[n])}
        assert moved and all(n.startswith("blocks.") and n.endswith(".weight") for n in moved)
        wanted = Pipeline.from_pretrained(tmp_path / "run" / "pipeline", width=width)
        assert own.schedule == wanted.schedule and len(own.schedule.times) == 4
        torch.testing.assert_close(own.sample(["a star"]), wanted.sample(["a star"]), atol=2e-2, rtol=0)
    argv = ["generate", "a star", "--model", elastic, "--width", tmp_path / "none.safetensors"]
    assert "none.safetensors: not a file of one width" in refused(capsys, *argv)
    again = refused(capsys, "train", "kdmd_scenes", *flags)
    assert "has few steps already" in again


def test_all_widths_learn_four_steps(elastic, few, tiny_folder, tmp_path, capsys):
    flags = [*FEW, "--student", elastic, "--pool", "1", "--uses", "2"]
    train("elastic_scenes_4step", *flags, "--few-step-teacher", few, "--out", tmp_path / "run")
    made = tmp_path / "run" / "pipeline"
    pipes = {w: Pipeline.from_pretrained(made, width=w) for w in ("half", "full")}
    taught = Pipeline.from_pretrained(few)
    assert all(p.schedule == taught.schedule and p("a star")[0].size == (32, 32) for p in pipes.values())
    assert pipes["half"].teacher == taught.teacher
    before, after = (store.load(p / "transformer").state_dict() for p in (elastic, made))
    assert any(not torch.equal(v, after[n]) for n, v in before.items())
    # whose widths K-DMD then betters, each with the teacher's scores
    more = [*FEW, "--model", made, "--few-step-teacher", few, "--teacher", tiny_folder, "--rank", "2"]
    train("kdmd_scenes", *more, "--widths", "half", "--ratio", "1", "--out", tmp_path / "k")
    assert Pipeline.from_pretrained(made, width=str(tmp_path / "k" / "half.safetensors"))("a star")
    again = refused(
        capsys, "train", "elastic_scenes_4step", *flags, "--few-step-teacher", tiny_folder, "--out", tmp_path
    )
    assert f"--few-step-teacher {tiny_folder}: has many steps, expected one of few" in again


@pytest.mark.parametrize("sampler", ["euler", "renoise"])
def test_a_walk_is_what_the_teacher_said(sampler, few):
    """v of a pool is the teacher's at x_k, and the next x_k follows by the sampler's rule."""
    args = elastic_scenes_4step.Args("", "", batch=2, pool=1)
    pipe = Pipeline.from_pretrained(few)
    pipe.schedule = replace(pipe.schedule, sampler=sampler)
    found = elastic_scenes_4step.walks(pipe, args, False)(0, 0)
    assert found.x.shape == (2, 4, 2, 4, 8, 8)
    cond, levels = pipe.text_encoder.embed(found.text), pipe.schedule.levels().tolist()
    for k, (t, s) in enumerate(pairwise(levels[:4])):
        x, said, ahead = found.x[:, k, 0], found.x[:, k, 1], found.x[:, k + 1, 0]
        with torch.no_grad():
            v = pipe.transformer(x, torch.full((2,), t), cond)
        torch.testing.assert_close(said, v, atol=1e-4, rtol=1e-4)
        if sampler == "euler":
            torch.testing.assert_close(ahead, x + (s - t) * v, atol=1e-4, rtol=1e-4)
        else:
            noise = (ahead - (1 - s) * (x - t * v)) / s
            assert abs(noise.std() - 1) < 0.15 and abs(noise.mean()) < 0.15
            assert abs(torch.corrcoef(torch.stack([noise.flatten(), x.flatten()]))[0, 1]) < 0.2, "not fresh"


def test_kdmd_of_an_euler_student(elastic, few, tiny_folder, tmp_path, capsys):
    """A few-step teacher by euler makes a student by euler, which K-DMD then takes as it is."""
    pipe = Pipeline.from_pretrained(few)
    pipe.schedule = replace(pipe.schedule, sampler="euler")
    pipe.save_pretrained(tmp_path / "euler")
    flags = [*FEW, "--few-step-teacher", tmp_path / "euler"]
    train("elastic_scenes_4step", *flags, "--pool", "1", "--student", elastic, "--out", tmp_path / "run")
    flags += ["--model", tmp_path / "run" / "pipeline", "--teacher", tiny_folder, "--rank", "0"]
    train("kdmd_scenes", *flags, "--out", tmp_path / "k")
    assert Pipeline.from_pretrained(tmp_path / "k" / "pipeline", width="half").schedule.sampler == "euler"
    pipe.schedule = replace(pipe.schedule, guidance=2.0)
    pipe.save_pretrained(tmp_path / "guided")
    for name, told in ((tiny_folder, "has many steps"), (tmp_path / "guided", "is guided")):
        flags = [*FEW, "--model", elastic, "--few-step-teacher", name, "--teacher", tiny_folder]
        line = refused(capsys, "train", "kdmd_scenes", *flags, "--out", tmp_path / "no")
        assert f"--few-step-teacher {name}: {told}" in line


def test_kdmd_of_all_widths_at_once(elastic, few, tiny_folder, tmp_path, capsys):
    flags = [*FEW, "--model", elastic, "--few-step-teacher", few, "--teacher", tiny_folder, "--rank", "0"]
    train("kdmd_scenes", *flags, "--steps", "6", "--ratio", "1", "--out", tmp_path / "run")
    before, after = (store.load(p / "transformer") for p in (elastic, tmp_path / "run" / "pipeline"))
    assert after.config == before.config and type(after) is Supernet
    moved = {n for n, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[n])}
    assert any(n.startswith("own.half") for n in moved) and any(n.startswith("full.blocks") for n in moved)
    made = Pipeline.from_pretrained(tmp_path / "run" / "pipeline", width="half")
    assert len(made.schedule.times) == 4 and made("a star")[0].size == (32, 32)
    line = refused(capsys, "train", "kdmd_scenes", *flags, "--widths", "half", "--out", tmp_path / "no")
    assert "--rank 0: expected 1 or more, or 0 for all widths at once" in line


def test_kdmd_of_one_width_leaves_no_pipeline_of_all(elastic, few, tiny_folder, tmp_path):
    flags = [*FEW, "--model", elastic, "--few-step-teacher", few, "--teacher", tiny_folder, "--rank", "2"]
    train("kdmd_scenes", *flags, "--widths", "half", "--out", tmp_path)
    assert (tmp_path / "half.safetensors").exists() and not (tmp_path / "pipeline").exists()


@pytest.mark.parametrize("widths", [("big=2", "full=1"), ("a=inf", "b=1"), ("a=0", "b=1"), ("a=nan", "b=1")])
def test_widths_that_cannot_be(widths, tiny_folder, tmp_path, capsys):
    flags = [*FEW, "--teacher", tiny_folder, "--preset", "smoke", "--out", tmp_path]
    line = refused(capsys, "train", "elastic_scenes", *flags, "--widths", *widths)
    assert "expected shares that rise from above 0 to 1" in line


def test_assa_bench(tmp_path, capsys):
    flags = ["--sides", "8", "--runs", "2", "--no-memory", "--out", tmp_path]
    train("assa_bench", *flags)
    rows = {r["layer"]: r for r in json.loads((tmp_path / "assa.json").read_text())}
    assert set(rows) == {"assa", "sdpa", "core looped", "core gathered"}
    # 2 blocks of 4 rows see each other: all pairs
    assert rows["core looped"]["GMACs"] == pytest.approx(2 * 64 * 64 * 1024 / 1e9)
    assert (tmp_path / "growth.svg").read_text().startswith("<svg")
    flags[-1] = tmp_path / "other"
    assert "expected some of sdpa, flex" in refused(capsys, "train", "assa_bench", *flags, "--peers", "none")
    flags[-1] = tmp_path / "flex"
    assert "--device cuda" in refused(capsys, "train", "assa_bench", *flags, "--peers", "flex")
    assert assa_bench.LAYER.dim == 1024


CLAIM = ["--steps", "2", "--batch", "2", "--bf16", "False", "--seeds", "0", "--preset", "smoke"]
CLAIM += ["--held-out", "32", "--pictures", "0"]


@pytest.mark.parametrize("claim, count", [("attention", 4), ("ladder", 4), ("elastic", 4)])
def test_claims(claim, count, tiny_folder, tmp_path, capsys):
    flags = [*CLAIM, "--teacher", tiny_folder, "--out", tmp_path]
    train("snapgen_pp_claims", claim, *flags)
    kept = sorted((tmp_path / claim).glob("*.json"))
    assert len(kept) == count
    assert all(0 < json.loads(p.read_text())["velocity"] < 10 for p in kept)
    assert "expected some of" in refused(capsys, "train", "snapgen_pp_claims", claim, *flags, "--arms", "no")


def test_an_f_test_of_two_variances():
    def runs(*values):
        return {seed: {"frechet": value} for seed, value in enumerate(values)}

    found = {"dmd@1": runs(5.0, 6.0, 7.0), "kdmd@1": runs(3.0, 3.1, 3.2)}
    (row,) = snapgen_pp_claims.steadier(found, (1.0,), {"frechet": 2})
    assert row["kdmd - dmd"] == "-2.90 +- 2.24" and round(row["variance, dmd / kdmd"]) == 100
    assert abs(row["p (two-sided)"] - 2 / 101) < 1e-6  # F of two and two degrees of freedom


def test_the_ladder_is_that_of_the_presets():
    for name in "abcd":
        assert snapgen_pp_claims.rung(PRESETS["ladder_d"], name) == PRESETS[f"ladder_{name}"]


def test_claims_of_distribution_matching(elastic, few, tiny_folder, tmp_path, capsys):
    flags = [*CLAIM[:-2], "--teacher", tiny_folder, "--student", elastic, "--width", "half"]
    flags += [
        "--out",
        tmp_path,
        "--pictures",
        "32",
        "--prompts",
        "1",
        "--rates",
        "1e-4",
        "1e-3",
        "--ratio",
        "1",
    ]
    line = refused(capsys, "train", "snapgen_pp_claims", "distribution", *flags)
    assert "--few-step-teacher: K-DMD needs one" in line
    train("snapgen_pp_claims", "distribution", *flags, "--few-step-teacher", few)
    told = capsys.readouterr().out
    assert "kdmd - dmd" in told
    (line,) = [row for row in told.splitlines() if row.startswith("kdmd  ")]
    assert line.split()[1] == "2" and ", sd " in line and ", worst " in line
    names = {p.stem for p in (tmp_path / "distribution").glob("*.json")}
    assert names == {"dmd@0.0001-0", "kdmd@0.0001-0", "dmd@0.001-0", "kdmd@0.001-0", "teacher-0", "student-0"}
    assert "expected attention, ladder, elastic, distribution" in refused(
        capsys, "train", "snapgen_pp_claims", "x", *flags
    )
