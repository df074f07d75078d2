import math

import pytest
import torch
from torch import nn

from pocketdiffusion.methods.classify import Classify, counts
from pocketdiffusion.types import Batch, Instance

LABELS = ("circle", "square", "red", "blue")
TRUTH = [
    [],
    [Instance("circle", "red")],
    [Instance("circle", "red"), Instance("circle", "blue"), Instance("square", "blue")],
    [Instance("square", "green")] * 5,
]
COUNTS = [[0, 0, 0, 0], [1, 0, 1, 0], [2, 1, 1, 2], [0, 3, 0, 0]]


class Says(nn.Module):
    """Gives every label the logit ``sure`` for the count it was told, 0 for the other three."""

    def __init__(self, told, sure):
        super().__init__()
        self.told = torch.tensor(told)
        self.sure = nn.Parameter(torch.tensor(sure))

    def forward(self, x):
        return nn.functional.one_hot(self.told, 4) * self.sure


def losses(network, truth=TRUTH):
    return next(Classify(network, LABELS).losses("network", Batch(torch.zeros(4, 3, 8, 8), [""] * 4, truth)))


def test_counts_of_shapes_and_colours():
    assert counts(TRUTH, LABELS, 3).tolist() == COUNTS
    assert counts(TRUTH, LABELS, 9)[3].tolist() == [0, 5, 0, 0]


def test_loss_of_a_network_that_is_right_and_of_one_that_knows_nothing():
    right = losses(Says(COUNTS, 2.0))
    assert right["loss"].item() == pytest.approx(math.log(1 + 3 * math.exp(-2.0)))
    assert right["right"] == 1
    assert losses(Says(COUNTS, 0.0))["loss"].item() == pytest.approx(math.log(4))


def test_one_wrong_count_in_sixteen():
    wrong = [row[:] for row in COUNTS]
    wrong[1][0] = 2
    out = losses(Says(wrong, 2.0))
    assert out["right"].item() == pytest.approx(15 / 16)
    assert out["loss"].item() == pytest.approx(math.log(1 + 3 * math.exp(-2.0)) + 2.0 / 16)


def test_players_are_the_trainable_parameters():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    method = Classify(network, LABELS)
    assert list(method.players) == list(method.turn(0)) == ["network"]
    assert [id(p) for p in method.players["network"]] == [id(p) for p in network[1].parameters()]


def test_data_without_truth_is_refused():
    with pytest.raises(ValueError, match="ground truth"):
        losses(Says(COUNTS, 1.0), None)
