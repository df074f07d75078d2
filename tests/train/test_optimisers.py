from itertools import pairwise

import pytest
import torch
from torch import nn

from pocketdiffusion.train.optimisers import adamw, split, warmup_cosine, warmup_decay


@pytest.mark.parametrize("schedule", [warmup_cosine, warmup_decay])
def test_schedules(schedule):
    f = schedule(1000, warmup=100)
    assert f(0) == pytest.approx(0.01, rel=0.05)
    assert f(49) == pytest.approx(0.5, rel=0.01)
    assert f(100) == pytest.approx(1.0, rel=1e-3)
    assert f(1000) == f(2000) == pytest.approx(0.02)
    values = [f(s) for s in range(1001)]
    assert all(0 < v <= 1 for v in values)
    assert all(a >= b for a, b in pairwise(values[100:]))


def test_cosine_is_halfway_in_the_middle():
    assert warmup_cosine(1000, warmup=0)(500) == pytest.approx(0.51)


def test_decay_is_constant_until_the_last_share():
    f = warmup_decay(1000, warmup=0, decay=0.2)
    assert f(799) == 1.0
    assert f(900) == pytest.approx(0.51)


def test_short_runs_and_no_warmup():
    for schedule in (warmup_cosine, warmup_decay):
        assert schedule(3, warmup=0)(0) == pytest.approx(1.0)
        assert schedule(1)(0) > 0


def test_only_matrices_are_decayed():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimiser = adamw(net.parameters(), 0.1, weight_decay=0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in net.parameters()]
    optimiser.step()
    for old, new in zip(before, net.parameters()):
        torch.testing.assert_close(new, old * (0.95 if new.ndim > 1 else 1.0))


def test_every_parameter_is_in_one_group():
    parameters = list(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4)).parameters())
    matrices, rest = split(parameters)
    assert {id(p) for p in matrices + rest} == {id(p) for p in parameters}
    assert len(adamw(rest, 0.1).param_groups) == 1
