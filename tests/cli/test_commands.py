"""The command line as a user meets it: what it writes, what it says, how it exits."""

import json
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pocketdiffusion.cli import main as cli
from pocketdiffusion.cli.main import guarded

SLOW = pytest.mark.slow


def says(capsys, argv, code):
    """Run, check the exit code, return what was printed to stderr as one line."""
    assert guarded([str(a) for a in argv]) == code
    error = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in error if line.startswith("pocket: error:")]
    assert len(lines) == (1 if code else 0), error
    return lines[0] if lines else ""


def test_generate_writes_a_png_with_its_settings(tiny_folder, tmp_path, capsys):
    out = tmp_path / "new" / "a.png"
    says(capsys, ["generate", "two green stars", "--model", tiny_folder, "-o", out, "--seed", "7"], 0)
    picture = Image.open(out)
    assert picture.size == (32, 32)
    assert picture.text["prompt"] == "two green stars"
    assert (picture.text["seed"], picture.text["steps"], picture.text["guidance"]) == ("7", "3", "2.0")
    assert picture.text["model"] == str(tiny_folder)


def test_the_same_seed_gives_the_same_bytes(tiny_folder, tmp_path, capsys):
    for name in "ab":
        says(capsys, ["generate", "a", "--model", tiny_folder, "-o", tmp_path / f"{name}.png"], 0)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_prompts_from_a_file(tiny_folder, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red circle\n\ntwo green stars\n")
    base = ["generate", "--prompts", tmp_path / "p.txt", "--num-images", "2", "--model", tiny_folder]
    says(capsys, [*base, "-o", tmp_path / "x.png"], 0)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"x-000{i}.png" for i in (1, 2, 3, 4)]
    says(capsys, [*base, "-o", tmp_path / "folder"], 0)
    assert {p.name for p in (tmp_path / "folder").iterdir()} == {
        "a-red-circle-0-0000.png",
        "a-red-circle-0-0001.png",
        "two-green-stars-0-0002.png",
        "two-green-stars-0-0003.png",
    }
    says(capsys, [*base, "--grid", "--scale", "2", "-o", tmp_path / "grid.png"], 0)
    assert Image.open(tmp_path / "grid.png").size == (2 * 64 + 3 * 4, 2 * 64 + 3 * 4)
    first = np.asarray(Image.open(tmp_path / "x-0001.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png"))[4:68:2, 4:68:2], first)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["a", "--steps", "0"], "--steps 0: expected 1 or more"),
        (["a", "--num-images", "0"], "--num-images 0"),
        ([], "give a prompt"),
        (["a", "--device", "toaster"], "device toaster: expected auto, cpu, cuda or mps"),
        (["a", "--dtype", "int3"], "dtype int3: expected fp32, bf16, fp16"),
        (["a", "--model", "nonsense"], "no pipeline 'nonsense'"),
        (["a", "--size", "33"], "multiple of 8 pixels, got 33 x 33"),
        (["--prompts", "/no/such/file.txt"], "/no/such/file.txt: cannot be read as prompts"),
        (["a", "--grid", "-o", "folder"], "--grid writes one file"),
        (["a", "-o", "picture.jpg"], "-o picture.jpg: expected NAME.png"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(tiny_folder, capsys, flags, message):
    model = [] if "nonsense" in flags else ["--model", tiny_folder]
    assert message in says(capsys, ["generate", *flags, *model], 2)


def test_unknown_verb_and_recipe(capsys):
    assert "unknown verb 'paint'" in says(capsys, ["paint"], 2)
    assert "no recipe 'nonsense': give a .py file or one of" in says(capsys, ["train", "nonsense"], 2)


@pytest.mark.parametrize(
    "argv, hint",
    [
        (["generate"], "lower --num-images or --size"),
        (["eval"], "lower --batch"),
        (["export"], "lower --size"),
        (["bench"], "lower --batch"),
        (["cache"], "lower --batch or --size"),
        (["reconstruct"], "lower --batch, --size, --max-frames or --tile"),
        (["demo"], "demo has no flag that lowers it"),
        (["train", "snapgen_scenes_kd"], "lower --batch"),
        (["train", "scenes_decoder"], "lower --batch or --size"),
        (["train", "h3ae_scenes"], "lower --batch, --size or --frames"),
        (["train", "snapgen_full"], "lower --batch or --sizes"),
        (["train", "scenes_litert"], "scenes_litert has no flag that lowers it"),
    ],
)
def test_out_of_memory_names_flags_that_are_there(capsys, monkeypatch, argv, hint):
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")):

        def run(_argv, error=error):
            raise error

        monkeypatch.setattr(cli, "run", run)
        assert says(capsys, argv, 1) == f"pocket: error: out of memory; {hint}"


def test_a_folder_in_the_way_is_an_error_of_the_machine(tiny_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["generate", "a", "--model", tiny_folder, "-o", tmp_path / "file" / "a.png"]
    assert "file" in says(capsys, argv, 1)


def test_a_full_disk_leaves_no_half_picture(tiny_folder, tmp_path, capsys, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    argv = ["generate", "a", "--model", tiny_folder, "-o", tmp_path / "a.png"]
    assert "No space left on device" in says(capsys, argv, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_found_before_sampling(tiny_folder, tmp_path, capsys, monkeypatch):
    # root may write anywhere, so the answer of the system is replaced
    monkeypatch.setattr("os.access", lambda path, mode: False)
    argv = ["generate", "a", "--model", tiny_folder, "-o", tmp_path / "new" / "a.png"]
    assert "no permission to write" in says(capsys, argv, 1)


def test_long_prompts_give_one_line(tiny_folder, tmp_path, capsys):
    with pytest.warns(UserWarning, match="prompt cut to 32 tokens"):
        says(capsys, ["generate", "red " * 100, "--model", tiny_folder, "-o", tmp_path / "a.png"], 0)
    assert warnings.formatwarning("cut", UserWarning, "file.py", 3) == "pocket: warning: cut\n"


def test_another_run_is_not_continued_by_mistake(tiny_folder, tmp_path, capsys):
    flags = ["train", "smoke", "--out", tmp_path, "--steps", "1", "--steps-autoencoder", "1"]
    says(capsys, [*flags, "--batch", "0"], 2)  # never began, and is not in the way of the next
    assert not list(tmp_path.iterdir())
    says(capsys, [*flags, "--batch", "4"], 0)
    assert "holds a run with --batch 4, not 8; name another --out" in says(
        capsys, [*flags, "--batch", "8"], 2
    )
    record = json.loads((tmp_path / "args.json").read_text())
    assert len(record) == 1 and record[0]["recipe"] == "smoke" and record[0]["args"]["batch"] == 4


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--batch", "0"], "batch must be at least 1"),
        (["--preset", "huge"], "AutoencoderKL has no preset 'huge'"),
        (["--device", "toaster"], "device toaster"),
        (["--steps", "0"], "steps must be at least 1"),
    ],
)
def test_bad_values_of_a_recipe(tmp_path, capsys, flags, message):
    argv = [
        "train",
        "scenes_autoencoder",
        "--out",
        tmp_path,
        "--preset",
        "smoke",
        "--size",
        "32",
        "--bf16",
        "False",
    ]
    assert message in says(capsys, [*argv, *flags], 2)


def test_info(tiny_folder, capsys):
    says(capsys, ["info", tiny_folder], 0)
    assert guarded(["info", str(tiny_folder)]) == 0
    text = capsys.readouterr().out
    assert "DiT" in text and "AutoencoderKL" in text and "guidance 2.0" in text
    assert guarded(["info", "DiT:pixart_xl"]) == 0
    assert "611 M" in capsys.readouterr().out
    assert "no preset 'huge'" in says(capsys, ["info", "DiT:huge"], 2)


def test_bench(tiny_folder, tmp_path, capsys):
    argv = ["bench", "--model", tiny_folder, "--runs", "2", "--no-memory", "--out", tmp_path / "b.json"]
    says(capsys, argv, 0)
    rows = json.loads((tmp_path / "b.json").read_text())
    assert [r["part"] for r in rows] == ["text encoder", "denoising step", "decoder"]


def test_cache_round_trip(tiny_folder, tiny_pipe, tmp_path, capsys):
    from pocketdiffusion.data.latents import Latents, weights_hash

    (tmp_path / "in").mkdir()
    for i in range(5):
        Image.new("RGB", (40, 48), (50 * i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
        (tmp_path / "in" / f"{i}.txt").write_text(f"picture {i}")
    (tmp_path / "in" / "bad.png").write_text("not a picture")
    (tmp_path / "in" / "bad.txt").write_text("bad")
    argv = [
        "cache",
        tmp_path / "in",
        "-o",
        tmp_path / "c",
        "--model",
        tiny_folder,
        "--size",
        "32",
        "--batch",
        "2",
    ]
    says(capsys, argv, 0)
    batch = Latents(tmp_path / "c", 5, weights_hash(tiny_pipe.vae))(0, 0)
    assert batch.x.shape == (5, 4, 8, 8) and sorted(batch.text) == [f"picture {i}" for i in range(5)]
    assert "already holds a finished cache" in says(capsys, argv, 2)


@SLOW
def test_help_is_fast_and_loads_no_torch():
    code = "import sys; from pocketdiffusion.cli.main import main; sys.argv=['pocket','--help']; main();"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


@SLOW
def test_ctrl_c_saves_says_how_to_go_on_and_the_same_command_does(tmp_path):
    argv = [sys.executable, "-m", "pocketdiffusion", "train", "scenes_autoencoder", "--out", str(tmp_path)]
    argv += ["--preset", "smoke", "--size", "32", "--bf16", "False", "--batch", "2", "--steps", "100000"]
    run = subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").read_text():
        assert run.poll() is None, run.communicate()
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert "saved at step" in error and "the same command resumes" in error
    assert "Traceback" not in error
    step = int(next((tmp_path / "checkpoints").iterdir()).name.split("-")[1])
    argv[-1] = str(step + 1)
    again = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert f"resuming {tmp_path} at step {step}" in again.stdout
