"""Gates: their size, what trains, the two-step scheme, and that a heavier price makes them lazier."""

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.times import grid
from pocketdiffusion.methods.gates import LearnGates
from pocketdiffusion.models import dit, unet
from pocketdiffusion.nn.gate import Gates, branches, switched, widths
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.types import Batch, Cond

NAMES = ("blocks.*.attn", "blocks.*.mlp")
TIMES = grid(6)[:-1].tolist()


def embed(batch):
    tokens = torch.ones(len(batch.x), 3, 32)
    return batch.x, Cond(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0])


def batch(n=4):
    return Batch(torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0)), ["x"] * n)


def network(module=dit, cls=dit.DiT):
    torch.manual_seed(0)
    model = cls(module.PRESETS["smoke"]).eval().requires_grad_(False)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


def learning(rho=1e-3, steps=6):
    model = network()
    names = branches(model, NAMES)
    gates = Gates(widths(model, model.example(), names), steps)
    times = grid(steps)[:-1].tolist()
    return model, gates, LearnGates(model, gates, embed, times, {"attn": rho, "mlp": rho})


@pytest.mark.parametrize(
    "depth, dim, steps, count", [(28, 1152, 50, 3225600), (28, 1152, 20, 1290240), (32, 3072, 50, 9830400)]
)
def test_as_many_gates_as_published(depth, dim, steps, count):
    names = {f"blocks.{i}.{kind}": dim for i in range(depth) for kind in ("attn", "mlp")}
    with torch.device("meta"):
        assert sum(p.numel() for p in Gates(names, steps).parameters()) == count


def test_a_gate_sums_over_tokens():
    gates = Gates({"a": 3, "b": 2}, 2)
    with torch.no_grad():
        gates.w["a"][1] = torch.tensor([1.0, 0.0, -2.0])
        gates.w["b"][1] = torch.tensor([0.5, 1.0])
    z = torch.randn(4, 5, 3)
    wanted = (z.sum(1) @ torch.tensor([1.0, 0.0, -2.0])).sigmoid()
    torch.testing.assert_close(gates.keep("a", 1, z), wanted)
    assert (gates.keep("a", 0, z) == 0.5).all()
    z = torch.randn(4, 2, 3, 3)  # a map
    torch.testing.assert_close(gates.keep("b", 1, z), (z.sum((2, 3)) @ torch.tensor([0.5, 1.0])).sigmoid())


@pytest.mark.parametrize("module, cls", [(dit, dit.DiT), (unet, unet.UNet)])
def test_switches_change_nothing_and_share_weights(module, cls):
    model = network(module, cls)
    copy, hub = switched(model, branches(model))
    with torch.no_grad():
        assert torch.equal(copy(*model.example()), model(*model.example()))
        hub.rule = lambda name, z, compute: compute(None)
        assert torch.equal(copy(*model.example()), model(*model.example()))
    assert {id(p) for p in copy.parameters()} == {id(p) for p in model.parameters()}
    assert not any("branch" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("module, cls", [(dit, dit.DiT), (unet, unet.UNet)])
def test_rows_are_computed_by_themselves(module, cls):
    """Every argument that has rows is cut, tables of positions are not: also in a batch of two."""
    model = network(module, cls)
    copy, hub = switched(model, branches(model))

    def apart(name, z, compute):
        return torch.cat([compute(torch.tensor([i])) for i in range(len(z))])

    hub.rule = apart
    for size in (2, 3):
        inputs = model.example(size)
        with torch.no_grad():
            torch.testing.assert_close(copy(*inputs), model(*inputs), atol=1e-5, rtol=1e-4)


def test_only_gates_train_and_only_those_of_odd_steps():
    model, gates, method = learning()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = {"gates": torch.optim.AdamW(gates.parameters(), 1e-2, weight_decay=0.0)}
    fit(method, lambda *_: batch(), optimiser, {"gates": gates}, Run(12))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for w in gates.w.values():
        assert not w[0::2].any() and w[1::2].any(1).all()
    assert method.hub.rule is None


def test_untrained_gates_blend_half_and_half():
    """Y = F / 2 + kept / 2 exactly."""
    _, gates, method = learning()
    seen = {}

    def note(module, inputs, y):
        seen.setdefault(module.name, []).append(y)

    for m in method.network.modules():
        if hasattr(m, "hub") and hasattr(m, "branch"):
            m.register_forward_hook(note)
    torch.manual_seed(0)
    next(iter(method.losses("gates", batch())))
    name = gates.names[0]
    first, full, blended = seen[name]
    torch.testing.assert_close(blended, full / 2 + first / 2)


def test_the_loss_is_what_the_docstring_says():
    _, _, method = learning(rho=0.25)
    found = next(iter(method.losses("gates", batch())))
    busy = 2 * 0.5 * 0.25 * 2  # branches of a kind, k, rho, kinds
    torch.testing.assert_close(found["loss"], found["error"] + busy)
    assert found["keep_attn"] == found["keep_mlp"] == 0.5 and found["error"] > 0


def test_a_higher_price_makes_lazier_gates():
    shares, errors = [], []
    for rho in (0.0, 1e-3, 1.0):
        torch.manual_seed(0)
        _, gates, method = learning(rho)
        optimiser = {"gates": torch.optim.AdamW(gates.parameters(), 1e-2, weight_decay=0.0)}
        fit(method, lambda *_: batch(), optimiser, {"gates": gates}, Run(40))
        found = [next(iter(method.losses("gates", batch()))) for _ in range(6)]
        shares.append(sum((f["keep_attn"] + f["keep_mlp"]).item() for f in found))
        errors.append(sum(f["error"].item() for f in found))
    assert shares[0] > shares[1] > shares[2]
    assert errors[0] < errors[1] < errors[2], "and what rests costs accuracy"


def test_what_is_refused():
    model = network()
    gates = Gates({"blocks.0.attn": 64}, 4)
    with pytest.raises(ValueError, match="6 times for gates of 4 steps"):
        LearnGates(model, gates, embed, TIMES, {"attn": 1.0})
    with pytest.raises(ValueError, match="no rho for 'attn'"):
        LearnGates(model, gates, embed, TIMES[:4], {"mlp": 1.0})
    with pytest.raises(ValueError, match="no submodule like blocks"):
        branches(model, ("blocks.*.conv",))
    with pytest.raises(ValueError, match="lists no BRANCHES"):
        branches(nn.Linear(1, 1))
