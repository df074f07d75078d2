"""Watches: what each measures, when a run is stopped, which checkpoint is left, and that good runs go on."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.diffusion.flow import expand
from pocketdiffusion.methods.adversarial import Adversarial, Guide
from pocketdiffusion.recipes.snapgen_scenes_4step import balance
from pocketdiffusion.train import checkpoint
from pocketdiffusion.train.fit import Run, every, fit
from pocketdiffusion.train.health import (
    Collapsed,
    Watch,
    channels,
    diversity,
    drift,
    least,
    pairwise,
    ratio,
)
from pocketdiffusion.types import Batch, Cond


def state(step=0, **values):
    run = SimpleNamespace(home=None)
    return SimpleNamespace(step=step, run=run, log=None, seen={k: torch.tensor(v) for k, v in values.items()})


# -- measures


def test_least_and_ratio():
    now = state(a=0.9, b=0.7, c=-0.2)
    assert least("a", "b")(now) == least("b")(now) == pytest.approx(0.7)
    assert ratio("a", "c")(now) == pytest.approx(4.5)
    assert ratio("a", "none")(state(a=1.0, none=0.0)) > 1e9
    with pytest.raises(ValueError, match="no loss 'd'; this method yields a, b, c"):
        least("d")(now)


def test_diversity_is_the_distance_within_a_prompt():
    """Two prompts far apart do not hide that one of them has a single picture."""
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 0.0]])
    assert pairwise(features, 2) == pytest.approx(2.5)
    pictures = features[:, :, None, None]
    assert diversity(lambda: pictures, lambda x: 2 * x.flatten(1), 2)(state()) == pytest.approx(5.0)
    three = torch.tensor([[0.0], [1.0], [3.0]])
    assert pairwise(three, 3) == pytest.approx((1 + 2 + 3) / 3)


def test_drift_is_the_worst_channel_in_mean_or_spread():
    torch.manual_seed(0)
    data = torch.randn(64, 3, 8, 8) * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    _, std = channels(data)
    torch.testing.assert_close(std, torch.tensor([1.0, 2.0, 0.5]), rtol=0.05, atol=0)
    assert drift(lambda: data, data)(state()) < 1e-5
    moved = data + torch.tensor([0.0, 3.0, 0.0])[:, None, None]
    assert drift(lambda: moved, data)(state()) == pytest.approx(1.5, rel=0.05)
    assert drift(lambda: data / 4, data)(state()) == pytest.approx(math.log(4), rel=0.01)
    assert math.isnan(drift(lambda: data * float("nan"), data)(state()))


# -- when it stops


def looks(values, **limits):
    """The number of looks before the stop; None when there is none."""
    watch = Watch("a", least("a"), **limits)
    for i, value in enumerate(values):
        try:
            watch(state(i, a=value))
        except Collapsed:
            return i
    return None


def test_only_looks_in_a_row_count():
    limits = {"low": 0.1, "high": 0.9, "patience": 3}
    assert looks([0.95, 0.95, 0.5] * 5, **limits) is None
    assert looks([0.5, 0.95, 0.05, 0.99, 0.5], **limits) == 3
    assert looks([0.1, 0.9] * 5, **limits) is None
    assert looks([0.5, *[float("nan")] * 3], **limits) == 3
    assert looks([1e9] * 5, low=0.0) is None


def test_one_line_says_what_was_seen():
    watch = Watch("accuracy", least("a"), 0.1, 0.9, patience=1)
    with pytest.raises(Collapsed) as found:
        watch(state(11, a=0.95))
    assert str(found.value) == (
        "collapsed at step 12: accuracy is 0.95, outside 0.1 to 0.9 at 1 looks in a row; "
        "no checkpoint was saved before"
    )


def sickly(tiny, folder, sick, steps=60, **options):
    """A run of the tiny net whose measure leaves its limits from step ``sick`` on."""
    watch = Watch("health", lambda s: float(s.step >= sick), high=0.5, patience=5)
    return tiny.train(folder, steps, hooks=[every(2, watch)], save_every=4, **options)


def test_the_last_healthy_checkpoint_stays_through_rotation(tiny, tmp_path):
    # looks are after every second step: the last healthy one after step 20
    with pytest.raises(Collapsed, match=r"collapsed at step 30.*step-00000020") as found:
        sickly(tiny, tmp_path, sick=21, keep=1)
    left = checkpoint.found(tmp_path / "checkpoints")
    assert [p.name for p in left] == ["step-00000020", "step-00000028"]
    assert str(left[0]) in str(found.value) and len(str(found.value).splitlines()) == 1
    # the same command resumes from the newest, still knows the healthy one, and stops again
    with pytest.raises(Collapsed, match=r"collapsed at step 38.*step-00000020"):
        sickly(tiny, tmp_path, sick=21, keep=1)
    # from the healthy one the run can go on
    for path in checkpoint.found(tmp_path / "checkpoints")[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert sickly(tiny, tmp_path, sick=1000, steps=40, keep=1).step == 40


def test_held_checkpoints_move_on_while_a_run_is_well(tiny, tmp_path):
    sickly(tiny, tmp_path, sick=1000, steps=41, keep=2)
    left = [p.name for p in checkpoint.found(tmp_path / "checkpoints")]
    # beside the newest two the last one from before a look
    assert left == ["step-00000036", "step-00000040", "step-00000041"]
    assert checkpoint.held(tmp_path / "checkpoints", "health").name in left


def test_values_are_logged(tiny, tmp_path):
    sickly(tiny, tmp_path, sick=1000, steps=8)
    assert '"health/health": 0.0' in (tmp_path / "log.jsonl").read_text()


def test_the_command_line_shows_one_line(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom pocketdiffusion.train.health import Collapsed\n\n"
        "@dataclass(frozen=True)\nclass Args:\n    number: int = 1\n\n"
        "def main(args):\n    raise Collapsed('collapsed at step 3: accuracy is 1')\n"
    )
    assert guarded(["train", str(path)]) == 1
    assert capsys.readouterr().err == "pocket: error: collapsed at step 3: accuracy is 1\n"


# -- a run that is broken on purpose, and the same one as it should be

MEAN, STD, STEPS = 1.0, 0.5, 60


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 32), nn.SiLU(), nn.Linear(32, 4))

    def forward(self, x, t, cond):
        return self.layers(torch.cat([x, t[:, None]], 1))


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 1)

    def forward(self, features, x, pooled):
        return self.layer(features["f"])


def embed(batch):
    return batch.x, Cond(torch.zeros(len(batch.x), 1, 1), torch.ones(len(batch.x), 1, dtype=torch.bool))


def gaussian(seed, step):
    g = torch.Generator().manual_seed(1000 * seed + step)
    return Batch(MEAN + STD * torch.randn(64, 4, generator=g), [""] * 64)


def truth(x, t, cond):
    """v of N(MEAN, STD^2)."""
    t = expand(t, x)
    slope = (t - (1 - t) * STD**2) / ((1 - t) ** 2 * STD**2 + t**2)
    return -MEAN + slope * (x - (1 - t) * MEAN)


def adversarial(folder, lr_heads, weight=1.0, hooks=None, steps=STEPS):
    torch.manual_seed(0)
    net, head, frozen = Net(), Head(), nn.Linear(4, 32).requires_grad_(False)

    def features(x, t, cond):
        return None, {"f": frozen(x).relu()}

    guide = Guide(truth, embed, weight)
    levels = (1.0, 0.75, 0.5, 0.25)
    method = Adversarial(net, embed, list(net.parameters()), features, embed, head, levels, guide=guide)
    accuracy = least("discriminator/accuracy_real", "discriminator/accuracy_fake")
    watches = [
        Watch("accuracy", accuracy, high=0.98, patience=5),
        # the good run stays below 0.2
        Watch("ratio", ratio("generator/adversarial", "generator/scaled"), high=1.0, patience=5),
    ]
    adam = partial(torch.optim.Adam, betas=(0.0, 0.99))
    optimisers = {
        "generator": adam(net.parameters(), 2e-3),
        "discriminator": adam(head.parameters(), lr_heads),
    }
    nets = {"net": net, "head": head, "frozen": frozen}
    run = Run(steps, folder, save_every=10)
    return fit(method, gaussian, optimisers, nets, run, hooks=hooks or [every(4, w) for w in watches])


def test_it_fires_on_a_discriminator_that_learns_a_hundred_times_too_fast(tmp_path):
    with pytest.raises(Collapsed, match=r"collapsed at step .*ratio is .*at 5 looks"):
        adversarial(tmp_path, 1e-2 * 100)


def test_and_not_on_a_good_run_of_the_same_length(tmp_path):
    assert adversarial(tmp_path, 1e-2).step == STEPS


@pytest.mark.slow
def test_so_do_the_limits_of_the_recipe():
    with pytest.raises(Collapsed, match=r"collapsed at step .*(accuracy|ratio) is .*at 20 looks"):
        adversarial(None, 1e-2 * 100, hooks=balance(), steps=400)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_and_they_leave_a_good_run_alone_whatever_its_weight(weight):
    assert adversarial(None, 1e-2, weight, balance(), steps=300).step == 300


def test_the_ratio_of_the_recipe_does_not_know_the_weight():
    """With --weight 0 the weighed term is nothing, and nobody has won by that."""
    accuracies = {"discriminator/accuracy_real": 0.7, "discriminator/accuracy_fake": 0.6}
    terms = {"generator/adversarial": 0.5, "generator/kd": 0.0, "generator/scaled": 1.0}
    for hook in (hooks := balance()):
        for step in range(400):
            hook(state(step, **accuracies, **terms))
    with pytest.raises(Collapsed, match="ratio is 50"):
        for step in range(400):
            hooks[1](state(step, **accuracies, **{**terms, "generator/adversarial": 50.0}))
