"""Adversarial step distillation: few steps, taught by a critic on frozen features.

    k ~ U{0..K-1},  t = sigma_k,  t' = sigma_(k+1);   of the last k, whose t' would be 0, t' ~ logit-normal
    x_t   = (1 - t) x0 + t e,     y0 = x_t - t v(x_t, t, c)
    real  = (1 - t') x0 + t' e1,  fake = (1 - t') y0 + t' e2          e, e1, e2 independent
    D(x)  = heads(features(x, t', c'))                                features frozen, heads trained

    discriminator   objective(D(real), D(sg[fake])) + penalty R1
    generator       objective(D(fake)) + weight S(L_task, L_kd)       both at t; S of scaling.py

    hinge           D  mean relu(1 - D(real)) + mean relu(1 + D(fake))            G  -mean D(fake)
    non_saturating  D  mean softplus(-D(real)) + mean softplus(D(fake))           G  mean softplus(-D(fake))
    relativistic    D  mean softplus(D(fake) - D(real)), pair by pair             G  with the two exchanged
    R1              mean (D(x + s n) - D(x))^2 / s^2,  n ~ N(0, I), s = 0.01      about |grad D|^2 at real x

Sources: SnapGen (2024), whose step distillation is read as UFOGen and LADD have theirs, with weights of ours;
hinge, Lim and Ye 2017; relativistic, Jolicoeur-Martineau 2018, paired as in R3GAN (Huang et al. 2024); R1 by
a finite difference, APT (Lin et al. 2025), which does not divide by s^2.

L_kd is the distance from a few-step teacher, which needs no guidance. Without one, the base teacher with
guidance takes its place, as the callable that ``diffusion.guidance.cfg`` makes. The result is sampled
without guidance, by ``renoise``, at the levels it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.flow import interpolate, to_x0, velocity
from ..diffusion.times import few_step, logit_normal, shifted
from ..nn.finite import finite
from ..types import Batch, Cond, Denoiser
from .kd import Embed, per_sample
from .scaling import Trust, balanced, peaked

Tapped = Callable[[Tensor, Tensor, Cond], tuple[Any, dict[str, Tensor]]]
NUDGE = 0.01  # APT's for pictures


class Objective(NamedTuple):
    """Losses of logits (B, places) of real and fake; ``paired``: only differences between them count."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False


