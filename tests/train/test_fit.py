"""The loop: who trains, what is refused, what stops it."""

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from pocketdiffusion.train.fit import Diverged, Run, every, fit
from pocketdiffusion.types import Batch


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_writes_what_happened(tiny, tmp_path):
    tiny.train(tmp_path, 200, log_every=10, save_every=100)
    log = read_log(tmp_path)
    assert [row["step"] for row in log] == list(range(10, 201, 10))
    assert log[-1]["head/error"] < 0.6 * log[0]["head/error"]
    assert {"head/loss", "head/grad", "lr", "steps_per_s"} <= set(log[0])


def test_without_a_folder_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.train(None)
    assert not list(tmp_path.iterdir())


def test_the_schedule_reaches_the_optimiser(tiny):
    net, rates = tiny.Net(), []
    optimiser = tiny.sgd(net.head.parameters())
    tiny.train(
        None, 20, net, optimiser=optimiser, hooks=[lambda _: rates.append(optimiser.param_groups[0]["lr"])]
    )
    assert rates == [0.1 * tiny.warmup_cosine(20, warmup=5)(step) for step in range(20)]


def test_every_and_what_hooks_see(tiny):
    steps, seen = [], {}

    def look(state):
        steps.append(state.step)
        live = state.networks["net"].head[0].weight.detach().clone()
        with state.averaged():
            seen["moved"] = (state.networks["net"].head[0].weight - live).abs().max()
        assert torch.equal(state.networks["net"].head[0].weight, live)

    tiny.train(None, 12, hooks=[every(5, look)])
    assert steps == [4, 9]
    assert seen["moved"] > 0


def test_clipping_bounds_the_step(tiny):
    net = tiny.Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = torch.optim.SGD(net.head.parameters(), lr=1.0)
    method = tiny.Regress(net)
    fit(method, tiny.data, {"head": optimiser}, {"net": net}, Run(1, clip=1e-3))
    moved = torch.cat([(v - before[k]).flatten() for k, v in net.state_dict().items()]).norm()
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_accumulation_is_a_bigger_batch(tiny):
    def big(seed, step):
        return Batch(torch.cat([tiny.data(seed, 4 * step + i).x for i in range(4)]), [""] * 32)

    results = []
    for source, accumulate in ((tiny.data, 4), (big, 1)):
        net = tiny.Net()
        method, optimiser = Plain(tiny.Regress(net, noise=0.0)), tiny.sgd(net.head.parameters())
        results.append(tiny.train(None, 10, net, method, optimiser, source=source, accumulate=accumulate))
    torch.testing.assert_close(*(dict(s.networks["net"].state_dict()) for s in results), atol=1e-6, rtol=1e-5)


class Plain:
    """A method with its running mean left out."""

    def __init__(self, method):
        self.inner, self.players, self.turn = method, method.players, method.turn
        self.state_dict, self.load_state_dict = method.state_dict, method.load_state_dict

    def losses(self, player, batch):
        for parts in self.inner.losses(player, batch):
            yield {"loss": parts["error"]}


def test_several_losses_are_one_step(tiny):
    """Backward on each, then one step: the sum of the losses."""

    class Twice(Plain):
        def losses(self, player, batch):
            for _ in range(2):
                yield from ({"loss": p["loss"] / 2} for p in super().losses(player, batch))

    results = []
    for kind in (Plain, Twice):
        net = tiny.Net()
        method, optimiser = kind(tiny.Regress(net, noise=0.0)), tiny.sgd(net.head.parameters())
        results.append(tiny.weights(tiny.train(None, 5, net, method, optimiser)))
    torch.testing.assert_close(*results)


def test_bf16_keeps_fp32_weights(tiny):
    state = tiny.train(None, 5, bf16=True)
    exact = tiny.train(None, 5)
    for k, v in tiny.weights(state).items():
        assert v.dtype == torch.float32
        torch.testing.assert_close(v, tiny.weights(exact)[k], atol=0.02, rtol=0.1)
    assert not torch.equal(tiny.weights(state)["head.0.weight"], tiny.weights(exact)["head.0.weight"])


