import pytest
import torch
from torch import nn

from pocketdiffusion.methods.regress import Regress, pairs
from pocketdiffusion.types import Batch, Instance

SHAPES, COLOURS = ("circle", "square"), ("red", "blue")
TRUTH = [[], [Instance("circle", "red")] * 3 + [Instance("square", "blue")]]


class Says(nn.Module):
    def __init__(self, told):
        super().__init__()
        self.told = nn.Parameter(told)

    def forward(self, x):
        return self.told


def losses(told, truth=TRUTH):
    batch = Batch(torch.zeros(2, 3, 8, 8), [""] * 2, truth)
    return next(Regress(Says(told), SHAPES, COLOURS).losses("network", batch))


def test_counts_of_pairs():
    assert pairs(TRUTH, SHAPES, COLOURS).tolist() == [[[0, 0], [0, 0]], [[3, 0], [0, 1]]]


def test_the_loss_of_errors():
    """Right is nothing; one too many costs 1 - b / 2, over two pictures; a little costs d^2 / 2b."""
    right = pairs(TRUTH, SHAPES, COLOURS)
    out = losses(right)
    assert out["loss"] == 0 and out["right"] == 1
    more = right.clone()
    more[1, 0, 0] += 1
    out = losses(more)
    assert out["loss"].item() == pytest.approx((1 - 0.05) / 2) and out["right"] == 0.5
    near = right.clone()
    near[0, 1, 1] += 0.04
    out = losses(near)
    assert out["loss"].item() == pytest.approx(0.04**2 / 0.2 / 2) and out["right"] == 1


def test_data_without_truth():
    with pytest.raises(ValueError, match="ground truth"):
        losses(pairs(TRUTH, SHAPES, COLOURS), None)