OBJECTIVES: dict[str, Objective] = {
    "hinge": Objective(
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    "non_saturating": Objective(
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda real, fake: F.softplus(-fake).mean(),
    ),
    "relativistic": Objective(
        lambda real, fake: F.softplus(fake - real).mean(),
        lambda real, fake: F.softplus(real - fake).mean(),
        paired=True,
    ),
}


@dataclass(frozen=True)
class Guide:
    """The term S(L_task, L_kd): a teacher, and how ``levels`` were shifted (a(t) is read before that)."""

    teacher: Denoiser
    embed: Embed
    weight: float = 1.0
    shift: float = 1.0
    trust: Trust = peaked

    def __call__(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return self.teacher(x, t, self.embed(batch)[1])


class Draft(NamedTuple):
    """One call of the generator."""

    x0: Tensor
    noise: Tensor
    x: Tensor
    t: Tensor  # (B,) the level of x
    s: Tensor  # (B,) the level at which the discriminator compares
    v: Tensor
    y0: Tensor  # the picture predicted from x


def penalty(judge: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor, nudge: float = NUDGE) -> Tensor:
    """R1 by a finite difference: ``logits`` = judge(x), (B, places). No second derivatives are needed."""
    moved = judge(x + nudge * torch.randn_like(x))
    return ((moved - logits) / nudge).square().mean()


class Adversarial:
    """``features``: a tap on a frozen network, which belongs to no player; ``heads``: nn.heads.Heads.

    ``embed(batch) -> x0, cond`` for the generator and for the network that ``features`` looks into.
    ``levels``: the decreasing times at which the generator is called, without the final 0.
    ``parameters``: of the generator, and of its text encoder if that trains.
    """

    def __init__(
        self,
        generator: Denoiser,
        embed: Embed,
        parameters: Sequence[nn.Parameter],
        features: Tapped,
        embed_features: Embed,
        heads: nn.Module,
        levels: Sequence[float],
        objective: str = "hinge",
        guide: Guide | None = None,
        r1: float = 0.0,
    ):
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}; known: {', '.join(OBJECTIVES)}")
        self.generator, self.embed, self.guide, self.r1 = generator, embed, guide, r1
        self.features, self.embed_features, self.heads = features, embed_features, heads
        self.levels, self.objective = few_step(levels).float(), OBJECTIVES[objective]
        self.players = {"discriminator": list(heads.parameters()), "generator": list(parameters)}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("discriminator", "generator")

    def draft(self, batch: Batch) -> Draft:
        """Draw k, and let the generator predict."""
        x0, cond = self.embed(batch)
        levels, last = self.levels.to(x0.device), len(self.levels) - 2
        k = torch.randint(last + 1, (len(x0),), device=x0.device)
        s = torch.where(k == last, logit_normal(k.shape, device=x0.device), levels[k + 1])
        t, noise = levels[k], torch.randn_like(x0)
        x = interpolate(x0, noise, t)
        v = self.generator(x, t, cond)
        return Draft(x0, noise, x, t, s, v, to_x0(x, v, t))

    def judge(self, x: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """Logits (B, places)."""
        found = finite("the discriminator's features", self.features, x, s, cond)[1]
        return self.heads(found, x, cond.pooled)

    @torch.no_grad()
    def read(self, batch: Batch) -> Cond:
        """The captions as the discriminator's network has them."""
        return finite("the discriminator's text", self.embed_features, batch)[1]

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        if player == "discriminator":
            yield self.discriminator(batch)
        else:
            yield self.generated(batch)

    def discriminator(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            made, cond = self.draft(batch), self.read(batch)
        real, fake = (interpolate(x, torch.randn_like(x), made.s) for x in (made.x0, made.y0))
        said, denied = (self.judge(x, made.s, cond) for x in (real, fake))
        parts = {"loss": self.objective.discriminator(said, denied)}
        if self.r1:
            parts["r1"] = penalty(lambda x: self.judge(x, made.s, cond), real, said)
            parts["loss"] = parts["loss"] + self.r1 * parts["r1"]
        # a pair is told apart or not; alone, the sign decides
        between = (denied, said) if self.objective.paired else (0.0, 0.0)
        right = {"accuracy_real": said > between[0], "accuracy_fake": denied < between[1]}
        rates = {name: hits.float().mean() for name, hits in right.items()}
        return {**parts, "real": said.mean(), "fake": denied.mean(), **rates}

    def generated(self, batch: Batch) -> dict[str, Tensor]:
        made, cond = self.draft(batch), self.read(batch)
        denied = self.judge(interpolate(made.y0, torch.randn_like(made.y0), made.s), made.s, cond)
        said = denied
        if self.objective.paired:
            with torch.no_grad():
                said = self.judge(interpolate(made.x0, torch.randn_like(made.x0), made.s), made.s, cond)
        adversarial = self.objective.generator(said, denied)
        if not self.guide:
            return {"loss": adversarial, "adversarial": adversarial}
        parts = self.taught(made, batch, self.guide)
        return {"loss": adversarial + parts["kd"], "adversarial": adversarial, **parts}

    def taught(self, made: Draft, batch: Batch, guide: Guide) -> dict[str, Tensor]:
        """weight S, S, and what it is made of."""
        with torch.no_grad():
            wanted = finite("the teacher", guide, made.x, made.t, batch)
        task, out = per_sample(made.v, velocity(made.x0, made.noise)), per_sample(made.v, wanted)
        scaled = balanced(task, out, guide.trust(shifted(made.t, 1 / guide.shift)))
        # without its weight too, for whoever compares sizes
        return {"kd": guide.weight * scaled, "scaled": scaled, "task": task.mean(), "out": out.mean()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