@pytest.mark.parametrize("options", [{}, {"ema": 0.0}, {"accumulate": 2}])
def test_frozen_parameters_stay_bit_equal(tiny, options):
    before = tiny.Net()
    after = tiny.train(None, 10, **options).networks["net"]
    for (name, a), b in zip(before.named_parameters(), after.parameters()):
        assert torch.equal(a, b) != name.startswith("head"), name


def test_lora_leaves_its_base_alone(tiny):
    class Lora(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.head = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
            nn.init.zeros_(self.head[1].weight)

        def forward(self, x):
            return self.base(x) + self.head(x)

    net, base = Lora(tiny.Net()), tiny.Net()
    x = torch.randn(3, 4)
    assert torch.equal(net(x), base(x)), "LoRA starts as the identity"
    # its parameters still require gradients: fit has to leave them out all the same
    tiny.train(None, 10, net)
    assert torch.equal(net.base(x), base(x))
    assert not torch.equal(net(x), base(x))


def test_a_method_that_cheats_is_caught(tiny):
    class Cheat(tiny.Regress):
        def losses(self, player, batch):
            self.net.backbone.bias.data[0] += 1e-6
            yield from super().losses(player, batch)

    net = tiny.Net()
    with pytest.raises(AssertionError, match="no player owns"):
        tiny.train(None, 2, net, Cheat(net))


class Duel:
    """Two players; each one's loss runs through both networks."""

    def __init__(self, a, b):
        self.nets, self.log = {"a": a, "b": b}, []
        self.players = {k: list(n.parameters()) for k, n in self.nets.items()}

    def turn(self, step):
        return ("a", "b") if step % 3 == 2 else ("a",)

    def losses(self, player, batch):
        y = self.nets["b"](self.nets["a"](batch.x))
        self.log.append((player, {k: [p.requires_grad for p in ps] for k, ps in self.players.items()}))
        yield {"loss": y.square().mean() * (1 if player == "a" else -1)}
        other = "b" if player == "a" else "a"
        assert all(p.grad is not None for p in self.players[player])
        assert all(p.grad is None for p in self.players[other])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_players_take_turns(tiny):
    torch.manual_seed(0)
    nets = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 1)}
    duel, history = Duel(nets["a"], nets["b"]), []
    optimisers = {k: tiny.sgd(n.parameters()) for k, n in nets.items()}
    look = [lambda _: history.append({k: n.weight.detach().clone() for k, n in nets.items()})]
    fit(duel, tiny.data, optimisers, nets, Run(6), hooks=look)
    assert [who for who, _ in duel.log] == ["a", "a", "a", "b"] * 2
    for who, asks in duel.log:
        assert all(all(flags) == any(flags) == (who == k) for k, flags in asks.items())
    moves = [{k: not torch.equal(x[k], y[k]) for k in nets} for x, y in pairwise(history)]
    assert [m["b"] for m in moves] == [False, True, False, False, True]
    assert all(m["a"] for m in moves)


def test_every_player_needs_an_optimiser(tiny):
    net = tiny.Net()
    with pytest.raises(ValueError, match="no optimiser for player 'head'"):
        fit(tiny.Regress(net), tiny.data, {}, {"net": net}, Run(1))


def poisoned(tiny, at):
    def source(seed, step):
        batch = tiny.data(seed, step)
        return Batch(batch.x * float("nan"), batch.text) if step == at else batch

    return source


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    net = tiny.Net()
    with pytest.raises(Diverged, match="head/loss is not finite at step 7"):
        tiny.train(tmp_path, 20, net, source=poisoned(tiny, 7))
    assert all(p.isfinite().all() for p in net.parameters())
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    healthy = tiny.weights(tiny.train(tmp_path, 20))
    for k, v in tiny.weights(tiny.train(None, 20)).items():
        assert torch.equal(healthy[k], v)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_it_too(tiny, clip):
    class Edge(tiny.Regress):
        def losses(self, player, batch):
            yield {"loss": (0.0 * self.players["head"][0]).sqrt().sum()}

    net = tiny.Net()
    with pytest.raises(Diverged, match="head/grad"):
        tiny.train(None, 2, net, Edge(net), clip=clip)
    assert all(p.isfinite().all() for p in net.parameters())
