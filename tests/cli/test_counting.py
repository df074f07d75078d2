"""pocket generate --count-correct: what is printed and written, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion.cli.counting import Looking, asked, layers_of, scene_counter, words_of
from pocketdiffusion.cli.main import guarded
from pocketdiffusion.data.scenes import EVAL_WORLD, Scenes
from pocketdiffusion.pipeline import Schedule
from pocketdiffusion.text.numbers import targets


@pytest.fixture
def slow_pipe(tiny_pipe):
    tiny_pipe.schedule = Schedule(steps=20, guidance=2.0, size=32)
    return tiny_pipe


def test_the_counter_answers_to_words():
    batch = Scenes(EVAL_WORLD, 24, 64)(5, 0)
    counter = scene_counter()
    hits = []
    for picture, truth in zip(batch.x, batch.truth):
        for thing in truth:
            phrases = [thing.shape, f"{thing.colour} {thing.shape}", f"small {thing.colour} {thing.shape}"]
            found = counter(picture[None], phrases)[0]
            wanted = [sum(t.shape == thing.shape for t in truth)]
            wanted += [sum((t.shape, t.colour) == (thing.shape, thing.colour) for t in truth)] * 2
            hits.append([len(found[p]) for p in phrases] == wanted)
    assert np.mean(hits) > 0.9
    with pytest.raises(ValueError, match=r"does not know 'red lighthouse'; it knows .*circle"):
        counter(batch.x[:1], ["red lighthouse"])


def test_words_that_attention_looks_at(tiny_pipe):
    prompt = "a red circle and two green stars"
    wanted = targets(prompt)
    found, spans = words_of(tiny_pipe, prompt, wanted), tiny_pipe.text_encoder.tokenizer.spans(prompt)
    for target, word in zip(wanted, ("circle", "stars")):
        assert "".join(prompt[slice(*spans[i])] for i in found[target.phrase]).strip() == word


def test_what_is_asked_for():
    counter = scene_counter()
    found = asked("five red circles", ["red circles=3"], counter)
    assert [(t.phrase, t.count) for t in found] == [("red circle", 3)] and found[0].where != (0, 0)
    (one,) = asked("red circles", ["red circles=3"], counter)
    assert one.count == 3 and one.where == (4, 11), "where the prompt itself has no number"
    (one,) = asked("red circles and blue circles", ["blue circles=3"], counter)
    assert one.where == (21, 28), "the blue ones, which stand second"
    assert asked("red circles", [], counter) == []
    for prompt, flags, message in (
        ("two lighthouses", [], "does not know 'lighthouse'"),
        ("two stars", ["rings=1"], "does not speak of it"),
        ("two stars", ["rings"], "expected NAME=NUMBER"),
        ("two red circles and three blue circles", ["circles=4"], "speaks of it 2 times; name one with"),
    ):
        with pytest.raises(ValueError, match=message):
            asked(prompt, flags, counter)


def test_a_prompt_without_a_number_is_drawn_as_it_is(slow_pipe):
    made = Looking(slow_pipe)("red stars", seed=3)
    assert torch.equal(made.picture, slow_pipe.sample(["red stars"], seed=3)[0]) and not made.changed
    assert made.line() == "no number in it, so there is nothing to correct"


def test_a_right_count_gives_the_same_picture(slow_pipe):
    """The tiny pipeline draws nothing that is seen: none is right."""
    plain = slow_pipe.sample(["no stars"], seed=3)
    made = Looking(slow_pipe)("no stars", seed=3)
    assert not made.changed and made.found == {"star": 0}
    assert torch.equal(made.picture, plain[0])
    slow_pipe.to(dtype=torch.bfloat16)
    half, made_half = slow_pipe.sample(["no stars"], seed=3), Looking(slow_pipe)("no stars", seed=3)
    slow_pipe.to(dtype=torch.float32)
    assert torch.equal(made_half.picture, half[0]) and not torch.equal(half, plain)


def test_generate(slow_pipe, tmp_path, capsys):
    slow_pipe.save_pretrained(tmp_path / "pipe")
    argv = [
        "generate",
        "two red circles",
        "--model",
        str(tmp_path / "pipe"),
        "--device",
        "cpu",
        "--count-correct",
    ]
    out, shown = tmp_path / "a.png", tmp_path / "shown.png"
    assert guarded([*argv, "-o", str(out), "--show-correction", str(shown)]) == 0
    line = capsys.readouterr().out
    assert "found 0 red circle, wanted 2 red circle; corrected, finished with" in line
    assert Image.open(out).size == (32, 32) and Image.open(shown).size == (96, 32)
    for flags, message in (
        (["--steps", "4"], "4 steps leave nothing to go back to"),
        (["--lazy", "x"], "runs without --bundle, --lazy and --size"),
    ):
        assert guarded([*argv, "-o", str(tmp_path / "b.png"), *flags]) == 2
        assert message in capsys.readouterr().err
    assert guarded([*argv[:-1], "--count", "star=1", "-o", str(tmp_path / "b.png")]) == 2
    assert "belong to --count-correct" in capsys.readouterr().err


def test_layers_are_chosen_by_name(slow_pipe):
    every = layers_of(slow_pipe)
    assert every == layers_of(slow_pipe, ["*"]) == ["blocks.0.cross", "blocks.1.cross"]
    assert layers_of(slow_pipe, ["blocks.1.*"]) == every[1:]
    with pytest.raises(ValueError, match=r"no layer like up\.\*.*there are blocks\.0\.cross"):
        layers_of(slow_pipe, ["up.*"])
