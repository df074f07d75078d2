import pytest
import torch

from pocketdiffusion.nn.rope import angles, grid, rotate, split


def logit(q, k, p, r, head_dim):
    """The attention logit of ``q`` at position ``p`` and ``k`` at ``r``."""
    table = angles(torch.stack([p, r]), head_dim)
    a, b = rotate(torch.stack([q, k]), table)
    return a @ b


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_logits_depend_on_relative_offsets_alone(axes):
    q, k = torch.randn(24), torch.randn(24)
    p, r, moved = torch.randn(axes) * 5, torch.randn(axes) * 5, torch.randn(axes) * 9
    here = logit(q, k, p, r, 24)
    torch.testing.assert_close(here, logit(q, k, p + moved, r + moved, 24), atol=1e-4, rtol=1e-4)
    for axis in range(axes):
        step = torch.eye(axes)[axis]
        assert (here - logit(q, k, p + step, r, 24)).abs() > 1e-4, f"axis {axis} is not seen"


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_norm_is_preserved(axes):
    x = torch.randn(2, 4, 6, 16)
    y = rotate(x, angles(torch.randn(6, axes), 16))
    torch.testing.assert_close(x.norm(dim=-1), y.norm(dim=-1))


def test_position_zero_is_the_identity():
    x = torch.randn(1, 8)
    assert torch.equal(rotate(x, angles(torch.zeros(1, 2), 8)), x)


def test_one_dimension_is_its_formula():
    x, position = torch.randn(1, 4), torch.tensor([[3.0]])
    a, b = torch.tensor(3.0), torch.tensor(3.0 / 100)  # theta = 1, 10000^(-2/4)
    x0, x1, x2, x3 = x[0]
    truth = [x0 * a.cos() - x1 * a.sin(), x0 * a.sin() + x1 * a.cos()]
    truth += [x2 * b.cos() - x3 * b.sin(), x2 * b.sin() + x3 * b.cos()]
    torch.testing.assert_close(rotate(x, angles(position, 4))[0], torch.stack(truth))


def test_two_dimensions_are_two_halves():
    table = angles(torch.tensor([[2.0, 7.0]]), 16)
    rows, columns = angles(torch.tensor([[2.0]]), 8), angles(torch.tensor([[7.0]]), 8)
    assert torch.equal(table, torch.cat([rows, columns], dim=-1))


def test_widths():
    assert split(32, 2) == (16, 16)
    assert split(32, 3) == (12, 10, 10)
    assert sum(split(10, 3)) == 10


def test_odd_head_dim_is_refused():
    with pytest.raises(ValueError, match="head_dim"):
        angles(grid(4), 7)


def test_grid_is_row_major():
    assert grid(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
