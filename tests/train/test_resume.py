"""A run that was stopped, killed or damaged ends in the same weights as one that was not, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pocketdiffusion.train import checkpoint
from pocketdiffusion.train.checkpoint import found, newest, same
from pocketdiffusion.train.fit import snapshot


def everything(state, optimiser):
    return snapshot(state, {"head": optimiser}, lambda seed, step: None)


OPTIONS = {
    "plain": {"ema": 0.0},
    "ema": {"ema": 0.99},
    "accumulate": {"accumulate": 3},
    "bf16": {"bf16": True},
    "unclipped": {"clip": 0.0},
}


@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_resume_is_bit_for_bit(tiny, tmp_path, options, kind):
    """Weights, averages, optimiser, method and schedule: all of the state after 20 steps."""

    def run(folder, steps):
        net = tiny.Net()
        if kind == "muon":
            optimiser = torch.optim.Muon([p for p in net.head.parameters() if p.ndim == 2], lr=0.02)
        else:
            optimiser = (
                tiny.sgd(net.head.parameters()) if kind == "sgd" else tiny.adamw(net.head.parameters(), 0.01)
            )
        return everything(tiny.train(folder, steps, net, optimiser=optimiser, **options), optimiser)

    whole = run(None, 20)
    half = run(tmp_path, 10)
    assert half["next"] == 10
    torch.manual_seed(999)  # whatever a new process brings with it
    resumed = run(tmp_path, 20)
    assert not same(half, resumed)
    assert same(whole, resumed)
    assert same(newest(tmp_path / "checkpoints")[1], resumed)


def test_a_finished_run_is_not_run_again(tiny, tmp_path):
    first = tiny.weights(tiny.train(tmp_path, 12))
    written = [p.stat().st_mtime_ns for p in found(tmp_path / "checkpoints")]
    again = tiny.train(tmp_path, 12, hooks=[lambda _: pytest.fail("a step was taken")])
    assert same(first, tiny.weights(again))
    assert written == [p.stat().st_mtime_ns for p in found(tmp_path / "checkpoints")]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tiny, tmp_path, how):
    def knock(state):
        if state.step == 6:
            os.kill(os.getpid(), how)

    before = signal.getsignal(how)
    with pytest.raises(KeyboardInterrupt, match=r"saved at step 7 in .*; the same command resumes"):
        tiny.train(tmp_path, hooks=[knock])
    assert signal.getsignal(how) == before
    assert newest(tmp_path / "checkpoints")[1]["next"] == 7
    assert same(tiny.weights(tiny.train(tmp_path)), tiny.weights(tiny.train(None)))


def test_a_signal_without_a_folder_promises_nothing(tiny):
    with pytest.raises(KeyboardInterrupt, match=r"nothing was saved$"):
        tiny.train(None, hooks=[lambda _: os.kill(os.getpid(), signal.SIGINT)])


def test_a_truncated_checkpoint_costs_a_few_steps_and_nothing_else(tiny, tmp_path, capsys):
    tiny.train(tmp_path, 10)
    last = found(tmp_path / "checkpoints")[-1] / "tensors.safetensors"
    last.write_bytes(last.read_bytes()[:100])
    resumed = tiny.train(tmp_path, 20)
    assert "at step 5" in capsys.readouterr().out
    assert same(tiny.weights(resumed), tiny.weights(tiny.train(None, 20)))


def test_another_seed_is_refused(tiny, tmp_path):
    tiny.train(tmp_path, 5, seed=3)
    with pytest.raises(ValueError, match="seed 3, not 4"):
        tiny.train(tmp_path, 10, seed=4)


def test_frozen_weights_come_from_the_checkpoint(tiny, tmp_path):
    """A backbone that was drawn anew at the restart is replaced, and that is no cheating."""
    first = tiny.train(tmp_path, 10)
    second = tiny.train(tmp_path, 20, tiny.Net(seed=5))
    assert torch.equal(first.networks["net"].backbone.weight, second.networks["net"].backbone.weight)


def test_an_average_may_begin_later(tiny, tmp_path):
    start = tiny.weights(tiny.train(tmp_path, 10, ema=0.0))
    state = tiny.train(tmp_path, 10, ema=0.99, net=tiny.Net(seed=5))
    assert torch.equal(state.ema.shadow["net.head.0.weight"], start["head.0.weight"])


def test_a_full_disk_loses_nothing(tiny, tmp_path, monkeypatch):
    whole = checkpoint.save_file

    def full(tensors, path):
        if "00000010" in str(path):
            raise OSError(28, "No space left on device", str(path))
        whole(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        tiny.train(tmp_path)
    assert newest(tmp_path / "checkpoints")[1]["next"] == 5
    monkeypatch.setattr(checkpoint, "save_file", whole)
    assert same(tiny.weights(tiny.train(tmp_path)), tiny.weights(tiny.train(None)))


def test_a_folder_that_cannot_be_written_stops_it_before_the_first_step(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tiny.train(tmp_path / "file" / "run", hooks=[lambda _: pytest.fail("a step was taken")])


def python(*arguments):
    path = Path(__file__).parents[2] / "src"
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    env = {k: v for k, v in env.items() if k not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=env, stdout=subprocess.DEVNULL)


def newest_step(folder):
    return max((int(p.name.split("-")[1]) for p in found(folder / "checkpoints")), default=0)


@pytest.mark.slow
def test_kill_dash_nine(tiny, tmp_path):
    """A real process, killed twice at moments that nobody chose, while it trains or while it writes."""
    steps, seen = 80, 0
    for _ in range(2):
        process = python(tiny.__file__, tmp_path, steps, 0.02)
        while process.poll() is None and newest_step(tmp_path) <= seen:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
        seen = newest(tmp_path / "checkpoints")[1]["next"]
        assert 0 < seen < steps
    assert python(tiny.__file__, tmp_path, steps, 0).wait() == 0
    _, state = newest(tmp_path / "checkpoints")
    assert state["next"] == steps
    whole = tiny.train(None, steps)
    assert same(state["networks"]["net"], tiny.weights(whole))
    assert same(state["ema"], whole.ema.state_dict())


def two_processes(tiny, folder, *words):
    """What tiny.py leaves in ``folder`` when torchrun starts it twice."""
    from safetensors.torch import load_file

    run = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tiny.__file__, *words)
    assert run.wait(timeout=120) == 0
    return [load_file(p) for p in sorted(folder.glob("rank-*.safetensors"))]


PARTS = """
import torch
from torch import nn
from pocketdiffusion.train import spread

