"""Distribution matching (DMD2, K-DMD): few steps, by the difference of two scores.

    k ~ U{0..K-1};  x at s_k by k steps of the student from noise, without gradients;  t = s_k
    y     = x - t v(x, t, c)                                        what the student draws
    x_tau = (1 - tau) sg[y] + tau e,   tau ~ U(0.02, 0.98), then shifted
    y_r   = x_tau - tau v_T(x_tau, tau, c),   y_f = x_tau - tau v_C(x_tau, tau, c)
    g     = (y_f - y_r) / mean |sg[y] - y_r|,  per sample

    student   1/2 || y - sg[y - g] ||^2 + || v - v_F(x, t, c) ||^2 + || phi(f) - f_F ||^2
    critic    || v_C(x_tau, tau, c) - (e - sg[y]) ||^2
    and, with heads D, w_G softplus(-D(x_tau)) and w_D (softplus(D(fake)) + softplus(-D(real)))

v_T: the teacher, its guidance inside. v_C: the critic, that follows what the student draws; it begins as a
copy of the student, or of the teacher where the student has few steps already. v_F, f_F: a teacher of few
steps and its features (K-DMD), at the student's own x and t; without one this is DMD2. D reads the critic's
features, as DMD2 may have it. The critic learns every step, the student every n-th, with draws of their own.

Sources: DMD2 (Yin et al. 2024, arXiv 2405.14867), its loss and backward simulation, in the form of
velocities; K-DMD and its unit weights, SnapGen++ (arXiv 2601.08303), eq. 9 and 10. That one k serves a whole
batch, and that student and critic draw apart, is ours; and so is ElasticDMD.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.flow import interpolate, to_x0, velocity
from ..diffusion.samplers import Sampler
from ..diffusion.samplers import renoise as by_renoise
from ..diffusion.times import few_step, shifted
from ..nn.finite import finite
from ..nn.taps import tap
from ..types import Batch, Cond, Denoiser
from .kd import Embed, Features, per_sample


@dataclass(frozen=True)
class Knowledge:
    """K-DMD's few-step teacher; ``features``: what of it the student's are compared with."""

    teacher: nn.Module
    embed: Embed
    features: Features | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Gan:
    """``names``: what of the critic the ``heads`` read. The weights are DMD2's for SDXL."""

    heads: nn.Module
    names: Sequence[str]
    student: float = 5e-3
    critic: float = 1e-2


class Draft(NamedTuple):
    """What the student draws."""

    x: Tensor
    t: Tensor
    v: Tensor
    x0: Tensor
    features: dict[str, Tensor]


