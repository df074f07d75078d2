"""Curves are means of what was logged."""

import json

import pytest

from pocketdiffusion.eval.curves import curve, drawn


def run(folder, values, key="student/loss"):
    folder.mkdir()
    rows = [{"step": 10 * (i + 1), key: v} for i, v in enumerate(values)]
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_points_are_means_of_equal_parts(tmp_path):
    found = curve(run(tmp_path / "a", [4.0, 2.0, 1.0, 3.0]), "student/loss", 2)
    assert found == [(15.0, 3.0), (35.0, 2.0)]


def test_what_was_logged_twice_counts_once(tmp_path):
    folder = run(tmp_path / "a", [4.0, 2.0])
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 20, "student/loss": 8.0}) + "\n")
    assert curve(folder, "student/loss") == [(10, 4.0), (20, 8.0)]


def test_a_chart_of_means_over_seeds(tmp_path):
    a, b = run(tmp_path / "a", [1.0, 3.0]), run(tmp_path / "b", [3.0, 5.0])
    assert drawn({"x": [a, b]}, "student/loss") == drawn(
        {"x": [run(tmp_path / "c", [2.0, 4.0])]}, "student/loss"
    )


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"log\.jsonl: no such file"):
        curve(tmp_path, "student/loss")
    with pytest.raises(ValueError, match="no 'student/other' in it"):
        curve(run(tmp_path / "a", [1.0]), "student/other")
