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


def poisson(told):
    """m - n log m, summed, over two pictures."""
    n = pairs(TRUTH, SHAPES, COLOURS)
    return float((told - n * (told + 1e-8).log()).sum() / 2)


def test_the_loss_of_errors():
    """Beside the likelihood: right is nothing, one too many costs 1 - b / 2, a little costs d^2 / 2b."""
    right = pairs(TRUTH, SHAPES, COLOURS)
    out = losses(right)
    assert out["loss"].item() == pytest.approx(poisson(right)) and out["right"] == 1
    more = right.clone()
    more[1, 0, 0] += 1
    out = losses(more)
    assert out["loss"].item() == pytest.approx((1 - 0.05) / 2 + poisson(more)) and out["right"] == 0.5
    near = right.clone()
    near[0, 1, 1] += 0.04
    out = losses(near)
    assert out["loss"].item() == pytest.approx(0.04**2 / 0.2 / 2 + poisson(near)) and out["right"] == 1


def test_nothing_anywhere_is_no_way_out():
    """Where a thing is there, no count of it pulls the harder the smaller it is."""
    for told in (0.1, 0.01, 0.001):
        says = torch.full((2, 2, 2), told, requires_grad=True)
        batch = Batch(torch.zeros(2, 3, 8, 8), [""] * 2, TRUTH)
        method = Regress(nn.Identity(), SHAPES, COLOURS)
        method.network = lambda x, says=says: says
        next(method.losses("network", batch))["loss"].backward()
        assert says.grad[1, 0, 0] < -2.9 / told / 2 and says.grad[0, 0, 0] > 0
    right = pairs(TRUTH, SHAPES, COLOURS)
    assert all(
        losses(right)["loss"] < losses(other)["loss"] for other in (right * 0.9, right * 1.1, right + 0.1)
    )


def test_data_without_truth():
    with pytest.raises(ValueError, match="ground truth"):
        losses(pairs(TRUTH, SHAPES, COLOURS), None)
