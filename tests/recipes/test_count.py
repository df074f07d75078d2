"""The recipes of count correction run at a small size, and say what they cannot do."""

import json

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.data.scenes import EVAL_WORLD, Scenes
from pocketdiffusion.pipeline import Pipeline, Schedule
from pocketdiffusion.recipes import count_claims, count_judge, count_layers
from pocketdiffusion.rewards.regressor import CountNet
from pocketdiffusion.text.numbers import targets

pytestmark = pytest.mark.slow


def test_prompts_ask_for_what_they_say():
    args = count_claims.Args()
    one, two = list(count_claims.single(args)), list(count_claims.several(args))
    assert (
        len(one) == 90
        and len(two) == 90
        and one != list(count_claims.single(count_claims.Args(prompt_seed=1)))
    )
    assert [targets(p)[0].count for p in one] == [n for n in range(1, 10) for _ in range(10)]
    told = [targets(p) for p in two]
    assert all(len({t.noun for t in own}) == 2 and all(1 <= t.count <= 3 for t in own) for own in told)


def test_a_judge_is_trained_and_claims_are_measured(tiny_folder, tmp_path, capsys, monkeypatch):
    pipe = Pipeline.from_pretrained(tiny_folder)
    pipe.schedule = Schedule(steps=20, guidance=2.0, size=32)
    pipe.save_pretrained(tmp_path / "pipe")
    flags = ["--pipeline", tmp_path / "pipe", "--preset", "smoke", "--steps", "2", "--batch", "4"]
    assert guarded([str(a) for a in ["train", "count_judge", *flags, "--out", tmp_path / "judge"]]) == 0
    line = capsys.readouterr().out
    assert "full world: right 0." in line and "world of SceneEval, drawn again: right 0." in line
    assert isinstance(store.load(tmp_path / "judge" / "judge"), CountNet)
    flags = ["--model", tmp_path / "pipe", "--judge", tmp_path / "judge" / "judge", "--prompts", "1"]
    flags += ["--most", "2", "--seeds", "0", "--out", tmp_path / "claims"]
    assert guarded([str(a) for a in ["train", "count_claims", *flags]]) == 0
    told = capsys.readouterr().out
    assert "corrected-0.9-0.05" in told and "at_45" in told and "by the number asked for" in told
    plain, after = (
        json.loads((tmp_path / "claims" / f"{arm}-0.json").read_text())
        for arm in ("plain", "corrected-0.9-0.05")
    )
    assert {"single", "several", "error", "strays", "frechet", "at_90"} <= set(plain)
    assert "single_judge" in told and (tmp_path / "claims" / "plain-0.safetensors").exists()
    assert after["changed"] == 1 and after["calls"] > 20, (
        "an untrained pipeline draws nothing that was asked for"
    )
    # another judge looks at the kept pictures and draws nothing
    monkeypatch.setattr(count_claims, "plain", None)
    assert guarded([str(a) for a in ["train", "count_claims", *flags]]) == 0
    assert capsys.readouterr().out == told
    again = [str(a) for a in ["train", "count_claims", *flags, "--prompts", "2"]]
    assert guarded(again) == 2 and "--prompts 1, not 2" in capsys.readouterr().err


def test_layers_are_compared_with_things(tiny_folder, tmp_path, capsys):
    flags = [
        "--model",
        tiny_folder,
        "--prompts",
        "1",
        "--most",
        "2",
        "--steps",
        "4",
        "--out",
        tmp_path / "run",
    ]
    assert guarded([str(a) for a in ["train", "count_layers", *flags]]) == 0
    rows = json.loads((tmp_path / "run" / "layers.json").read_text())
    assert [row["layer"] for row in rows] == ["blocks.0.cross", "blocks.1.cross"]
    assert all(row["grid"] == 4 for row in rows) and "auc_30" in capsys.readouterr().out
    assert (
        guarded([str(a) for a in ["train", "count_layers", *flags[:-1], tmp_path, "--layers", "nothing"]])
        == 2
    )
    assert "no layer like nothing" in capsys.readouterr().err


def test_a_map_on_the_things_ranks_above_one_beside_them():
    there = torch.tensor([True, False, True, False])
    assert count_layers.auc(torch.tensor([3.0, 1.0, 2.0, 0.0]), there) == 1
    assert count_layers.auc(torch.tensor([0.0, 1.0, 0.0, 2.0]), there) == 0
    assert count_layers.auc(torch.ones(4), there) == 0.5
    assert count_layers.auc(torch.ones(4), there | True) is None


def test_a_judge_that_is_none(tiny_folder, tmp_path, capsys):
    argv = ["train", "count_claims", "--model", str(tiny_folder), "--steps", "20", "--out", str(tmp_path)]
    assert guarded([*argv, "--judge", str(tiny_folder / "transformer")]) == 2
    assert "a DiT, expected a CountNet" in capsys.readouterr().err
    argv = ["train", "count_claims", "--model", str(tiny_folder), "--out", str(tmp_path / "short")]
    assert guarded(argv) == 2
    assert "3 steps leave nothing to go back to" in capsys.readouterr().err


def test_bent_pictures_keep_their_things():
    def world(seed, step):
        return Scenes(EVAL_WORLD, 8, 64)(seed, step)

    plain, same, moved = (count_judge.bent(world, most)(3, 0) for most in (0.0, 0.0, 3.0))
    torch.testing.assert_close(plain.x, world(3, 0).x, atol=1e-4, rtol=0)
    assert torch.equal(plain.x, same.x) and plain.text == moved.text
    assert 0.005 < (moved.x - plain.x).abs().mean() < 0.2 and moved.x.isfinite().all()


def test_a_half_is_decoded_and_a_quarter_drawn_again(tiny_folder):
    pipe = Pipeline.from_pretrained(tiny_folder)
    for network in pipe.components.values():
        network.requires_grad_(False)

    def world(seed, step):
        return Scenes(EVAL_WORLD, 8, 32)(seed, step)

    plain, same, again = (count_judge.decoded(world, pipe, 0.0, level)(3, 0).x for level in (0.0, 1e-4, 0.9))
    assert torch.equal(plain[1::2], world(3, 0).x[1::2]) and not torch.equal(plain[::2], world(3, 0).x[::2])
    torch.testing.assert_close(same, plain, atol=1e-2, rtol=0)
    changed = (again - plain).abs().amax((1, 2, 3)) > 1e-3
    assert changed.tolist() == [True, False, False, False] * 2
