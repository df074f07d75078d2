"""Distillation between networks of other shapes: what is compared, what trains, and that it learns."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.times import shifted
from pocketdiffusion.methods.kd import Distillation, Features, emptied, features_between, per_sample
from pocketdiffusion.methods.scaling import Constant, MultiLevel
from pocketdiffusion.models import dit, unet
from pocketdiffusion.nn.projector import Projector, as_map
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.train.optimisers import adamw
from pocketdiffusion.types import Batch, Cond


def embed(batch):
    """Captions as their lengths, wide enough for the smoke presets."""
    lengths = torch.tensor([float(len(said)) for said in batch.text])[:, None, None]
    tokens = lengths.expand(-1, 3, 32) / 10
    return batch.x, Cond(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0])


def batch(n=4):
    return Batch(torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0)), ["four"] * n)


def noisy(model):
    """With something to say: outputs that start at zero are filled."""
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model


def networks(student="dit"):
    torch.manual_seed(0)
    teacher = noisy(dit.DiT(dit.PRESETS["smoke"])).requires_grad_(False)
    if student == "unet":
        return noisy(unet.UNet(unet.PRESETS["smoke"])), teacher
    return noisy(dit.DiT(dit.Config(dim=32, depth=1, heads=1, cross_heads=1, mlp=64, text=32))), teacher


def distillation(student, teacher, names=None, **options):
    x, cond = embed(batch(1))
    if names:
        example = x, torch.full((1,), 0.5), cond, cond
        options["features"] = features_between(student, teacher, names, example)
    return Distillation(student, teacher, embed, embed, list(student.parameters()), **options)


class Watch(nn.Module):
    """A denoiser that keeps what it was called with."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value, self.seen = nn.Parameter(torch.tensor(value)), []

    def forward(self, x, t, cond):
        self.seen.append((x, t, cond.tokens[:, 0, 0]))
        return self.value * torch.ones_like(x)


def test_both_see_the_same_input_level_and_caption_and_some_captions_are_emptied():
    student, teacher = Watch(), Watch()
    torch.manual_seed(0)
    next(distillation(student, teacher, drop=0.3, shift=3.0).losses("student", batch(1000)))
    (ours,), (theirs,) = student.seen, teacher.seen
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    assert sorted(set(ours[2].tolist())) == pytest.approx([0.0, 0.4])
    assert 0.25 < (ours[2] == 0).float().mean() < 0.35
    # shifted for the networks
    assert torch.logit(ours[1]).mean() == pytest.approx(torch.tensor(3.0).log().item(), abs=0.1)


def test_scaling_reads_the_level_as_it_was_drawn():
    told = []

    def scaling(task, levels, t):
        told.append(t)
        return task.mean()

    student = Watch()
    next(distillation(student, Watch(), scaling=scaling, shift=3.0).losses("student", batch(100)))
    torch.testing.assert_close(shifted(told[0], 3.0), student.seen[0][1])


def test_losses_are_the_distances_and_the_gradient_spares_the_teacher():
    student, teacher = Watch(0.4), Watch(0.1)
    parts = next(distillation(student, teacher).losses("student", batch(64)))
    assert parts["out"].item() == pytest.approx(0.09, rel=1e-4)
    assert parts["task"].item() == pytest.approx(2 + 0.16, rel=0.1)  # e - x0 has variance 2
    parts["loss"].backward()
    assert student.value.grad is not None and teacher.value.grad is None


def test_without_a_teacher_only_data_teach():
    method = Distillation(Watch(), None, embed, embed, [], scaling=Constant())
    parts = next(method.losses("student", batch()))
    assert set(parts) == {"loss", "task"} and parts["loss"] == parts["task"]


def test_a_teacher_that_equals_the_student_is_no_nan():
    student, _ = networks()
    method = distillation(student, student, ("blocks.0", "blocks.0"))
    method.features.projector.conv.weight.data = torch.eye(32)[:, :, None, None]
    nn.init.zeros_(method.features.projector.conv.bias)
    parts = next(method.losses("student", batch()))
    assert parts["out"] == parts["feat"] == 0
    parts["loss"].backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind, name", [("dit", "blocks.0"), ("unet", "transformers.10")])
def test_features_of_other_widths_and_grids_are_projected(kind, name):
    student, teacher = networks(kind)
    last = f"blocks.{len(teacher.blocks) - 1}"
    method = distillation(student, teacher, (name, last))
    conv = method.features.projector.conv
    assert conv.weight.shape == ((64, 32, 1, 1) if kind == "dit" else (64, 16, 2, 2))
    next(method.losses("student", batch()))["loss"].backward()
    assert conv.weight.grad.any() and all(p.grad is None for p in teacher.parameters())
    owned = {id(p) for p in method.players["student"]}
    assert owned == {id(p) for n in (student, method.features.projector) for p in n.parameters()}
    assert method.turn(3) == tuple(method.players)


class Known(nn.Module):
    """The best velocity for a world of one picture: (x_t - x0) / t."""

    def forward(self, x, t, cond):
        return (x - batch(1).x) / t.view(-1, 1, 1, 1)