def direction(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """g: from what the teacher would draw of x_tau to what the critic would, at the size of an error."""
    size = (x0 - real).abs().flatten(1).mean(1)
    difference = (fake - real).flatten(1) / size[:, None]
    return torch.nan_to_num(difference).view_as(x0)


class DMD:
    """``embed(batch) -> x0, cond`` of the student, ``embed_teacher`` of the teacher; x0 for D alone.

    ``embed_critic``: of a critic that reads another text than the student. ``teacher``: guided already, by
    diffusion.guidance.cfg. ``parameters``: of the student, ``critics``: of the critic. ``levels``: s_0 to
    s_(K-1), without the final 0; ``shift``: of tau. ``sampler``: the rule by which the student will sample,
    euler or renoise.
    """

    def __init__(
        self,
        student: nn.Module,
        critic: nn.Module,
        teacher: Denoiser,
        embed: Embed,
        embed_teacher: Embed,
        parameters: Sequence[nn.Parameter],
        critics: Sequence[nn.Parameter],
        levels: Sequence[float],
        every: int = 5,
        shift: float = 1.0,
        knowledge: Knowledge | None = None,
        gan: Gan | None = None,
        sampler: Sampler = by_renoise,
        embed_critic: Embed | None = None,
    ):
        if every < 1:
            raise ValueError(f"every {every}: expected 1 or more")
        self.critic, self.teacher = critic, teacher
        self.embed, self.embed_teacher, self.embed_critic = embed, embed_teacher, embed_critic
        self.levels, self.every, self.shift = few_step(levels).float(), every, shift
        self.knowledge, self.gan, self.sampler = knowledge, gan, sampler
        features = knowledge.features if knowledge else None
        self.student = tap(student, [features.student] if features else [])
        self.judged = tap(critic, gan.names if gan else [])
        self.players = {"critic": list(critics), "student": list(parameters)}
        if features:
            self.players["student"] += features.projector.parameters()
        if gan:
            self.players["critic"] += gan.heads.parameters()

    def turn(self, step: int) -> tuple[str, ...]:
        return ("critic", "student") if step % self.every == 0 else ("critic",)

    def draft(self, shape: Sequence[int], cond: Cond, device: torch.device, grad: bool) -> Draft:
        """Backward simulation: k steps of the student from noise, then the one that is looked at."""
        k = int(torch.randint(len(self.levels) - 1, ()))
        x, levels = torch.randn(tuple(shape), device=device), self.levels.to(device)

        def plain(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.student(x, t, cond)[0]

        with torch.no_grad():
            for t, s in pairwise(levels[: k + 1]):
                x, _ = self.sampler(plain, x, t.expand(len(x)), s.expand(len(x)), cond, torch.randn_like(x))
        t = levels[k].expand(len(x))
        with torch.set_grad_enabled(grad):
            v, features = self.student(x, t, cond)
        return Draft(x, t, v, to_x0(x, v.float(), t), features)

    def again(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_tau, tau and the noise, from pictures without their history."""
        tau = shifted(0.02 + 0.96 * torch.rand(len(x0), device=x0.device), self.shift)
        noise = torch.randn_like(x0)
        return interpolate(x0.detach(), noise, tau), tau, noise

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        x0, cond = self.embed(batch)
        made = self.draft(x0.shape, cond, x0.device, player == "student")
        told = self.embed_critic(batch)[1] if self.embed_critic else cond
        if player == "critic":
            yield self.followed(made, x0, told)
        else:
            yield self.matched(made, batch, told)

    def followed(self, made: Draft, real: Tensor, cond: Cond) -> dict[str, Tensor]:
        """The critic's: what the student draws, and what is real."""
        x, tau, noise = self.again(made.x0)
        v, found = self.judged(x, tau, cond)
        loss = per_sample(v, velocity(made.x0.detach(), noise)).mean()
        if not self.gan:
            return {"loss": loss, "flow": loss}
        denied = self.gan.heads(found, x, cond.pooled)
        true = interpolate(real, torch.randn_like(real), tau)
        said = self.gan.heads(self.judged(true, tau, cond)[1], true, cond.pooled)
        parts = F.softplus(denied).mean() + F.softplus(-said).mean()
        rates = {"accuracy_real": (said > 0).float().mean(), "accuracy_fake": (denied < 0).float().mean()}
        return {"loss": loss + self.gan.critic * parts, "flow": loss, "gan": parts, **rates}

    def matched(self, made: Draft, batch: Batch, cond: Cond) -> dict[str, Tensor]:
        """The student's."""
        x, tau, _ = self.again(made.x0)
        with torch.no_grad():
            known = self.embed_teacher(batch)[1]
            real = to_x0(x, finite("the teacher", self.teacher, x, tau, known).float(), tau)
            fake = to_x0(x, self.critic(x, tau, cond).float(), tau)
            g = direction(made.x0, real, fake)
        loss = 0.5 * per_sample(made.x0, (made.x0 - g).detach()).mean()
        parts = {"dmd": g.abs().mean()}
        if self.gan:
            bent = interpolate(made.x0, torch.randn_like(made.x0), tau)
            found = self.judged(bent, tau, cond)[1]
            parts["gan"] = F.softplus(-self.gan.heads(found, bent, cond.pooled)).mean()
            loss = loss + self.gan.student * parts["gan"]
        if self.knowledge:
            parts |= self.known(made, batch, self.knowledge)
            loss = loss + self.knowledge.weight * (parts["out"] + parts.get("feat", 0.0))
        return {"loss": loss, **parts}

    def known(self, made: Draft, batch: Batch, of: Knowledge) -> dict[str, Tensor]:
        """L_out' and L_feat', as means over elements, as the first term is."""
        asked = tap(of.teacher, [of.features.teacher] if of.features else [])
        with torch.no_grad():
            wanted, theirs = finite("the few-step teacher", asked, made.x, made.t, of.embed(batch)[1])
        parts = {"out": per_sample(made.v, wanted).mean()}
        if of.features:
            mine = made.features[of.features.student]
            parts["feat"] = of.features.distance(mine, theirs[of.features.teacher], made.x).mean()
        return parts

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ElasticDMD(DMD):
    """All widths of a supernet at once: every batch is drawn by one of them, by lot.

    The critic follows what the widths draw together, so that it is their mixture that is matched with the
    teacher. ``student``: a Supernet; its widths have features of different sizes, so ``knowledge`` has none.
    """

    def __init__(self, student: Any, *args: Any, **kwargs: Any):
        super().__init__(student, *args, **kwargs)
        if self.knowledge and self.knowledge.features:
            raise ValueError("features of several widths: expected knowledge of the output alone")
        self.widths = [tap(student.at(name), []) for name in student.config.names]

    def draft(self, shape: Sequence[int], cond: Cond, device: torch.device, grad: bool) -> Draft:
        self.student = self.widths[int(torch.randint(len(self.widths), ()))]
        return super().draft(shape, cond, device, grad)
