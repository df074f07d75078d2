"""Lazy recipes run for a few steps."""

import json
from dataclasses import replace

import pytest

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.lazy import Plan, alternating
from pocketdiffusion.pipeline import Pipeline, Schedule
from pocketdiffusion.recipes.lazy_claims import as_many_calls, shortened

pytestmark = pytest.mark.slow
FLAGS = ["--steps", "6", "--batch", "2", "--bf16", "False", "--looked", "16", "--steps-sampled", "6"]


def run(*argv):
    return guarded(["train", "lazy_scenes", *map(str, argv)])


def test_lazy_scenes(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(*FLAGS, "--model", tiny_folder, "--out", out, "--laziness", "0.25", "--rho", "1") == 0
    told = capsys.readouterr().out
    assert "the gates themselves: 0." in told and "--lazy 0.25" in told
    pipe = Pipeline.from_pretrained(out / "pipeline")
    plan = pipe.lazy("0.25")
    assert plan.laziness == pytest.approx(0.25, abs=0.03)
    assert all(not row[i] for row in plan.skips.values() for i in (0, 2, 4))
    assert pipe("a star", lazy=plan)[0].size == (32, 32) and (out / "gates.safetensors").exists()


def test_a_search_under_a_budget(tiny_folder, tmp_path, capsys):
    table, out = tmp_path / "costs.json", tmp_path / "run"
    pipe = Pipeline.from_pretrained(tiny_folder)
    batch = ["--batch", "2"] if pipe.schedule.guidance != 1 else []
    assert (
        guarded(["costs", str(tiny_folder), *batch, "--runs", "2", "--device", "cpu", "-o", str(table)]) == 0
    )
    rows = json.loads(table.read_text())
    for row in rows["entries"]:  # two blocks of two branches that may rest, and as much again
        row["ms"] = {"DiT": 8.0, "Attention": 1.0, "MLP": 1.0}.get(row["op"], row["ms"])
    table.write_text(json.dumps(rows))
    flags = ["--model", tiny_folder, "--steps-sampled", "5", "--costs", table, "--searched", "1"]
    assert run(*flags, "--budget-ms", "33", "24", "--out", out) == 0
    told = capsys.readouterr().out
    assert "40 ms without rests, 33 ms with" in told and "laziness along the depth" in told
    plans = Pipeline.from_pretrained(out / "pipeline").plans
    assert [round(20 * plans[name].laziness) for name in ("33ms", "24ms")] == [7, 16]
    assert (out / "lazy-33ms.svg").exists() and not (out / "gates.safetensors").exists()
    for more, message in (
        (["--budget-ms", "23"], "--budget-ms 23: what never rests takes 24 ms"),
        (["--budget-ms", "40"], "expected more than 0 and less than 40"),
        (["--budget-ms", "30", "--precision", "bf16"], "make it by pocket costs"),
        ([], "a search needs both"),
    ):
        assert run(*flags, *more, "--out", tmp_path / "no") == 2
        assert message in capsys.readouterr().err


def test_lazy_claims_of_few_steps(tiny_pipe, tmp_path, capsys):
    """Plans and caches, no gates; fewer steps are some of its own levels."""
    pytest.importorskip("diffusers")
    schedule = replace(tiny_pipe.schedule, times=(1.0, 0.9, 0.7, 0.4), guidance=1.0, sampler="renoise")
    tiny_pipe.schedule = replace(schedule, steps=4)
    tiny_pipe.save_pretrained(tmp_path / "few")
    flags = ["--model", tmp_path / "few", "--out", tmp_path / "run", "--seeds", "0", "--pictures", "32"]
    flags += ["--prompts", "0", "--searched", "1", "--near", "2", "--thresholds", "1e9"]
    argv = ["train", "lazy_claims", *map(str, flags)]
    assert guarded([*argv, "--arms", "full", "alternating", "searched", "cache", "first", "fewer"]) == 0
    kept = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "run").glob("*-0.json")}
    assert kept["alternating-4-0"]["calls"] == kept["fewer-4-0.5-0"]["calls"] == 0.5
    assert kept["searched-4-0.5-0"]["calls"] == pytest.approx(0.5, abs=0.05)
    assert {"attn_early", "mlp_early"} <= set(kept["searched-4-0.5-0"])
    assert "lazier in the first half of the depth" in capsys.readouterr().out
    assert guarded([*argv, "--arms", "gates"]) == 2
    assert "gates-4-0.5 needs gates" in capsys.readouterr().err
    assert (
        shortened(tiny_pipe.schedule, 2).times == (1.0, 0.7) and shortened(tiny_pipe.schedule, 1).steps == 1
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--steps-sampled", "5"], "expected an even number"),
        (["--laziness", "0.7"], "at most 0.5"),
        (["--branches", "blocks.*.conv"], "no submodule like blocks"),
    ],
)
def test_what_is_refused(flags, message, tiny_folder, tmp_path, capsys):
    assert run("--model", tiny_folder, "--out", tmp_path / "run", *flags) == 2
    assert message in capsys.readouterr().err