spread.start()
first, mine, theirs, nobodys = parameters = [nn.Parameter(torch.zeros(n)) for n in (2, 3, 4, 5)]
if spread.rank():
    mine, theirs = theirs, mine
first.grad, mine.grad = torch.full((2,), 1.0 + spread.rank()), torch.ones_like(mine)
spread.average(parameters)
assert first.grad.eq(1.5).all() and nobodys.grad is None
assert mine.grad.eq(0.5).all() and theirs.grad.eq(0.5).all()
told = spread.agreed({"b": {"x": 1.0 + 2 * spread.rank()}, "a": float(spread.rank()), "n": 3})
assert told == {"b": {"x": 2.0}, "a": 0.5, "n": 3}
"""


@pytest.mark.slow
def test_processes_may_train_different_parameters(tmp_path):
    """As the widths of an elastic model do."""
    (tmp_path / "parts.py").write_text(PARTS)
    words = "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "parts.py")
    assert python("-m", *words).wait(timeout=120) == 0


def alone(tiny, steps, folder=None):
    """One process with batches twice as big; its averaged weights."""
    net = tiny.Net()
    state = tiny.train(folder, steps, net, tiny.Regress(net, noise=0.0), accumulate=2)
    with state.averaged():
        return tiny.weights(state)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tiny, tmp_path):
    ranks = two_processes(tiny, tmp_path, tmp_path, 10, 0)
    assert len(ranks) == 2 and same(*ranks)
    torch.testing.assert_close(ranks[0], alone(tiny, 10), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_split_weights_train_as_whole_ones_and_any_number_resumes(tiny, tmp_path):
    (first,) = two_processes(tiny, tmp_path, tmp_path, 10, 0, "split")
    torch.testing.assert_close(first, alone(tiny, 10), atol=1e-6, rtol=1e-5)
    # one process goes on from what two have saved, and two from what one has
    torch.testing.assert_close(alone(tiny, 13, tmp_path), alone(tiny, 13), atol=1e-6, rtol=1e-5)
    (last,) = two_processes(tiny, tmp_path, tmp_path, 16, 0, "split")
    torch.testing.assert_close(last, alone(tiny, 16), atol=1e-6, rtol=1e-5)
