"""Distribution matching where scores have a closed form, who learns when, and that it converges."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pocketdiffusion.diffusion.flow import expand
from pocketdiffusion.diffusion.guidance import cfg
from pocketdiffusion.diffusion.samplers import euler, renoise
from pocketdiffusion.diffusion.times import grid
from pocketdiffusion.methods.dmd import DMD, ElasticDMD, Gan, Knowledge, direction
from pocketdiffusion.methods.kd import features_between
from pocketdiffusion.models import dit
from pocketdiffusion.models.supernet import PRESETS, Supernet
from pocketdiffusion.nn.heads import Heads
from pocketdiffusion.nn.projector import as_map
from pocketdiffusion.nn.taps import tap
from pocketdiffusion.train.fit import Run, fit
from pocketdiffusion.types import Batch, Cond

NONE = Cond(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))


class Normal(nn.Module):
    """The velocity of N(mu, 1): E[x0 | x_t] = mu + (1 - t) (x_t - (1 - t) mu) / ((1 - t)^2 + t^2)."""

    def __init__(self, mu):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(float(mu)))

    def forward(self, x, t, cond):
        t = expand(t, x)
        mean = self.mu + (1 - t) * (x - (1 - t) * self.mu) / ((1 - t) ** 2 + t**2)
        return (x - mean) / t


class Shifter(nn.Module):
    """One step from t = 1: y = e + mu, which is N(mu, 1)."""

    def __init__(self, mu):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(float(mu)))
        self.calls = []

    def forward(self, x, t, cond):
        self.calls.append((torch.is_grad_enabled(), float(t[0])))
        return -self.mu.expand_as(x) / t.view(-1, 1, 1, 1)


def embed(batch):
    return batch.x, NONE.expand(len(batch.x))


def batch(n=64):
    return Batch(torch.zeros(n, 1, 2, 2), [""] * n)


def toy(student=0.0, critic=None, teacher=2.0, levels=(1.0,), **options):
    student, critic = Shifter(student), Normal(student if critic is None else critic)
    of = Normal(teacher).requires_grad_(False)
    players = list(student.parameters()), list(critic.parameters())
    return DMD(student, critic, of, embed, embed, *players, levels, **options)


def gradient(method, player="student", seed=0):
    torch.manual_seed(seed)
    loss = next(iter(method.losses(player, batch())))
    parameter = method.players[player][0]
    return torch.autograd.grad(loss["loss"], parameter)[0]


@pytest.mark.parametrize("mu_f, mu_r", [(0.0, 2.0), (2.0, 0.0), (-1.0, -3.0)])
def test_a_step_moves_the_student_towards_the_teacher(mu_f, mu_r):
    """With the critic exact for what the student draws."""
    assert torch.sign(-gradient(toy(mu_f, teacher=mu_r))) == (1 if mu_r > mu_f else -1)


def test_nothing_moves_where_critic_and_teacher_agree():
    assert gradient(toy(0.0, critic=2.0, teacher=2.0)) == 0
    guided = cfg(Normal(2.0), NONE, 3.0)  # guidance between equal predictions
    method = toy(0.0, critic=2.0)
    method.teacher = guided
    assert gradient(method).abs() < 1e-4


def test_the_gradient_is_that_of_the_scores():
    """At a known x_tau, up to the normaliser: tau^2 / (1 - tau) (s_f - s_r), known of a Gaussian."""
    tau, x0 = torch.full((4,), 0.6), torch.randn(4, 1, 2, 2)
    x = 0.4 * x0 + 0.6 * torch.randn(4, 1, 2, 2)
    cond = NONE.expand(4)
    real, fake = (x - 0.6 * Normal(mu)(x, tau, cond) for mu in (2.0, 0.0))
    variance = 0.4**2 + 0.6**2
    s_real, s_fake = (-(x - 0.4 * mu) / variance for mu in (2.0, 0.0))
    wanted = 0.6**2 / 0.4 * (s_fake - s_real)
    torch.testing.assert_close(fake - real, wanted)
    size = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(direction(x0, real, fake), (wanted / size).detach())


def test_a_perfect_prediction_gives_no_infinite_gradient():
    x0 = torch.zeros(2, 1, 2, 2)
    assert not direction(x0, x0, x0).any()


def test_the_student_arrives():
    """Both in turn from N(0, 1) and N(3, 1): the student ends at the teacher's mean."""
    method = toy(0.0, teacher=3.0, every=5)
    networks = {"all": Holder(method)}
    optimisers = {
        "critic": torch.optim.Adam(method.players["critic"], 0.05, betas=(0.0, 0.99)),
        "student": torch.optim.Adam(method.players["student"], 0.05, betas=(0.0, 0.99)),
    }
    fit(method, lambda seed, step: batch(), optimisers, networks, Run(600))
    assert method.players["student"][0].item() == pytest.approx(3.0, abs=0.25)
    assert method.players["critic"][0].item() == pytest.approx(3.0, abs=0.35)


