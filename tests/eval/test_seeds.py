"""Intervals against tables of the t distribution; nothing is run twice."""

import pytest

from pocketdiffusion.eval.seeds import against, collect, difference, interval, settled, table, told


def test_interval_is_students():
    middle, half = interval([1.0, 2.0, 3.0])
    # t of two degrees of freedom is 4.303
    assert middle == 2 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert interval([5.0]) == (5.0, None)
    assert told([1.0, 2.0, 3.0], 1) == "2.0 +- 2.5" and told([5.0]) == "5.00"


def test_what_a_seed_does_to_both_drops_out(tmp_path):
    found = collect(tmp_path, ("a", "b"), range(3), lambda arm, seed: {"x": 10.0 * seed + (arm == "b")}, {})
    assert difference(found, "b", "a", "x") == (1.0, 0.0)
    assert table(found, {"x": 1})[0] == {"arm": "a", "seeds": 3, "x": "10.0 +- 24.8"}
    assert against(found, "a", {"x": 1}) == [{"arm": "b - a", "x": "+1.0 +- 0.0"}]


def test_nothing_is_run_twice(tmp_path):
    ran = []

    def run(arm, seed):
        ran.append((arm, seed))
        return {"x": 1.0}

    collect(tmp_path, ("a", "b"), [0], run, {"steps": 3})
    collect(tmp_path, ("a", "b"), [0, 1], run, {"steps": 3})
    assert ran == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert not list(tmp_path.glob("*.json*tmp"))
    with pytest.raises(ValueError, match="was run with another steps"):
        collect(tmp_path, ("a",), [0], run, {"steps": 4})


def test_what_an_arm_has_not_is_a_dash(tmp_path):
    found = collect(tmp_path, ("a", "b"), [0, 1], lambda arm, seed: {"x": 1.0} if arm == "a" else {}, {})
    assert table(found, {"x": 1})[1]["x"] == "-" and against(found, "a", {"x": 1})[0]["x"] == "-"


def test_a_folder_is_of_one_kind_of_settings(tmp_path):
    settled(tmp_path / "new", {"side": 32, "pairs": ("a", "b")})
    settled(tmp_path / "new", {"side": 32, "pairs": ("a", "b")})
    with pytest.raises(ValueError, match="new: was run with another side"):
        settled(tmp_path / "new", {"side": 64, "pairs": ("a", "b")})
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["settings.json"]