def test_lazy_claims(tiny_folder, tmp_path, capsys):
    pytest.importorskip("diffusers")
    flags = ["--model", tiny_folder, "--out", tmp_path / "run", "--sampled", "6", "--laziness", "0.2"]
    flags += ["--steps", "16", "--batch", "2", "--bf16", "False", "--looked", "16", "--seeds", "0"]
    flags += ["--pictures", "32", "--prompts", "0", "--searched", "1", "--near", "2"]
    flags += ["--thresholds", "1e9", "--lr", "0.01", "--rhos", "0.001"]
    arms = ["full", "gates", "own", "alternating", "searched", "cache", "first", "attn", "mlp", "fewer"]
    argv = ["train", "lazy_claims", *map(str, flags)]
    assert guarded([*argv, "--arms", *arms]) == 0
    kept = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "run").glob("*-0.json")}
    assert len(kept) == len(arms)
    assert kept["full-6-0"]["calls"] == 1 and kept["full-6-0"]["distance"] == 0
    assert kept["alternating-6-0"]["calls"] == 0.5
    for arm in ("gates-6-0.2-0", "searched-6-0.2-0"):
        assert kept[arm]["calls"] == pytest.approx(0.8, abs=0.05)
    # everything rests from the third step on, and with the first block always computed
    assert kept["cache-6-1e+09-0"]["calls"] == pytest.approx(2 / 6)
    assert kept["first-6-1e+09-0"]["calls"] == pytest.approx((1 + 5 * 0.5) / 6)
    assert kept["fewer-6-0.2-0"]["calls"] == pytest.approx(5 / 6)
    assert all(found["distance"] > 0 for name, found in kept.items() if not name.startswith("full"))
    table = capsys.readouterr().out
    assert "gates-6-0.2 - fewer-6-0.2" in table
    assert guarded([*argv, "--arms", "none"]) == 2
    assert "expected some of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "guidance, interval, share, steps",
    [(1.0, (0.0, 1.0), 0.5, 10), (4.0, (0.0, 1.0), 0.5, 10), (4.0, (0.0, 0.9), 0.5, 11)],
)
def test_fewer_steps_make_no_fewer_calls(guidance, interval, share, steps):
    schedule = Schedule(steps=20, shift=2.5, guidance=guidance, interval=interval)
    times = schedule.levels()[:-1].tolist()
    fewer, ran = as_many_calls(schedule, alternating(["a", "b"], times))
    assert fewer.steps == steps and ran >= share
    assert as_many_calls(schedule, Plan(tuple(times), {"a": (False,) * 20})) == (schedule, 1.0)


def test_lazy_speed(tiny_folder, tmp_path, capsys):
    flags = ["--model", tiny_folder, "--out", tmp_path, "--sampled", "4", "--batches", "1", "2"]
    argv = ["train", "lazy_speed", *map(str, flags), "--rounds", "2"]
    assert guarded(argv) == 0
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [(row["steps"], row["batch"], row["laziness"]) for row in rows] == [(4, 1, 0.5), (4, 2, 0.5)]
    for row in rows:
        assert 0 < row["share"] < 1 and row["took"] > 0
        assert row["at_most"] == pytest.approx(1 - 0.5 * row["share"] + 0.05, abs=2e-3)
        assert row["holds"] == (row["took"] <= row["at_most"])
    assert guarded([*argv, "--plan", "none"]) == 2
    assert "none" in capsys.readouterr().err
