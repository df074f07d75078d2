"""A copy is moved towards its original, and nothing else is."""

import pytest
import torch
from torch import nn

from pocketdiffusion.methods.velocity import VelocityMatching
from pocketdiffusion.types import Batch, Cond


class Net(nn.Module):
    """v = a x + b; told the caption's length by the condition."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))
        self.heard = []

    def forward(self, x, t, cond):
        self.heard.append(cond.tokens[:, 0, 0].tolist())
        return self.a * x + self.b


def embed(batch):
    lengths = torch.tensor([float(len(said)) for said in batch.text])[:, None, None]
    return batch.x, Cond(lengths, torch.ones(len(lengths), 1, dtype=torch.bool))


def batch(n=64):
    return Batch(torch.randn(n, 2), ["four"] * n)


def matching(model, original, **options):
    return VelocityMatching(model, embed, original, embed, [model.b], **options)


def test_no_loss_for_an_equal_copy():
    torch.manual_seed(0)
    assert next(matching(Net(0.5, 0.1), Net(0.5, 0.1)).losses("denoiser", batch()))["loss"] == 0


def test_loss_is_the_distance_of_velocities():
    torch.manual_seed(0)
    method = matching(Net(0.5, 0.4), Net(0.5, 0.1))
    loss = next(method.losses("denoiser", batch()))["loss"]
    assert loss.item() == pytest.approx(0.09, rel=1e-4)
    loss.backward()
    assert method.model.b.grad is not None and method.original.b.grad is None
    assert method.players == {"denoiser": [method.model.b]}


def test_both_read_the_same_captions_and_some_are_emptied():
    torch.manual_seed(0)
    method = matching(Net(1.0, 0.0), Net(1.0, 0.0), drop=0.3)
    next(method.losses("denoiser", batch(1000)))
    (ours,), (theirs,) = method.model.heard, method.original.heard
    assert ours == theirs and set(ours) == {0.0, 4.0}
    assert 0.25 < ours.count(0.0) / 1000 < 0.35
