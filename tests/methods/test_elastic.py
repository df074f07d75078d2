"""Elastic training: what every width is told, the scale of gradients, and that all widths learn."""

import pytest
import torch
from torch import nn

from pocketdiffusion.methods.elastic import Elastic, ElasticSteps, Teacher
from pocketdiffusion.methods.kd import features_between, per_sample
from pocketdiffusion.methods.scaling import Constant
from pocketdiffusion.models import dit
from pocketdiffusion.models.supernet import PRESETS, Supernet
from pocketdiffusion.nn.taps import tap
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.train.optimisers import adamw
from pocketdiffusion.types import Batch, Cond

CONFIG = PRESETS["smoke"]


def embed(batch):
    tokens = torch.ones(len(batch.x), 3, 32)
    return batch.x, Cond(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0])


def batch(n=4, seed=0):
    return Batch(torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed)), ["x"] * n)


def noisy(model):
    torch.manual_seed(0)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model


def made(**options):
    net = noisy(Supernet(CONFIG))
    return net, Elastic(net, CONFIG.names, embed, list(net.parameters()), **options)


def test_a_step_is_the_full_width_and_another_on_the_same_noise():
    net, method = made(inner=0.5)
    torch.manual_seed(1)
    full, sub = method.losses("supernet", batch())
    torch.manual_seed(1)
    at = method.point(batch())
    v, small = net.at("full")(at.x, at.t, at.cond), net.at("half")(at.x, at.t, at.cond)
    torch.testing.assert_close(full["loss"], per_sample(v, at.target).mean())
    torch.testing.assert_close(sub["half"], per_sample(small, at.target).mean())
    torch.testing.assert_close(sub["half_inner"], per_sample(small, v).mean())
    torch.testing.assert_close(sub["loss"], sub["half"] + 0.5 * sub["half_inner"])


def test_the_full_width_is_not_told_by_the_small_one():
    """No gradient of the inner distance reaches what only the full network has."""
    net, method = made()
    losses = iter(method.losses("supernet", batch()))
    next(losses)
    sub = next(losses)
    sub["half_inner"].backward()
    grad = net.full.blocks[0].attn.q.weight.grad
    assert grad[:16, :16].any() and not grad[16:].any() and not grad[:, 16:].any()
    assert net.full.time.up.weight.grad is None


def test_the_scale_follows_the_ratio_of_gradients():
    net, method = made(inner=0.0)
    seen = []
    for losses in method.losses("supernet", batch()):
        before = net.shared_grads("half")
        losses["loss"].backward()
        after = net.shared_grads("half")
        seen.append(torch.stack([(a - b).square().sum() for a, b in zip(after, before)]).sum().sqrt())
    assert method.ratios["half"] == pytest.approx(0.99 + 0.01 * float(seen[0] / seen[1]), rel=1e-4)


def test_limits_and_state():
    _, method = made(limits=(0.25, 4.0))
    for ratio, scale in ((9.0, 4.0), (0.1, 0.25), (2.0, 2.0)):
        method.load_state_dict({"ratios": {"half": ratio}})
        assert method.scale("half") == scale
        _, sub = method.losses("supernet", batch())
        torch.testing.assert_close(sub["loss"], scale * (sub["half"] + 0.5 * sub["half_inner"]))
    assert method.state_dict() == {"ratios": {"half": 2.0}}


def test_a_teacher_is_asked_once_and_tells_all_widths():
    teacher = noisy(dit.DiT(dit.PRESETS["smoke"])).requires_grad_(False)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    net = noisy(Supernet(CONFIG))
    x, cond = embed(batch(1))
    example = x, torch.full((1,), 0.5), cond, cond
    names = "net.blocks.3", "blocks.1"
    features = {n: features_between(net.at(n), teacher, names, example) for n in CONFIG.names}
    calls.clear()
    told = Teacher(teacher, embed, features, Constant({"out": 2.0, "feat": 3.0}))
    method = Elastic(net, CONFIG.names, embed, list(net.parameters()), told)
    for f in features.values():
        assert set(map(id, f.projector.parameters())) <= set(map(id, method.players["supernet"]))
    torch.manual_seed(1)
    full, sub = method.losses("supernet", batch())
    assert len(calls) == 1
    torch.manual_seed(1)
    at = method.point(batch())
    for name, found in (("full", full["full"]), ("half", sub["half"])):
        own = features[name]
        v, mine = tap(net.at(name), [own.student])(at.x, at.t, at.cond)
        wanted = per_sample(v, at.target).mean() + 2 * per_sample(v, at.wanted).mean()
        wanted = wanted + 3 * own.distance(mine[own.student], at.theirs[own.teacher], at.x).mean()
        torch.testing.assert_close(found, wanted)


def test_all_widths_learn_together():
    net = Supernet(CONFIG)
    method = Elastic(net, CONFIG.names, embed, list(net.parameters()), drop=0.0)
    at = method.point(batch(16))

    def errors():
        with torch.no_grad():
            velocities = {n: net.at(n)(at.x, at.t, at.cond) for n in CONFIG.names}
        return {n: per_sample(v, at.target).mean().item() for n, v in velocities.items()}

    before = errors()
    fit(method, lambda *_: batch(16), {"supernet": adamw(net.parameters(), 1e-2)}, {"net": net}, Run(80))
    after = errors()
    assert all(after[n] < 0.95 * before[n] for n in CONFIG.names), (before, after)


def test_what_is_refused():
    with pytest.raises(ValueError, match="subs 3: expected 0 to 1"):
        made(subs=3)


def test_all_widths_follow_a_few_step_teacher():
    """x and v of a row are those of one of its levels; a batch that is no walk is refused."""
    net = noisy(Supernet(CONFIG))
    levels = (1.0, 0.7, 0.4)
    method = ElasticSteps(net, CONFIG.names, embed, list(net.parameters()), levels=levels)
    walks = torch.randn(5, 3, 2, 4, 8, 8)
    torch.manual_seed(1)
    at = method.point(Batch(walks, ["x"] * 5))
    for i in range(5):
        k = next(k for k, level in enumerate(levels) if abs(level - at.t[i]) < 1e-6)
        assert torch.equal(at.x[i], walks[i, k, 0]) and torch.equal(at.target[i], walks[i, k, 1])
    assert len(set(at.t.tolist())) > 1
    torch.manual_seed(1)
    full, sub = method.losses("supernet", Batch(walks, ["x"] * 5))
    v, small = net.at("full")(at.x, at.t, at.cond), net.at("half")(at.x, at.t, at.cond)
    torch.testing.assert_close(full["loss"], per_sample(v, at.target).mean())
    torch.testing.assert_close(sub["half"], per_sample(small, at.target).mean())
    with pytest.raises(ValueError, match=r"walks of \(4, 2\), expected \(3, 2\)"):
        method.point(Batch(torch.randn(5, 4, 2, 4, 8, 8), ["x"] * 5))
