"""The demo and the evaluation verb, from end to end on a tiny random pipeline."""

import json
from dataclasses import replace

import pytest

from pocketdiffusion.cli.compared import compare, widths
from pocketdiffusion.cli.demo import COUNTED, Args, Demo, count_right
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.eval.report import Report
from pocketdiffusion.pipeline import Pipeline
from pocketdiffusion.recipes import elastic_scenes

pytestmark = pytest.mark.slow


FLAGS = ["--train-steps", "6", "--prompts", "1", "--threads", "1"]


def test_demo_writes_a_report(tiny_folder, tmp_path, capsys):
    student = Pipeline.from_pretrained(tiny_folder)
    student.schedule = replace(student.schedule, times=(1.0, 0.6), guidance=1.0)
    student.save_pretrained(tmp_path / "student")
    many = Pipeline.from_pretrained(tiny_folder)
    many.transformer = elastic_scenes.supernet_of(elastic_scenes.Args(preset="smoke"), many)
    many.save_pretrained(tmp_path / "elastic")
    argv = ["demo", "--out", tmp_path, "--model", tmp_path / "student", "--teacher", tiny_folder, *FLAGS]
    argv += ["--elastic", tmp_path / "elastic"]
    assert guarded([str(a) for a in argv]) == 0, capsys.readouterr().err
    page, told = (tmp_path / "report.html").read_text(), capsys.readouterr().out
    headings = ("From prompt to picture", "Training, live", "Scored", "Spend less", "Timed", "Onto a device")
    for heading in headings:
        assert heading in page
    assert (tmp_path / "shipped.png").exists() and (tmp_path / "compare.png").exists()
    assert "3 steps, 33% lazy" in page and (tmp_path / "lazy.png").exists()
    assert "Left out: 3 steps leave nothing to go back to" in page
    # three steps with guidance against two without
    assert "Teacher and student" in page and '<div class="beside">' in page
    calls, _ = [line.split() for line in told.splitlines() if line.startswith("calls of the denoiser")]
    assert calls[-3:] == ["6", "2", "3"]
    assert (tmp_path / "widths.png").exists() and "What a picture takes, and what it scores" in page
    compared, by_width = [line.split() for line in told.splitlines() if line.startswith("GMACs per picture")]
    assert float(by_width[-2]) < float(by_width[-1]), "a smaller width has fewer MACs"
    assert len(compared) == len(by_width) + 1, "the ratio of teacher and student"


def test_demo_counts_with_a_teacher_of_enough_steps(tiny_pipe, tmp_path, capsys):
    tiny_pipe.schedule = replace(tiny_pipe.schedule, steps=20)
    demo = Demo(Args(out=tmp_path), None, tiny_pipe, {}, Report("x"))
    count_right(demo)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(COUNTED) and (tmp_path / "count.png").exists()
    # a random network does not draw three red circles
    assert all(line.startswith(f"{prompt}: ") for prompt, line in zip(COUNTED, lines))
    assert any("->" in line or "corrected" in line for line in lines), lines
    page = demo.report.html()
    assert "what goes (red) and comes (green)" in page and page.count("data:image/png") == len(COUNTED)


def test_demo_goes_on_without_a_teacher(tmp_path):
    demo = Demo(Args(out=tmp_path), None, None, {}, Report("x"))
    compare(demo)
    widths(demo)
    assert "no --teacher is named" in demo.report.html() and "no --elastic is named" in demo.report.html()


def test_demo_refuses_a_teacher_that_is_not_there(tiny_folder, tmp_path, capsys):
    argv = ["demo", "--out", tmp_path, "--model", tiny_folder, "--teacher", "nowhere"]
    assert guarded([str(a) for a in argv]) == 2
    assert "no pipeline 'nowhere'" in capsys.readouterr().err
    argv = ["demo", "--out", tmp_path, "--model", tiny_folder, "--teacher", "", "--elastic", tiny_folder]
    assert guarded([str(a) for a in argv]) == 2
    assert "a DiT, expected an elastic model" in capsys.readouterr().err


def test_eval_writes_numbers_and_a_report(tiny_folder, tmp_path, capsys):
    flags = ["--prompts", "1", "--per-prompt", "2", "--frechet", "8", "--batch", "6", "--out", tmp_path]
    assert guarded([str(a) for a in ["eval", "--model", tiny_folder, *flags]]) == 0, capsys.readouterr().err
    numbers = json.loads((tmp_path / "result.json").read_text())
    assert numbers["pictures"] == 12 and set(numbers["scores"]) >= {"single_object", "position"}
    assert 0 <= numbers["overall"] <= 1 and numbers["frechet"] > 0
    assert "report.html" in {p.name for p in tmp_path.iterdir()}


def test_a_random_model_is_not_scored_well(tiny_folder, tmp_path):
    flags = ["--prompts", "2", "--per-prompt", "1", "--frechet", "0"]
    argv = ["eval", "--model", tiny_folder, *flags, "--out", tmp_path]
    assert guarded([str(a) for a in argv]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["overall"] < 0.2