class Holder(nn.Module):
    """What fit saves: all players' parameters."""

    def __init__(self, method):
        super().__init__()
        every = [p for ps in method.players.values() for p in ps]
        self.kept = nn.ParameterList(every)


def test_who_learns_when():
    method = toy(every=5)
    turns = [method.turn(step) for step in range(11)]
    assert [i for i, who in enumerate(turns) if "student" in who] == [0, 5, 10]
    assert all("critic" in who for who in turns)
    loss = next(iter(method.losses("critic", batch())))["loss"]
    own, other = (method.players[who][0] for who in ("critic", "student"))
    found = torch.autograd.grad(loss, [own, other], allow_unused=True)
    assert found[0] != 0 and found[1] is None
    loss = next(iter(method.losses("student", batch())))["loss"]
    found = torch.autograd.grad(loss, [own, other], allow_unused=True)
    assert found[0] is None and found[1] != 0


@pytest.mark.parametrize("sampler", [euler, renoise])
def test_backward_simulation(sampler):
    """Steps without gradients down the levels, by the rule of sampling; then one with them."""
    levels = grid(4, 3.0)[:-1].tolist()
    assert levels == pytest.approx([1.0, 0.9, 0.75, 0.5])
    student = Shifter(1.0)
    critic, teacher = Normal(0.0), Normal(0.0).requires_grad_(False)
    players = list(student.parameters()), list(critic.parameters())
    method = DMD(student, critic, teacher, embed, embed, *players, levels, sampler=sampler)
    seen = set()
    for seed in range(12):
        student.calls.clear()
        torch.manual_seed(seed)
        made = method.draft((8, 1, 2, 2), NONE.expand(8), torch.device("cpu"), True)
        seen.add(len(student.calls))
        assert [t for _, t in student.calls] == pytest.approx(levels[: len(student.calls)])
        assert [grad for grad, _ in student.calls] == [False] * (len(student.calls) - 1) + [True]
        assert made.v.requires_grad and not made.x.requires_grad
        torch.testing.assert_close(made.x0, made.x + 1)
    assert seen == {1, 2, 3, 4}


def text(b):
    tokens = torch.ones(len(b.x), 3, 32)
    return b.x, Cond(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens[:, 0])


def network():
    model = dit.DiT(dit.PRESETS["smoke"])
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model


def real(**options):
    torch.manual_seed(0)
    student, critic, teacher = (network() for _ in range(3))
    teacher.requires_grad_(False)
    players = list(student.parameters()), list(critic.parameters())
    return DMD(student, critic, teacher, text, text, *players, (1.0, 0.5), **options), student, critic


def pictures(n=4):
    return Batch(torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0)), ["x"] * n)


def test_knowledge_has_unit_weights_and_trains_a_projector():
    torch.manual_seed(1)
    few = network().requires_grad_(False)
    x, cond = text(pictures(1))
    names = ("blocks.1", "blocks.1")
    features = features_between(network(), few, names, (x, torch.full((1,), 0.5), cond, cond))
    method, *_ = real(knowledge=Knowledge(few, text, features))
    assert set(map(id, features.projector.parameters())) <= set(map(id, method.players["student"]))
    torch.manual_seed(2)
    parts = next(iter(method.losses("student", pictures())))
    plain, *_ = real()
    torch.manual_seed(2)
    alone = next(iter(plain.losses("student", pictures())))
    torch.testing.assert_close(parts["loss"], alone["loss"] + parts["out"] + parts["feat"])
    assert parts["out"] > 0 and parts["feat"] > 0


def test_a_student_that_is_the_few_step_teacher_is_told_nothing():
    method, student, _ = real()
    method.knowledge = Knowledge(student, text)
    assert next(iter(method.losses("student", pictures())))["out"] == 0


def test_heads_on_the_critic():
    torch.manual_seed(0)
    critic = network()
    x, cond = text(pictures(1))
    found = tap(critic, ["blocks.0", "blocks.1"])(x, torch.full((1,), 0.5), cond)[1]
    heads = Heads({k: as_map(v, x).shape[1] for k, v in found.items()}, 8, 32)
    method, student, critic = real(gan=Gan(heads, ["blocks.0", "blocks.1"]))
    assert set(map(id, heads.parameters())) <= set(map(id, method.players["critic"]))
    parts = next(iter(method.losses("critic", pictures())))
    torch.testing.assert_close(parts["loss"], parts["flow"] + 1e-2 * parts["gan"])
    assert {"accuracy_real", "accuracy_fake"} <= set(parts)
    parts = next(iter(method.losses("student", pictures())))
    parts["gan"].backward()
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())


