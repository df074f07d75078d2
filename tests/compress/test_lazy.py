"""Lazy sampling: what rests does not run, what is computed is exact, plans are data."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion.cli.main import guarded
from pocketdiffusion.compress.lazy import (
    ByChange,
    ByGates,
    Calls,
    Lazy,
    Plan,
    alternating,
    measured,
    planned,
    searched,
)
from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.samplers import euler, run
from pocketdiffusion.diffusion.times import grid
from pocketdiffusion.models import dit, elastic_dit, unet
from pocketdiffusion.nn.gate import Gates, branches, widths
from pocketdiffusion.pipeline import Pipeline
from pocketdiffusion.types import Cond

TIMES = tuple(grid(6)[:-1].tolist())
LEVELS = grid(6)
KINDS = [(dit, dit.DiT), (unet, unet.UNet), (elastic_dit, elastic_dit.ElasticDiT)]
each = pytest.mark.parametrize


def network(module=dit, cls=dit.DiT):
    torch.manual_seed(0)
    model = cls(module.PRESETS["smoke"]).eval().requires_grad_(False)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return model


def sampled(denoiser, model, batch=2, guidance=0.0, interval=(0.0, 1.0)):
    x, _, cond = model.example(batch)
    if guidance:
        denoiser = cfg(denoiser, Cond.map(cond, torch.zeros_like).expand(batch), guidance, interval)
    with torch.no_grad():
        for step in run(euler, denoiser, x, LEVELS, cond):
            x = step.x
    return x


@each("module, cls", KINDS)
@each("guidance", [0.0, 3.0])
def test_a_plan_that_skips_nothing_changes_nothing(module, cls, guidance):
    model = network(module, cls)
    names, calls = branches(model), Calls()
    lazy = Lazy(model, Plan(TIMES, dict.fromkeys(names, (False,) * 6)))
    assert torch.equal(
        sampled(lazy.start(calls), model, guidance=guidance), sampled(model, model, guidance=guidance)
    )
    assert calls.laziness == 0 and calls.asked == calls.computed > 0


@each("guidance", [0.0, 3.0])
def test_untrained_gates_compute_everything(guidance):
    model = network()
    names = branches(model)
    gates, calls = Gates(widths(model, model.example(), names), 6), Calls()
    lazy = Lazy(model, ByGates(gates, TIMES))
    assert torch.equal(
        sampled(lazy.start(calls), model, guidance=guidance), sampled(model, model, guidance=guidance)
    )
    assert calls.laziness == 0


def shut(model):
    """Gates that say no at odd steps, whatever they see."""
    gates = Gates(widths(model, model.example(), branches(model)), 6)
    gates.keep = lambda name, step, z: torch.full((len(z),), 0.0 if step % 2 else 1.0)
    return gates


@each("module, cls", KINDS)
def test_all_gates_shut_at_odd_steps_rest_at_half_of_all_calls(module, cls):
    model = network(module, cls)
    calls = Calls(decided={})
    made = sampled(Lazy(model, ByGates(shut(model), TIMES)).start(calls), model)
    assert calls.laziness == 0.5
    names = branches(model)
    plan = planned(calls.decided, names, TIMES)
    assert plan == alternating(names, TIMES) and plan.laziness == 0.5
    assert torch.equal(sampled(Lazy(model, plan).start(), model), made)
    assert not torch.allclose(made, sampled(model, model))


def test_what_rests_does_not_run():
    model = network()
    names = branches(model)
    lazy, seen = Lazy(model, alternating(names, TIMES)), []
    for name in names:
        lazy.network.get_submodule(name).branch.register_forward_hook(lambda *_, n=name: seen.append(n))
    sampled(lazy.start(), model)
    assert {n: seen.count(n) for n in names} == dict.fromkeys(names, 3)


def test_a_trajectory_starts_afresh():
    model = network()
    lazy = Lazy(model, alternating(branches(model), TIMES))
    first = sampled(lazy.start(), model)
    assert torch.equal(sampled(lazy.start(), model), first)


@each("module, cls", KINDS)
def test_rows_decide_for_themselves(module, cls):
    """A mixed batch equals its rows run apart."""
    model = network(module, cls)
    names = [n for n in branches(model) if not n.endswith("cross")]
    gates = Gates(widths(model, model.example(), names), 6)
    torch.manual_seed(3)
    for w in gates.parameters():
        nn.init.normal_(w, std=0.3)
        w.data[0::2] = 0
    calls = Calls()
    lazy = Lazy(model, ByGates(gates, TIMES))
    x, _, cond = model.example(5)
    x = x + torch.arange(5.0)[:, None, None, None]

    def walked(rows):
        denoiser = lazy.start(calls)
        with torch.no_grad():
            for step in run(euler, denoiser, x[rows], LEVELS, cond.map(lambda v: v[rows])):
                last = step.x
        return last

    together = walked(list(range(5)))
    mixed = calls.computed % 5 != 0
    apart = torch.cat([walked([i]) for i in range(5)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert mixed, "all rows agreed: the test says nothing"


def test_guidance_for_a_part_of_the_levels():
    """Rows that were not there a step before are computed."""
    model = network()
    names = branches(model)
    limits = (0.2, 0.7)
    nothing = Lazy(model, Plan(TIMES, dict.fromkeys(names, (False,) * 6)))
    plain = sampled(model, model, guidance=3.0, interval=limits)
    assert torch.equal(sampled(nothing.start(), model, guidance=3.0, interval=limits), plain)
    calls = Calls()
    made = sampled(Lazy(model, alternating(names, TIMES)).start(calls), model, guidance=3.0, interval=limits)
    assert made.isfinite().all() and 0 < calls.laziness < 0.5


def test_large_weights_saturate_without_harm():
    model = network()
    gates = Gates(widths(model, model.example(), branches(model)), 6)
    for w in gates.parameters():
        nn.init.normal_(w, std=1e4)
    assert sampled(Lazy(model, ByGates(gates, TIMES)).start(), model).isfinite().all()


def test_a_higher_threshold_is_lazier():
    model = network()
    gates = Gates(widths(model, model.example(), branches(model)), 6)
    torch.manual_seed(1)
    for w in gates.parameters():
        nn.init.normal_(w, std=0.02)
    shares = []
    for threshold in (0.1, 0.4, 0.6, 0.9):
        calls, kinds = Calls(), dict.fromkeys(("attn", "cross", "mlp"), threshold)
        sampled(Lazy(model, ByGates(gates, TIMES, kinds)).start(calls), model)
        shares.append(calls.laziness)
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_plans_are_files(tmp_path):
    plan = Plan(
        TIMES, {"blocks.0.attn": (False, True, False, True, False, True), "blocks.0.mlp": (False,) * 6}
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan and plan.laziness == 0.25
    assert plan.drawn().splitlines() == ["blocks.0.attn  #.#.#.", "blocks.0.mlp   ######"]
    told = json.loads((tmp_path / "plan.json").read_text())
    told["skips"]["blocks.0.mlp"][0] = True
    (tmp_path / "plan.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"plan\.json: blocks\.0\.mlp: rests at the first step"):
        Plan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ValueError, match=r"plan\.json: not a readable lazy plan"):
        Plan.load(tmp_path / "plan.json")


def test_what_does_not_fit():
    model = network()
    with pytest.raises(ValueError, match=r"no branch 'blocks\.7\.attn'"):
        Lazy(model, Plan(TIMES, {"blocks.7.attn": (False,) * 6}))
    plan = alternating(branches(model), TIMES)
    plan.fits(LEVELS.tolist())
    with pytest.raises(ValueError, match=r"the plan is for 6 steps .* the sampler takes 5"):
        plan.fits(grid(5).tolist())
    x, _, cond = model.example()
    with pytest.raises(ValueError, match=r"no step at t = 0\.6000"):
        Lazy(model, plan).start()(x, torch.full((2,), 0.6), cond)
    for wrong, message in (((0.5, 0.7), "must decrease"), ((), "at least")):
        with pytest.raises(ValueError, match=message):
            Plan(wrong, {})
    with pytest.raises(ValueError, match="5 steps in a plan of 6"):
        replace(plan, skips={"a": (False,) * 5})


def test_a_plan_by_search_keeps_to_its_budget():
    errors = {("a", 1): 1.0, ("a", 2): 9.0, ("b", 1): 3.0, ("b", 2): 4.0}
    costs = {"a": [1.0] * 3, "b": [2.0] * 3}
    plan = searched((1.0, 0.5, 0.2), errors, costs, 7.0)
    # 9 ms in all; the cheapest per ms are ("a", 1) and ("b", 1)
    assert plan.skips == {"a": (False, True, False), "b": (False, True, False)}
    with pytest.raises(ValueError, match="no plan takes 1 ms or less: the laziest takes 3 ms"):
        searched((1.0, 0.5, 0.2), errors, costs, 1.0)
    # a step that costs more is worth more
    plan = searched((1.0, 0.5, 0.2), errors, {"a": [1.0, 1.0, 9.5], "b": [2.0] * 3}, 8.0)
    assert plan.skips["a"] == (False, False, True)


def test_errors_of_single_rests():
    model = network()
    names = ["blocks.0.attn", "blocks.1.mlp"]
    found = measured(model, names, TIMES, lambda denoiser: sampled(denoiser, model))
    assert set(found) == {(n, i) for n in names for i in range(1, 6)}
    assert all(v > 0 for v in found.values())
    # rows that are new have nothing kept: no rest, and nothing to be gained, where guidance begins
    found = measured(model, names, TIMES, lambda denoiser: sampled(denoiser, model, 2, 2.0, (0.0, 0.7)))
    begins = next(i for i, t in enumerate(TIMES) if t <= 0.7)
    assert begins > 0 and set(found) == {(n, i) for n in names for i in range(1, 6) if i != begins}


def test_plans_travel_with_the_pipeline(tiny_pipe, tmp_path):
    levels = tiny_pipe.schedule.levels().tolist()
    plan = alternating(branches(tiny_pipe.transformer), levels[:-1])
    tiny_pipe.plans["half"] = plan
    tiny_pipe.save_pretrained(tmp_path / "lazy")
    again = Pipeline.from_pretrained(tmp_path / "lazy")
    assert again.plans == {"half": plan} and again.lazy("half") == plan
    full, lazy = again.sample(["two stars"]), again.sample(["two stars"], lazy=plan)
    assert not torch.equal(full, lazy)
    nothing = Plan(plan.times, dict.fromkeys(plan.skips, (False,) * len(plan.times)))
    assert torch.equal(again.sample(["two stars"], lazy=nothing), full)
    with pytest.raises(ValueError, match="no lazy plan 'most' for this pipeline; it has half"):
        again.lazy("most")
    again.plans = {}
    with pytest.raises(ValueError, match=r"it has none; scenes has 0\.3, 0\.5"):
        again.lazy("half")
    with pytest.raises(ValueError, match="the sampler takes 2"):
        again.sample(["two stars"], steps=2, lazy=plan)


def test_generate_lazily(tiny_pipe, tmp_path, capsys):
    tiny_pipe.plans["half"] = alternating(
        branches(tiny_pipe.transformer), tiny_pipe.schedule.levels().tolist()[:-1]
    )
    tiny_pipe.save_pretrained(tmp_path / "lazy")
    argv = ["generate", "a star", "--model", str(tmp_path / "lazy"), "--device", "cpu"]
    assert guarded([*argv, "--lazy", "half", "-o", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").exists()
    capsys.readouterr()
    assert guarded([*argv, "--lazy", "0.9", "-o", str(tmp_path / "b.png")]) == 2
    assert "no lazy plan '0.9' for this pipeline; it has half" in capsys.readouterr().err
    assert guarded([*argv, "--lazy", "half", "--steps", "2", "-o", str(tmp_path / "b.png")]) == 2
    assert "the plan is for 3 steps" in capsys.readouterr().err


def test_a_cache_by_change():
    """At no threshold all is computed, at any all but the first two steps rests; branches agree."""
    model = network()
    names, plain = branches(model), sampled(model, model)
    found = {}
    for threshold in (0.0, 0.2, 1e9):
        by = ByChange(names, TIMES, threshold)
        lazy, calls = Lazy(model, by), Calls(decided={})
        first = sampled(lazy.start(calls), model)
        assert torch.equal(first, sampled(lazy.start(), model)), "one trajectory changes the next"
        assert all(share in ([0.0], [1.0]) for share in calls.decided.values())
        for step in range(6):
            assert len({calls.decided[name, step][0] for name in names}) == 1, "branches disagree"
        found[threshold] = calls.laziness
        assert torch.equal(first, plain) == (calls.laziness == 0)
    assert found[0.0] == 0 and found[1e9] == pytest.approx(4 / 6) and 0 <= found[0.2] <= found[1e9]


def test_a_cache_under_guidance_that_comes_and_goes():
    model = network()
    names, calls = branches(model), Calls(decided={})
    by = ByChange(names, TIMES, 1e9)
    x = sampled(Lazy(model, by).start(calls), model, guidance=3.0, interval=(0.3, 0.8))
    assert x.isfinite().all()
    # computed at the first two steps, where guidance begins, and a step after each change of the rows
    inside = [0.3 <= t <= 0.8 for t in TIMES]
    begins, ends = inside.index(True), len(TIMES) - inside[::-1].index(True)
    ran = {i for i in range(6) if calls.decided[names[0], i] == [0.0]}
    assert ran == {0, 1, begins, begins + 1, ends} & set(range(6))
    assert all(calls.decided[name, i] == calls.decided[names[0], i] for name in names for i in range(6))


def test_what_gates_say_is_noted_only_where_it_is_asked_for():
    model = network()
    gates, seen = Gates(widths(model, model.example(), branches(model)), 6), {}
    sampled(Lazy(model, ByGates(gates, TIMES, seen=seen)).start(), model)
    assert set(seen) == {(n, i) for n in branches(model) for i in range(1, 6)}
    assert all(ks == [0.5] for ks in seen.values())
    assert ByGates(gates, TIMES).seen is None
