"""The timestep-aware scaling: its table of values, its identities, and where gradients go."""

import pytest
import torch

from pocketdiffusion.methods.scaling import (
    HIGH,
    LOW,
    TRUST,
    Constant,
    MultiLevel,
    SingleLevel,
    balanced,
    cautious,
    density,
    peaked,
    relative,
)

TIMES = torch.tensor([0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90])


def drawn(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(n, generator=g) + 0.1 for _ in range(3)] + [torch.rand(n, generator=g)]


def test_values_of_the_density_and_both_candidates():
    expected = {
        density: [0.001, 0.110, 0.397, 1.164, 1.596, 1.164, 0.397],
        relative: [0.0007, 0.069, 0.249, 0.729, 1.0, 0.729, 0.249],
        cautious: [0.500, 0.544, 0.654, 0.878, 0.945, 0.878, 0.654],
    }
    for f, values in expected.items():
        torch.testing.assert_close(f(TIMES), torch.tensor(values), atol=6e-4, rtol=0)


@pytest.mark.parametrize("trust", [relative, *TRUST.values()])
def test_symmetric_and_greatest_in_the_middle(trust):
    t = torch.linspace(0, 1, 201)
    torch.testing.assert_close(trust(t), trust(1 - t), atol=1e-5, rtol=0)
    assert trust(t).argmax() == 100 or (trust is peaked and trust(t)[100] == trust(t).max())


def test_one_in_the_middle_before_the_clamp_and_finite_at_the_ends():
    ends = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(relative(ends), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(peaked(ends), torch.tensor([LOW, HIGH, LOW]))
    torch.testing.assert_close(cautious(ends)[[0, 2]], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("trust", TRUST.values())
def test_a_teacher_as_wrong_as_the_data_changes_nothing(trust):
    task, _, _, t = drawn()
    torch.testing.assert_close(balanced(task, task.clone(), trust(t)), task.mean(), rtol=1e-6, atol=0)
    levels = {"out": task.clone(), "feat": task.clone()}
    torch.testing.assert_close(MultiLevel(trust)(task, levels, t), 2 * task.mean(), rtol=1e-6, atol=0)


def test_the_scale_of_the_teachers_loss_does_not_matter():
    task, out, _, t = drawn()
    a = peaked(t)
    torch.testing.assert_close(balanced(task, 100 * out, a), balanced(task, out, a), rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_formula_with_a_constant_ratio():
    task, out, _, t = drawn()
    a = peaked(t)
    task.requires_grad_(True)
    out.requires_grad_(True)
    found = torch.autograd.grad(balanced(task, out, a), [task, out])
    ratio = (task / out).detach()
    torch.testing.assert_close(found, (a / len(t), (1 - a) * ratio / len(t)), rtol=1e-5, atol=0)
    # through the ratio the task would weigh 1 and the teacher nothing
    through = torch.autograd.grad((a * task + (1 - a) * task / out * out).mean(), [task, out])
    assert (through[0] - 1 / len(t)).abs().max() < 1e-6 and through[1].abs().max() < 1e-6


def test_a_perfect_student_is_no_division_by_nothing():
    task, _, _, t = drawn()
    for task_now in (task, torch.zeros_like(task)):
        out = torch.zeros_like(task, requires_grad=True)
        loss = balanced(task_now, out.square(), peaked(t))
        (gradient,) = torch.autograd.grad(loss, [out])
        assert loss.isfinite() and gradient.isfinite().all()


def test_the_three_forms_by_hand():
    task, out, feat = (torch.tensor([v]) for v in (1.0, 2.0, 5.0))
    t, levels = torch.tensor([0.25]), {"out": out, "feat": feat}
    assert MultiLevel()(task, levels, t) == pytest.approx(2.0)
    assert SingleLevel(weight=0.5)(task, levels, t) == pytest.approx(1 + 2.5)
    assert SingleLevel()(task, {"out": out}, t) == pytest.approx(1.0)
    assert Constant({"out": 3.0})(task, levels, t) == pytest.approx(7.0)
    assert Constant()(task, levels, t) == pytest.approx(1.0)
