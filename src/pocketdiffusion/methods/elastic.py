"""Elastic training: several widths of one network at once, told by the full one.

    full    L_full = || v_full(x_t, t, c) - (e - x0) ||^2
    sub     a_w (|| v_w(x_t, t, c) - (e - x0) ||^2 + lambda || v_w(x_t, t, c) - sg[v_full(x_t, t, c)] ||^2)
    a_w     sg[ |g_full| / |g_w| ] over the weights that both have, averaged over steps, within limits

Every step trains the full width and ``subs`` others, drawn uniformly, on the same x_t, t, e and prompt; their
gradients add up in the shared weights, and one optimiser steps. With a teacher, the distance from the data is
replaced by scaling(L_task, {L_out, L_feat}, t) as in kd.py, for every width; the teacher is asked once.

ElasticSteps learns a few-step teacher's steps in the same way: x_k, on the teacher's own walk, and what it
says there take the place of x_t and e - x0, and no prompt is dropped.

Source: SnapGen++ (arXiv 2601.08303), eq. 4, 5 and 8. It names an adaptive scaling without saying which: that
of gradient norms, its limits and lambda = 0.5 are ours; and so is ElasticSteps, a first part before
K-DMD's on-policy steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..diffusion.flow import interpolate, velocity
from ..diffusion.times import few_step, logit_normal, shifted
from ..nn.finite import finite
from ..nn.taps import tap
from ..types import Batch, Cond
from .kd import Embed, Features, emptied, per_sample
from .scaling import MultiLevel, Scaling


class Nested(Protocol):
    """What models/supernet.py gives."""

    def at(self, width: str) -> Any: ...
    def shared_grads(self, width: str) -> list[Tensor]: ...


@dataclass(frozen=True)
class Teacher:
    """``features``: of each width, what is compared with the teacher's, if anything is."""

    network: nn.Module
    embed: Embed
    features: Mapping[str, Features] = field(default_factory=dict)
    scaling: Scaling = field(default_factory=MultiLevel)

    def names(self) -> list[str]:
        return sorted({f.teacher for f in self.features.values()})


@dataclass(frozen=True)
class Point:
    """What all widths are asked in one step."""

    x: Tensor
    t: Tensor
    drawn: Tensor  # t before it was shifted
    cond: Cond
    target: Tensor
    wanted: Tensor | None = None  # what the teacher says
    theirs: Mapping[str, Tensor] = field(default_factory=dict)  # its features


class Elastic:
    """``widths``: all names, the full one last. ``embed(batch) -> x0, cond``; ``parameters``: what trains.

    ``subs``: how many of the smaller ones are drawn per step; ``limits``: of a_w.
    """

    def __init__(
        self,
        net: Nested,
        widths: Sequence[str],
        embed: Embed,
        parameters: Sequence[nn.Parameter],
        teacher: Teacher | None = None,
        inner: float = 0.5,  # lambda
        subs: int = 1,
        drop: float = 0.1,
        shift: float = 1.0,
        limits: tuple[float, float] = (0.25, 4.0),
    ):
        *self.small, self.full = widths
        if not 0 <= subs <= len(self.small):
            raise ValueError(f"subs {subs}: expected 0 to {len(self.small)}, the widths below the full one")
        self.net, self.embed, self.teacher = net, embed, teacher
        self.inner, self.subs, self.drop, self.shift, self.limits = inner, subs, drop, shift, limits
        self.ratios = dict.fromkeys(self.small, 1.0)  # a_w, averaged
        self.players = {"supernet": list(parameters)}
        for features in teacher.features.values() if teacher else ():
            self.players["supernet"] += features.projector.parameters()

    def turn(self, step: int) -> tuple[str, ...]:
        return ("supernet",)

    def point(self, batch: Batch) -> Point:
        batch = emptied(batch, self.drop)
        x0, cond = self.embed(batch)
        drawn = logit_normal((len(x0),), device=x0.device)
        t, noise = shifted(drawn, self.shift), torch.randn_like(x0)
        x, target = interpolate(x0, noise, t), velocity(x0, noise)
        if not self.teacher:
            return Point(x, t, drawn, cond, target)
        asked = tap(self.teacher.network, self.teacher.names())
        with torch.no_grad():
            known = self.teacher.embed(batch)[1]
            wanted, theirs = finite("the teacher", asked, x, t, known)
        return Point(x, t, drawn, cond, target, wanted, theirs)

    def width(self, name: str, at: Point) -> tuple[Tensor, Tensor]:
        """What a width predicts, and its distance from the data and the teacher."""
        features = self.teacher.features.get(name) if self.teacher else None
        v, mine = tap(self.net.at(name), [features.student] if features else [])(at.x, at.t, at.cond)
        task = per_sample(v, at.target)
        if not self.teacher or at.wanted is None:
            return v, task.mean()
        levels = {"out": per_sample(v, at.wanted)}
        if features:
            levels["feat"] = features.distance(mine[features.student], at.theirs[features.teacher], at.x)
        return v, self.teacher.scaling(task, levels, at.drawn)

    def scale(self, name: str) -> float:
        low, high = self.limits
        return min(max(self.ratios[name], low), high)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        at = self.point(batch)
        chosen = [self.small[i] for i in torch.randperm(len(self.small))[: self.subs].tolist()]
        before = {name: self.net.shared_grads(name) for name in chosen}
        v_full, loss = self.width(self.full, at)
        yield {"loss": loss, self.full: loss}
        whole = {name: difference(self.net.shared_grads(name), before[name]) for name in chosen}
        for name in chosen:
            before_sub, scale = self.net.shared_grads(name), self.scale(name)
            v, task = self.width(name, at)
            inner = per_sample(v, v_full.detach()).mean()
            yield {"loss": scale * (task + self.inner * inner), name: task, f"{name}_inner": inner}
            own = difference(self.net.shared_grads(name), before_sub) / scale
            if own > 0:
                self.ratios[name] = 0.99 * self.ratios[name] + 0.01 * float(whole[name] / own)

    def state_dict(self) -> dict[str, Any]:
        return {"ratios": dict(self.ratios)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ratios |= state["ratios"]


class ElasticSteps(Elastic):
    """All widths learn what a few-step teacher says on its own walk.

    Batches hold walks, x (B, K, 2, C, H, W): x_k at s_k and the teacher's v(x_k, s_k). ``levels``: s_0 to
    s_(K-1), without the final 0. The other arguments are Elastic's; there is no ``teacher`` to ask.
    """

    def __init__(self, *args: Any, levels: Sequence[float], **options: Any):
        super().__init__(*args, **options)
        self.levels = few_step(levels)[:-1].float()

    def point(self, batch: Batch) -> Point:
        walks, cond = self.embed(batch)
        if walks.shape[1:3] != (len(self.levels), 2):
            raise ValueError(f"walks of {tuple(walks.shape[1:3])}, expected ({len(self.levels)}, 2)")
        k = torch.randint(len(self.levels), (len(walks),))
        t = self.levels[k].to(walks.device)
        x, v = walks[torch.arange(len(walks)), k].unbind(1)
        return Point(x, t, t, cond, v)


def difference(after: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Norm of what a backward pass has added."""
    return torch.stack([(a.float() - b.float()).square().sum() for a, b in zip(after, before)]).sum().sqrt()
