"""Lazy recipes run for a few steps."""

import json
from dataclasses import replace

import pytest

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.lazy import Plan, alternating
from pocketdiffusion.pipeline import Pipeline, Schedule
from pocketdiffusion.recipes import lazy_scenes
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


def priced(folder, path, batch, unit):
    """A table of the network: a branch that may rest takes ``unit`` ms, all of it eight times that."""
    flags = ["--batch", batch, "--runs", 2, "--device", "cpu", "-o", path]
    assert guarded(["costs", str(folder), *map(str, flags)]) == 0
    rows = json.loads(path.read_text())
    for row in rows["entries"]:
        row["ms"] = unit * {"DiT": 8.0, "Attention": 1.0, "MLP": 1.0}.get(row["op"], 0.1)
    path.write_text(json.dumps(rows))
    return path


def test_a_search_under_a_budget(tiny_pipe, tmp_path, capsys):
    """Guided steps are priced as two rows, others as one; of two blocks four branches may rest."""
    tiny_pipe.schedule = replace(tiny_pipe.schedule, guidance=2.0, interval=(0.0, 0.9), steps=5)
    tiny_pipe.save_pretrained(tmp_path / "model")
    assert lazy_scenes.rows(tiny_pipe.schedule)[0] == 1
    guided = sum(n == 2 for n in lazy_scenes.rows(tiny_pipe.schedule))
    full = 8.0 * (5 - guided) + 16.0 * guided
    tables = [priced(tmp_path / "model", tmp_path / f"{n}.json", n, n) for n in (1, 2)]
    flags = ["--model", tmp_path / "model", "--steps-sampled", "5", "--searched", "1", "--costs", *tables]
    out, budget = tmp_path / "run", f"{full - 6:g}"
    assert run(*flags, "--budget-ms", budget, "--out", out) == 0
    told = capsys.readouterr().out
    assert f"{full:g} ms without rests" in told and "laziness along the depth" in told
    plan = Pipeline.from_pretrained(out / "pipeline").plans[f"{budget}ms"]
    rows = lazy_scenes.rows(tiny_pipe.schedule)
    saved = sum(rows[i] for row in plan.skips.values() for i in range(5) if row[i])
    assert 6 <= saved <= 7, "as much as was asked for, and not more than one branch beyond"
    assert f"{full - saved:g} ms with" in told
    assert (out / f"lazy-{budget}ms.svg").exists() and not (out / "gates.safetensors").exists()
    for changed, message in (
        (["--budget-ms", "1"], "--budget-ms 1: what never rests takes"),
        (["--budget-ms", full], f"expected more than 0 and less than {full:g}"),
        (["--budget-ms", "30", "--precision", "bf16"], "--precision bf16 measures it"),
        (["--budget-ms", "30", "--costs", tables[0]], "--batch 2 --precision fp32 measures it"),
        ([], "a search needs both"),
    ):
        assert run(*flags, *changed, "--out", tmp_path / "no") == 2
        assert message in capsys.readouterr().err
    # the least that the message names is a budget that can be kept
    assert run(*flags, "--budget-ms", "1", "--out", tmp_path / "no") == 2
    least = capsys.readouterr().err.split()[-2]
    assert run(*flags, "--budget-ms", least, "--out", tmp_path / "least") == 0


def test_where_guidance_begins_nothing_rests(tiny_pipe, tmp_path, capsys):
    """Said before anything is trained."""
    schedule = replace(tiny_pipe.schedule, guidance=2.0, interval=(0.0, 0.9), steps=20, shift=2.5)
    tiny_pipe.schedule = schedule
    tiny_pipe.save_pretrained(tmp_path / "model")
    assert lazy_scenes.reachable(schedule) == 0.45
    assert lazy_scenes.reachable(replace(schedule, guidance=1.0)) == 0.5
    flags = ["--model", tmp_path / "model", "--out", tmp_path / "run", "--steps-sampled", "20"]
    assert run(*flags, "--laziness", "0.5") == 2
    assert "--laziness 0.5: gates let every second step rest" in capsys.readouterr().err
    argv = ["train", "lazy_claims", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "c")]
    argv += ["--sampled", "20", "--laziness", "0.3", "--arms", "gates", "attn"]
    assert guarded(argv) == 2
    assert "attn-20-0.3 can let 0.225 of all calls rest at most" in capsys.readouterr().err


def test_lazy_claims_of_few_steps(tiny_pipe, tmp_path, capsys):
    """Plans and caches, no gates; fewer steps are some of its own levels."""
    pytest.importorskip("diffusers")
    schedule = replace(tiny_pipe.schedule, times=(1.0, 0.9, 0.7, 0.4), guidance=1.0, sampler="renoise")
    tiny_pipe.schedule = replace(schedule, steps=4)
    tiny_pipe.save_pretrained(tmp_path / "few")
    flags = ["--model", tmp_path / "few", "--out", tmp_path / "run", "--seeds", "0", "1", "--pictures", "32"]
    flags += ["--prompts", "0", "--searched", "1", "--near", "2", "--thresholds", "1e9"]
    argv = ["train", "lazy_claims", *map(str, flags)]
    assert guarded([*argv, "--arms", "fewer", "full", "alternating", "searched", "cache", "first"]) == 0
    kept = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "run").glob("*.json")}
    for seed in "01":
        assert kept[f"alternating-4-{seed}"]["calls"] == kept[f"fewer-4-0.5-{seed}"]["calls"] == 0.5
        assert kept[f"full-4-{seed}"]["calls"] == 1 and kept[f"full-4-{seed}"]["distance"] == 0
    assert kept["searched-4-0.5-0"]["calls"] == pytest.approx(0.5, abs=0.05)
    assert {"attn_early", "mlp_early"} <= set(kept["searched-4-0.5-0"])
    assert "lazier in the first half of the depth" in capsys.readouterr().out
    assert guarded([*argv, "--arms", "gates"]) == 2
    assert "gates-4-0.5 needs gates" in capsys.readouterr().err
    assert guarded([*argv, "--arms", "searched", "--laziness", "0.8"]) == 2
    assert "can let 0.75 of all calls rest at most" in capsys.readouterr().err
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
