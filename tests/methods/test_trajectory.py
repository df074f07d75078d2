import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.samplers import euler, run
from pocketdiffusion.diffusion.times import few_step, grid
from pocketdiffusion.methods.trajectory import Trajectory
from pocketdiffusion.types import Batch, Cond

LEVELS = tuple(grid(4, 2.5)[:-1].tolist())
COND = Cond(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))


class Linear(nn.Module):
    """v = a (t) x: of its Euler steps every trajectory is known."""

    def __init__(self, a=0.7):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x, t, cond):
        return self.a * (1 + t)[:, None, None, None] * x


def sampled(model, noise, times):
    return torch.stack([noise, *(s.x for s in run(euler, model, noise, times, COND))], 1)


def embed(batch):
    return batch.x, COND.expand(len(batch.x))


@torch.no_grad()
def test_a_teacher_of_as_many_steps_is_its_own_student():
    model = Linear()
    path = sampled(model, torch.randn(16, 2, 3, 3), few_step(LEVELS).float())
    method = Trajectory(model, embed, list(model.parameters()), LEVELS)
    loss = next(method.losses("student", Batch(path, [""] * 16)))["loss"]
    assert loss < 1e-10


def test_four_steps_of_the_student_end_where_sixteen_of_the_teacher_do():
    """A student with one free number per level, which is enough here, finds all of them."""
    teacher, fine = Linear(), grid(16, 2.5).float()
    with torch.no_grad():
        path = sampled(teacher, torch.randn(64, 2, 3, 3), fine)[:, ::4]

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(4))

        def forward(self, x, t, cond):
            k = (t[:, None] - torch.tensor(LEVELS)).abs().argmin(1)
            return self.a[k][:, None, None, None] * x

    student = Student()
    method = Trajectory(student, embed, list(student.parameters()), LEVELS)
    optimiser = torch.optim.Adam(student.parameters(), 0.05)
    for _ in range(300):
        optimiser.zero_grad()
        next(method.losses("student", Batch(path, [""] * 64)))["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        ends = sampled(student, path[:, 0], few_step(LEVELS).float())
    torch.testing.assert_close(ends[:, -1], path[:, -1], atol=1e-3, rtol=1e-2)


def test_every_level_is_reported_and_others_are_refused():
    model = Linear()
    method = Trajectory(model, embed, list(model.parameters()), LEVELS)
    found = next(method.losses("student", Batch(torch.randn(64, 5, 2, 3, 3), [""] * 64)))
    assert {f"at_{t:.2f}" for t in LEVELS} < set(found)
    with pytest.raises(ValueError, match="trajectories of 4 points, expected 5"):
        next(method.losses("student", Batch(torch.randn(2, 4, 2, 3, 3), [""] * 2)))