def test_a_low_rank_student_and_critic(tmp_path):
    """peft's LoRA: only it trains, and without it the student is what it was."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = network()
    x, cond = text(pictures())
    t = torch.full((4,), 0.5)
    with torch.no_grad():
        before = base(x, t, cond)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q", "k", "v", "out", "up", "down"])
    student, critic = (peft.inject_adapter_in_model(config, m) for m in (base, network()))
    with torch.no_grad():
        assert torch.equal(student(x, t, cond), before)
    owned = [[p for n, p in m.named_parameters() if "lora_" in n] for m in (student, critic)]
    method = DMD(student, critic, network().requires_grad_(False), text, text, *owned, (1.0, 0.5), every=1)
    optimisers = {k: torch.optim.Adam(p, 1e-2) for k, p in method.players.items()}
    fit(method, lambda *_: pictures(), optimisers, {"s": student, "c": critic}, Run(2))
    with torch.no_grad():
        assert not torch.equal(student(x, t, cond), before)
        for module in student.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.enable_adapters(False)
        assert torch.equal(student(x, t, cond), before)


def test_what_is_refused():
    with pytest.raises(ValueError, match="every 0"):
        toy(every=0)


@pytest.mark.parametrize("player", ["critic", "student"])
def test_who_reads_which_text(player):
    """Student, critic and teacher may have encoders of their own."""
    method, student, critic = real()
    seen = {"student": set(), "critic": set(), "teacher": set()}

    def telling(name, network):
        def call(x, t, cond):
            seen[name].add(float(cond.tokens[0, 0, 0]))
            return network(x, t, cond)

        return call

    def reading(value):
        def embed(batch):
            x, cond = text(batch)
            return x, Cond(cond.tokens * value, cond.mask, cond.pooled)

        return embed

    method.embed, method.embed_critic, method.embed_teacher = reading(1.0), reading(2.0), reading(3.0)
    method.student = lambda x, t, cond: (telling("student", student)(x, t, cond), {})
    method.judged = lambda x, t, cond: (telling("critic", critic)(x, t, cond), {})
    method.critic, method.teacher = telling("critic", critic), telling("teacher", method.teacher)
    next(iter(method.losses(player, pictures())))
    assert seen == {"student": {1.0}, "critic": {2.0}, "teacher": {3.0} if player == "student" else set()}


def test_widths_take_turns_and_all_learn():
    """A draft is of one width from noise to picture; the critic sees what all of them draw."""
    torch.manual_seed(0)
    net = Supernet(PRESETS["smoke"])
    drawn = []

    class Spied(ElasticDMD):
        def draft(self, *args):
            with torch.random.fork_rng():
                expected = self.config.names[int(torch.randint(2, ()))]
            made = super().draft(*args)
            drawn.append((expected, self.student is self.widths[self.config.names.index(expected)]))
            return made

    Spied.config = net.config
    critic, teacher = (dit.DiT(dit.PRESETS["smoke"]) for _ in range(2))
    for p in (*net.parameters(), *teacher.parameters()):
        if not p.any():
            nn.init.normal_(p, std=0.05)
    players = list(net.parameters()), list(critic.parameters())

    def tokens(batch):
        words = torch.ones(len(batch.x), 3, 32)
        return batch.x, Cond(words, torch.ones(words.shape[:2], dtype=torch.bool), words[:, 0])

    teacher.requires_grad_(False)
    method = Spied(net, critic, teacher, tokens, tokens, *players, (1.0, 0.5), every=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimisers = {who: torch.optim.AdamW(p, 1e-3, weight_decay=0.0) for who, p in method.players.items()}
    fit(
        method,
        lambda *_: Batch(torch.zeros(2, 4, 8, 8), [""] * 2),
        optimisers,
        {"net": net, "critic": critic},
        Run(8),
    )
    assert {name for name, _ in drawn} == {"half", "full"} and all(same for _, same in drawn)
    moved = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert any(n.startswith("own.half") for n in moved) and any(n.startswith("full.blocks") for n in moved)
    x, cond = tokens(Batch(torch.zeros(1, 4, 8, 8), [""]))
    names = ("blocks.0", "blocks.0")
    features = features_between(teacher, teacher, names, (x, torch.full((1,), 0.5), cond, cond))
    told = Knowledge(teacher, tokens, replace(features, student="full.blocks.0"))
    with pytest.raises(ValueError, match="features of several widths"):
        ElasticDMD(net, critic, teacher, tokens, tokens, *players, (1.0,), knowledge=told)
