"""Sensitivities and plans."""

import pytest
import torch
from torch import nn

from pocketdiffusion.compress.bits import Plan, choose, sensitivity, table, uniform
from pocketdiffusion.compress.round import rounded, size


@pytest.fixture
def net():
    """The middle layer's output is drowned by the residual; the last layer is all that is seen."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.quiet, self.loud = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.loud(x + 0.01 * self.quiet(x))

    return Net().eval()


PROBES = [(torch.randn(4, 32, generator=torch.Generator().manual_seed(i)),) for i in range(3)]


def test_sensitivity_is_the_error_of_one_layer(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    seen = []
    errors = sensitivity(net, PROBES, (8, 4), seen.append)
    assert seen == ["quiet", "loud"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    for name in seen:
        assert errors[name][16] == 0 < errors[name][8] < errors[name][4]
    assert errors["quiet"][4] < errors["loud"][4] / 100
    with torch.no_grad():
        other = rounded(net, {"loud": 4})
        off = sum((other(*p) - net(*p)).square().sum() for p in PROBES)
        power = sum(net(*p).square().sum() for p in PROBES)
    assert errors["loud"][4] == pytest.approx(float(off / power), rel=1e-4)


def test_the_plan_meets_the_budget_where_it_hurts_least(net):
    errors = sensitivity(net, PROBES, (8, 4))
    fine, coarse = uniform(net, 16), uniform(net, 4)
    assert choose(net, errors, fine.bytes).bits == {"quiet": 16, "loud": 16}
    middle = choose(net, errors, (fine.bytes + coarse.bytes) // 2)
    assert middle.bytes <= (fine.bytes + coarse.bytes) // 2
    assert middle.bits["quiet"] < middle.bits["loud"]
    assert middle.bytes == sum(size(getattr(net, n).weight, b) for n, b in middle.bits.items())
    assert middle.error == pytest.approx(sum(errors[n][b] for n, b in middle.bits.items()))
    with pytest.raises(ValueError, match="cannot be met"):
        choose(net, errors, coarse.bytes - 1)


def test_a_plan_is_data(net, tmp_path):
    plan = uniform(net, 8)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [row["bits"] for row in table(net, plan)] == [8, 8]
    (tmp_path / "plan.json").write_text('{"bits": {"a": 3}, "bytes": 1, "error": 0.0}')
    with pytest.raises(ValueError, match=r"plan\.json"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"none\.json"):
        Plan.load(tmp_path / "none.json")
