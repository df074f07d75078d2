"""The page's JavaScript gives the same tokens, noise and steps as Python; Node runs it."""

import json
import shutil
import subprocess
from pathlib import Path
from random import Random

import numpy as np
import pytest

from pocketdiffusion.data.scenes import TRAIN_WORLD, Scenes
from pocketdiffusion.export.web import PAGE
from pocketdiffusion.noise import normal, philox4x32
from pocketdiffusion.pipeline import SHIPPED
from pocketdiffusion.runtime import schedule
from pocketdiffusion.runtime.bundle import Words

pytestmark = pytest.mark.slow
NODE = shutil.which("node")
FOLDER = SHIPPED / "scenes" / "pipeline" / "tokenizer"
TEXT = {"tokenizer": "tokenizer.json", "length": 32, "begin": 1, "end": 2}
ODD = [
    *(
        "",
        "   ",
        "  Two\tGREEN   stars \n",
        "emile's de\u0301ja\u0300 vu",
        "x" * 500,
        "<s> hi </s> <pad>",
        "\x00\x01\x1f",
    ),
    *(
        "\u0130STANBUL \u03a3\u0391\u03a3",
        "\u65e5\u672c\u8a9e",
        "\U0001f3a8\U0001f58c\ufe0f a red circle",
        "\u0301start",
    ),
    *(
        "a\u00a0b\u3000c\u0085d\ufeffe\u200bf",
        "don't we're I'll they've he'd 'sup",
        "mixed\r\nlines\u2028sep",
    ),
    *(
        "100 circles, 3.5 stars!!! (red) [blue] {#$%}",
        "\u216b \u2177 \u0663 \u2460\u00bd",
        "-- _under_ ~~",
        "a  b   c",
    ),
]
SEEDS = [(0, 0, 0, 1024), (1, 5, 2, 7), (2**63 + 12345, 2**32 - 1, 3, 1023), (2**64 - 1, 0, 0, 64)]
LEVELS = [
    {"steps": 9, "shift": shift, "times": None, "wanted": wanted}
    for shift in (1.0, 1.5, 3.0)
    for wanted in (None, 1, 4, 28)
] + [{"steps": 1, "shift": 1.0, "times": [1.0, 0.75, 0.5], "wanted": 3}]


def prompts():
    rng = Random(0)
    letters = "abc XYZ019 .,'!-\u00e9\u00df\u03a3\u65e5\U0001f3a8\t\n\u00a0\u0301"
    made = ["".join(rng.choice(letters) for _ in range(rng.randrange(1, 40))) for _ in range(300)]
    return [*(s.caption for s in Scenes(TRAIN_WORLD, 200).specs(5, 0)), *ODD, *made]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What Node says, and what it was given."""
    assert NODE, "needs node"
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 12)).astype(np.float32).astype(float).tolist()
    given = {
        "tokenizer": json.loads((FOLDER / "tokenizer.json").read_text()),
        "text": TEXT,
        "prompts": prompts(),
        # a seed above 2^53 is no JavaScript number
        "noise": [dict(zip(("seed", "image", "step", "count"), (str(s[0]), *s[1:]))) for s in SEEDS],
        "philox": [[[2**32 - 1] * 4, [2**32 - 1] * 2], [[0] * 4, [0] * 2]],
        "levels": LEVELS,
        "steps": [
            {"x": z[0], "t": 0.75, "s": 0.5, "noise": z[1]},
            {"x": z[0], "t": 0.25, "s": 0.0, "noise": None},
        ],
    }
    path = tmp_path_factory.mktemp("page") / "given.json"
    path.write_text(json.dumps(given))
    script = Path(__file__).with_name("parity.mjs")
    done = subprocess.run([NODE, script, PAGE, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), given


def test_tokens(page, capsys):
    found, given = page
    words = Words(FOLDER, TEXT)
    assert len(given["prompts"]) > 500
    for prompt, row in zip(given["prompts"], found["rows"], strict=True):
        ids, mask = words(prompt)
        assert row["ids"] == ids[0].tolist() and row["mask"] == mask[0].tolist(), prompt
        assert (row["cut"] > 0) == ("prompt cut" in capsys.readouterr().err), prompt


def test_noise(page):
    found, given = page
    for (seed, image, step, count), z in zip(SEEDS, found["noise"], strict=True):
        np.testing.assert_allclose(z, normal(seed, image, step, (count,)), rtol=2e-7, atol=1e-9)
    for (counter, key), words in zip(given["philox"], found["philox"], strict=True):
        assert words == philox4x32(counter, key).tolist()


def test_levels(page):
    for s, found in zip(LEVELS, page[0]["levels"], strict=True):
        np.testing.assert_allclose(found, schedule.levels(s, s["wanted"]), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", sorted(schedule.STEPS))
def test_steps(page, name):
    found, given = page

    def v(x, t):
        return np.sin(x) * np.float32(t) + np.float32(0.3)

    for s, pair in zip(given["steps"], found["steps"][name], strict=True):
        noise = None if s["noise"] is None else np.float32(s["noise"])
        expected = schedule.STEPS[name](v, np.float32(s["x"]), np.float32(s["t"]), np.float32(s["s"]), noise)
        for a, b in zip(pair, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)
