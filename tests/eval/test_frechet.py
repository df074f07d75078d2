import sys

import pytest
import torch

from pocketdiffusion.eval import frechet
from pocketdiffusion.eval.frechet import Gaussian, gaussian_distance, kernel, mmd


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def covariance(generator, d):
    half = torch.randn(d, 2 * d, generator=generator, dtype=torch.float64)
    return half @ half.T / (2 * d)


def draw(generator, n, mean, cov):
    return (
        mean
        + torch.randn(n, len(mean), generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(cov).T
    )


def test_gaussians_with_diagonal_covariances():
    # they commute, so the distance is |m_a - m_b|^2 + sum (s_a - s_b)^2
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, -1.0]).double()
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.0]).double()
    distance = gaussian_distance(mean_a, std_a.square().diag(), mean_b, std_b.square().diag())
    assert distance == pytest.approx(10 + 4 + 0 + 0.25, abs=1e-12)


def test_gaussians_in_two_dimensions_that_do_not_commute():
    # for 2 x 2 matrices tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))
    a = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    b = torch.tensor([[1.0, -0.8], [-0.8, 3.0]]).double()
    cross = ((a @ b).trace() + 2 * (a @ b).det().sqrt()).sqrt()
    zero = torch.zeros(2).double()
    expected = a.trace() + b.trace() - 2 * cross
    assert gaussian_distance(zero, a, zero, b) == pytest.approx(expected.item(), abs=1e-12)


def test_a_rotation_of_both_changes_nothing(generator):
    a, b = covariance(generator, 6), covariance(generator, 6)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    zero = torch.zeros(6).double()
    straight = gaussian_distance(zero, a, zero, b)
    assert straight > 0.1
    assert gaussian_distance(zero, turn @ a @ turn.T, zero, turn @ b @ turn.T) == pytest.approx(
        straight, abs=1e-10
    )


def test_sampled_estimates_converge_to_the_distance_of_the_gaussians(generator):
    means = torch.zeros(8).double(), torch.full((8,), 0.3).double()
    covs = covariance(generator, 8), covariance(generator, 8)
    truth = gaussian_distance(means[0], covs[0], means[1], covs[1])
    errors = []
    for n in (100, 20_000):
        a, b = (draw(generator, n, m, c) for m, c in zip(means, covs))
        errors.append(abs(frechet.frechet(a, b) - truth) / truth)
    assert errors[1] < 0.02 < errors[0]


def test_equal_sets_are_at_distance_zero(generator):
    x = torch.randn(50, 64, generator=generator)
    # fewer rows than dimensions: a covariance of rank 49
    assert frechet.frechet(x, x) < 1e-5
    assert frechet.frechet(x, x + 2) == pytest.approx(4 * 64, rel=1e-6)


def test_statistics_do_not_depend_on_how_the_rows_arrive(generator):
    x = 100 + torch.randn(1000, 5, generator=generator)
    pieces = Gaussian()
    for part in x.split([1, 2, 497, 500]):
        pieces.add(part)
    assert pieces.n == 1000
    torch.testing.assert_close(pieces.mean, x.double().mean(0))
    torch.testing.assert_close(pieces.covariance, x.double().T.cov())
    assert frechet.frechet(pieces, x) < 1e-6


def test_mmd_of_two_by_two_points():
    a, b = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.0], [-1.0]]).double()
    # k(x, y) = (x y + 1)^3 in one dimension
    within_a, within_b, between = 27.0, 1.0, (1 + 0 + 1 - 1) / 4
    assert mmd(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_the_kernel_distance_has_no_bias(generator):
    a, b = torch.randn(2, 200, 50, 16, generator=generator, dtype=torch.float64)
    values = torch.tensor([mmd(x, y) for x, y in zip(a, b)])
    error = values.std() / len(values) ** 0.5
    assert values.mean().abs() < 3 * error
    # with the diagonal, as a biased estimate has it, 50 rows would give more than ten times that
    assert 2 * (frechet.polynomial(a[0], a[0]).diag().mean() - 1) / 50 > 10 * error


def test_the_kernel_distance_sees_a_shift_and_reports_its_spread(generator):
    a = torch.randn(500, 16, generator=generator)
    b = torch.randn(400, 16, generator=generator)
    near, spread = kernel(a, b, subsets=20, size=200)
    far, _ = kernel(a, b + 1, subsets=20, size=200)
    assert abs(near) < 3 * spread and far > 20 * spread > 0
    assert kernel(a, b, subsets=20, size=200) == (near, spread)
    # subsets that hold every row are all the same
    assert kernel(a, b, subsets=3)[1] < 1e-12


def test_features_may_be_any_callable():
    batches = [torch.full((2, 3, 4, 4), float(i)) for i in range(3)]
    rows = frechet.extract(lambda x: x.mean((2, 3)), batches)
    assert rows.shape == (6, 3)
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="width"):
        frechet.frechet(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="at least 2"):
        frechet.frechet(torch.zeros(1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least 2"):
        kernel(torch.zeros(1, 4), torch.zeros(3, 4))


def test_inception_without_its_library_says_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match="need torch-fidelity"):
        frechet.inception("weights.pth")


class FakeInception:
    """Stands in for torch-fidelity's extractor, whose package needs torchvision."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        assert features_list == ["2048"]

    def to(self, device):
        return self

    def __call__(self, x):
        assert x.dtype == torch.uint8
        return (x.float().mean((2, 3)),)


@pytest.fixture
def fidelity(monkeypatch):
    import types

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception_is_given_bytes(fidelity, tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "weights.pth")
    features = frechet.inception(tmp_path / "weights.pth")
    x = torch.tensor([-1.0, 0.0, 1.0, 1.5]).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    assert features(x)[:, 0].tolist() == [0, 128, 255, 255]


def test_inception_with_bad_weights_names_the_file(fidelity, tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("missing.pth", "text.pth", "empty.pth"):
        with pytest.raises(ValueError, match=name):
            frechet.inception(tmp_path / name)
