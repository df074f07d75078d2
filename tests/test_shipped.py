"""The pipeline that ships with the package draws what it is asked for, quickly, and is small."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pocketdiffusion import store
from pocketdiffusion.bench.picture import picture
from pocketdiffusion.cli import export as cli_export
from pocketdiffusion.cli import generate as cli_generate
from pocketdiffusion.data.motion import Clips
from pocketdiffusion.data.scenes import EVAL_WORLD, Scenes
from pocketdiffusion.eval.compose import PROMPTS, evaluate
from pocketdiffusion.eval.detection import accuracy
from pocketdiffusion.eval.reconstruction import ratio
from pocketdiffusion.pipeline import SHIPPED, Pipeline, find, supernet
from pocketdiffusion.recipes.h3ae_scenes import WORLD, measured
from pocketdiffusion.recipes.snapgen_claims import equal
from pocketdiffusion.rewards.scenes import SceneDetector

pytestmark = pytest.mark.slow
LEAST = {"tiny": 0.35, "small": 0.4, "full": 0.7}  # of the colours, by width of ``elastic``


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("scenes")


def test_all_that_ships_is_small():
    files = [p for p in SHIPPED.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 40e6
    assert sum(p.stat().st_size for p in (SHIPPED / "elastic").rglob("*") if p.is_file()) < 12e6
    assert sum(p.stat().st_size for p in (SHIPPED / "scenes_video").rglob("*") if p.is_file()) < 6e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".md"}
    assert (SHIPPED / "scenes" / "README.md").exists()


@pytest.mark.parametrize("name", ["scenes", "snapgen_scenes"])
def test_they_draw_single_things(name):
    """A tenth of SceneEval's easy categories; docs/results.md has the whole."""
    pipe = Pipeline.from_pretrained(name)
    easy = [p for p in PROMPTS if p.category in ("single_object", "colors")][::10]
    result = evaluate(lambda texts, seeds: pipe.sample(texts, first=seeds[0]), SceneDetector(), 2, easy, 24)
    assert result.overall >= 0.7


def test_other_prompts_give_other_pictures(pipe):
    """A judge that always says yes, or a model that ignores its prompt, would not pass."""
    ones = [p for p in PROMPTS if p.category == "colors"][:8]
    wrong = [ones[(i + 1) % 8] for i in range(8)]
    by_text = {p.text: w.text for p, w in zip(ones, wrong)}

    def generate(texts, seeds):
        return pipe.sample([by_text[t] for t in texts], first=seeds[0])

    assert evaluate(generate, SceneDetector(), 2, ones, 16).overall <= 0.2


def test_the_detector_sees_through_the_autoencoder(pipe):
    with torch.no_grad():
        found = accuracy(SceneDetector(), EVAL_WORLD, 300, 5, change=lambda x: pipe.vae(x).clamp(-1, 1))
    assert found["scenes"] >= 0.97


def test_latents_have_unit_variance(pipe):
    with torch.no_grad():
        z = pipe.vae.encode(Scenes(EVAL_WORLD, 128)(11, 0).x)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.1)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)


def test_the_video_autoencoder_gives_unseen_clips_back():
    vae = store.load(find("scenes_video"))
    assert ratio(vae.config) >= 48
    found = measured(vae, 64, 17, torch.device("cpu"), 16)
    assert found["psnr"] >= 29.5
    with torch.no_grad():
        z = vae.encode(Clips(WORLD, 32, 64, 17)(11, 0).x)
    torch.testing.assert_close(z.std((0, 2, 3, 4)), torch.ones(16), rtol=0, atol=0.2)


def test_the_student_beats_its_teacher_at_equal_cost(pipe):
    """Four unguided steps, a tenth of the operations; the teacher with the fewest steps that cost as much."""
    student, teacher = Pipeline.from_pretrained("snapgen_scenes"), picture(pipe)
    own = picture(student)
    assert student.teacher == "scenes" and all(
        verb.Args.model == "snapgen_scenes" for verb in (cli_generate, cli_export)
    )
    assert own.calls == 4 and own.parameters < teacher.parameters and own.macs < teacher.macs / 10
    easy = [p for p in PROMPTS if p.category == "colors"][::3]

    def drawn(network, **settings):
        return lambda texts, seeds: network.sample(texts, first=seeds[0], **settings)

    scores = [
        evaluate(drawn(p, **settings), SceneDetector(), 1, easy, 20).overall
        for p, settings in ((student, {}), (pipe, {"steps": equal(pipe, own.macs)}))
    ]
    assert scores[0] >= 0.9 and scores[0] > scores[1] + 0.3


def test_every_width_draws_and_a_smaller_one_is_cheaper():
    """A third of the colours each; docs/results.md has the whole."""
    easy = [p for p in PROMPTS if p.category == "colors"][::3]
    pipes = {w: Pipeline.from_pretrained("elastic", width=w) for w in supernet("elastic").config.names}
    assert list(pipes) == ["tiny", "small", "full"]
    costs = {width: picture(pipe) for width, pipe in pipes.items()}

    def draws(pipe):
        return lambda texts, seeds: pipe.sample(texts, first=seeds[0])

    for width, pipe in pipes.items():
        drawn = evaluate(draws(pipe), SceneDetector(), 1, easy, 20)
        assert drawn.overall >= LEAST[width], width
        assert costs[width].calls == 4 and pipe.schedule.guidance == 1
    assert costs["tiny"].macs < costs["small"].macs < costs["full"].macs / 2


def test_the_command_is_quick_and_repeatable(tmp_path):
    for name in "ab":
        argv = [sys.executable, "-m", "pocketdiffusion", "generate", "two green stars", "-o", f"{name}.png"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_model_card_names_its_recipe():
    named = {
        "scenes": ("scenes_teacher", "scenes_decoder", "SceneEval"),
        "scenes_video": ("h3ae_scenes", "dB"),
        "snapgen_scenes": ("snapgen_scenes_path", "dmd_scenes", "SceneEval"),
        "elastic": ("elastic_scenes", "elastic_scenes_4step", "kdmd_scenes", "SceneEval"),
    }
    for name, words in named.items():
        card = Path(SHIPPED / name / "README.md").read_text()
        for word in (*words, "Apache-2.0", "Limits"):
            assert word in card


def test_plans_ship_with_the_teacher(pipe):
    assert set(pipe.plans) == {"0.3", "0.5"}
    full = pipe.sample(["a red circle", "two green stars"])
    for name, plan in pipe.plans.items():
        assert plan.laziness == pytest.approx(float(name), abs=0.005)
        lazy = pipe.sample(["a red circle", "two green stars"], lazy=plan)
        assert 0 < (lazy - full).abs().mean() < 0.05