def test_normalised_features_have_no_size():
    plain = Features("a", "b", nn.Identity())
    g = torch.Generator().manual_seed(0)
    mine, theirs, x = (torch.randn(2, 6, 4, 4, generator=g) for _ in range(3))
    own = replace(plain, normalised=True)
    torch.testing.assert_close(
        own.distance(mine, 7 * theirs + 3, x), own.distance(mine, theirs, x), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(own.distance(mine, 7 * mine, x), torch.zeros(2), atol=1e-4, rtol=0)
    assert (plain.distance(mine, 7 * theirs, x) > 20 * own.distance(mine, theirs, x) / 2).all()


def run(method, networks, steps):
    """Losses over ``steps`` steps on one picture, eight times per batch: means of the first and last ten."""
    one, seen = Batch(batch(1).x.expand(8, -1, -1, -1), ["four"] * 8), []

    def keep(state):
        seen.append({k.split("/")[1]: float(v) for k, v in state.seen.items()})

    optimiser = {"student": adamw(method.players["student"], 1e-2)}
    fit(method, lambda seed, step: one, optimiser, networks, Run(steps), hooks=[keep])
    return [{k: sum(row[k] for row in rows) / 10 for k in seen[0]} for rows in (seen[:10], seen[-10:])]


def test_one_picture_is_learned_from_a_teacher_that_knows_it():
    """Then L_out = L_task for every sample, so S is the task."""
    student, _ = networks()
    first, last = run(distillation(student, Known(), drop=0.0), {"student": student}, 40)
    for means in (first, last):
        assert means["out"] == pytest.approx(means["task"], rel=1e-3)
        assert means["loss"] == pytest.approx(means["task"], rel=1e-3)
    assert last["task"] < 0.75 * first["task"]


def test_features_are_learned_and_fit_finds_the_teacher_unchanged():
    student, teacher = networks()
    before = [p.clone() for p in teacher.parameters()]
    scaling = Constant({"feat": 1.0})
    method = distillation(student, teacher, ("blocks.0", "blocks.1"), drop=0.0, scaling=scaling)
    nets = {"student": student, "teacher": teacher, "projector": method.features.projector}
    first, last = run(method, nets, 30)
    assert last["feat"] < 0.6 * first["feat"]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters()))


def test_a_teacher_that_is_not_finite_is_named():
    student, teacher = networks()
    method = distillation(student, teacher, ("blocks.0", "blocks.1"))
    teacher.blocks[1].mlp.up.weight.data[3, 5] = torch.nan
    told = r"^blocks.1.mlp.up \(Linear\) of DiT: .* not finite, in the teacher$"
    with pytest.raises(ValueError, match=told):
        next(method.losses("student", batch()))
    # a student that has left is not the teacher's fault: the loop says so
    student.blocks[0].mlp.up.weight.data[3, 5] = torch.nan
    method = distillation(student, networks()[1])
    assert next(method.losses("student", batch()))["loss"].isnan()


def test_the_default_is_both_levels_scaled():
    student, teacher = networks()
    method = distillation(student, teacher, ("blocks.0", "blocks.1"))
    assert method.scaling == MultiLevel()
    parts = next(method.losses("student", batch()))
    # each S has the size of the task, whatever the size of the features
    torch.testing.assert_close(parts["loss"], 2 * parts["task"], rtol=1e-4, atol=0)


def test_per_sample_and_emptied():
    a, b = torch.zeros(2, 3, 4), torch.tensor([1.0, 2.0])[:, None, None].expand(2, 3, 4)
    assert per_sample(a, b).tolist() == [1.0, 4.0]
    assert emptied(batch(), 1.0).text == [""] * 4 and emptied(batch(), 0.0).text == ["four"] * 4


def test_cached_embeddings_are_emptied_by_that_of_the_empty_caption():
    null, said = (embed(replace(batch(n), text=texts))[1] for n, texts in ((1, [""]), (4, ["four"] * 4)))
    cached = replace(batch(), text=said)
    assert torch.equal(emptied(cached, 1.0, null).text.tokens, null.expand(4).tokens)
    assert torch.equal(emptied(cached, 0.0, null).text.tokens, said.tokens)
    with pytest.raises(AssertionError, match="empty caption"):
        emptied(cached, 0.5)
    # both networks see the same rows emptied
    student, teacher = Watch(), Watch()
    many = replace(batch(1000), text=said.map(lambda v: v[:1]).expand(1000))

    def passes(batch):
        return batch.x, batch.text

    torch.manual_seed(0)
    method = Distillation(student, teacher, passes, passes, list(student.parameters()), drop=0.3, null=null)
    next(method.losses("student", many))
    ours, theirs = student.seen[0][2], teacher.seen[0][2]
    assert torch.equal(ours, theirs) and 0.25 < (ours == 0).float().mean() < 0.35


def test_tokens_become_the_map_they_were_cut_from():
    x = torch.randn(2, 4, 8, 6)
    tokens = dit.patches(x, 2)
    found = as_map(tokens, x)
    assert found.shape == (2, 16, 4, 3)
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 5])
    assert as_map(x, x) is x
    clip = torch.randn(2, 4, 3, 8, 6)
    assert as_map(torch.randn(2, 3 * 4 * 3, 16), clip).shape == (2, 16, 3, 4, 3)
    with pytest.raises(ValueError, match="7 tokens are no grid"):
        as_map(torch.randn(1, 7, 4), x)


@pytest.mark.parametrize("pool", [False, True])
def test_projectors_between_grids(pool):
    fine, coarse = torch.randn(2, 6, 8, 8), torch.randn(2, 10, 4, 4)
    for mine, theirs in ((fine, coarse), (coarse, fine), (fine, fine)):
        assert Projector.between(mine, theirs, pool)(mine).shape == theirs.shape
    clip = torch.randn(2, 6, 3, 8, 8)
    found = Projector.between(fine, coarse, pool)
    torch.testing.assert_close(found(clip)[:, :, 1], found(clip[:, :, 1]))
    with pytest.raises(ValueError, match="no whole stride"):
        Projector.between(torch.randn(1, 6, 9, 9), coarse)
