"""Knowledge distillation across architectures: by data, a teacher's output, its features.

    x_t    = (1 - t) x0 + t e,   t ~ logit-normal(0, 1), then shifted;   the same x_t, t, prompt for both
    L_task = || v(x_t, t, c) - (e - x0) ||^2
    L_out  = || v(x_t, t, c) - v_T(x_t, t, c') ||^2
    L_feat = || phi(f(x_t, t, c)) - f_T(x_t, t, c') ||^2       phi a trained projector, thrown away afterwards
    loss   = scaling(L_task, {L_out, L_feat}, t)               scaling.py; S + S by default

per sample, as means over elements. The teacher is frozen and predicts conditionally (w = 1), so that the
student can still be guided. c and c' are the same captions, each read by its own text encoder; 10 % of the
captions are emptied. Features are those of the last blocks. Source: SnapGen (2024); what it does not say
(the projector's form, the drop) is ours. Both networks must share one latent space (pipeline.same_latents).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..diffusion.flow import interpolate, velocity
from ..diffusion.times import logit_normal, shifted
from ..nn.finite import finite
from ..nn.projector import Projector, as_map
from ..nn.taps import tap
from ..types import Batch, Cond
from .scaling import MultiLevel, Scaling

Embed = Callable[[Batch], tuple[Tensor, Cond]]
ToMap = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """Which submodules are compared, and the projector from the student's maps to the teacher's.

    ``to_map``: how the teacher's tokens become a map for its input; a foreign teacher brings its own.
    ``normalised``: every place of both maps is first brought to mean 0 and variance 1, so that the distance
    does not depend on the size of the teacher's features.
    """

    student: str
    teacher: str
    projector: nn.Module
    to_map: ToMap = as_map
    normalised: bool = False

    def distance(self, mine: Tensor, theirs: Tensor, x: Tensor) -> Tensor:
        """L_feat (B,)."""
        projected, wanted = self.projector(as_map(mine, x)), self.to_map(theirs, x)
        assert projected.shape == wanted.shape, (projected.shape, wanted.shape)
        if self.normalised:
            projected, wanted = (
                F.layer_norm(m.float().movedim(1, -1), m.shape[1:2]) for m in (projected, wanted)
            )
        return per_sample(projected, wanted)


@torch.no_grad()
def features_between(
    student: nn.Module,
    teacher: nn.Module,
    names: tuple[str, str],
    example: tuple[Tensor, Tensor, Cond, Cond],
    to_map: ToMap = as_map,
    pool: bool = False,
) -> Features:
    """The submodules ``names`` of both with a projector that fits, found on one ``example``: x, t, c, c'."""
    x, t, cond, cond_teacher = example
    mine = as_map(tap(student, names[:1])(x, t, cond)[1][names[0]], x)
    theirs = to_map(tap(teacher, names[1:])(x, t, cond_teacher)[1][names[1]], x)
    return Features(*names, Projector.between(mine, theirs, pool).to(x.device), to_map)


def per_sample(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of every row, fp32: (B, ...) -> (B,)."""
    return (a.float() - b.float()).square().flatten(1).mean(1)


def emptied(batch: Batch, share: float, null: Cond | None = None) -> Batch:
    """The batch with that share of its captions replaced by the empty one, of embeddings by ``null``."""
    if isinstance(batch.text, Cond):
        assert null is not None, "embeddings that were cached are emptied by that of the empty caption"
        drop = torch.rand(len(batch.x)).to(batch.text.tokens.device) < share
        return replace(batch, text=batch.text.where(drop, null))
    gone = (torch.rand(len(batch.text)) < share).tolist()
    return replace(batch, text=["" if drop else said for drop, said in zip(gone, batch.text)])


class Distillation:
    """``embed(batch) -> x0, cond`` for each of the two; batches carry captions.

    Or, where one text encoder serves both, its cached embeddings, with ``null`` that of the empty caption.

    ``parameters``: of the student, and of its text encoder if that trains; the projector's are added.
    ``teacher`` None: nothing is distilled (the control of a comparison).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        embed: Embed,
        embed_teacher: Embed,
        parameters: Sequence[nn.Parameter],
        features: Features | None = None,
        scaling: Scaling | None = None,
        drop: float = 0.1,
        shift: float = 1.0,
        null: Cond | None = None,
    ):
        self.null = null
        self.embed, self.embed_teacher, self.features = embed, embed_teacher, features
        self.student = tap(student, [features.student] if features else [])
        self.teacher = tap(teacher, [features.teacher] if features else []) if teacher else None
        self.scaling, self.drop, self.shift = scaling or MultiLevel(), drop, shift
        self.players = {"student": list(parameters)}
        if features:
            self.players["student"] += features.projector.parameters()

    def turn(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def told(self, x: Tensor, t: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The teacher's prediction and features, with the captions as its own encoder reads them."""
        assert self.teacher
        return self.teacher(x, t, self.embed_teacher(batch)[1])

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        batch = emptied(batch, self.drop, self.null)
        x0, cond = self.embed(batch)
        drawn = logit_normal((len(x0),), device=x0.device)
        t, noise = shifted(drawn, self.shift), torch.randn_like(x0)
        x = interpolate(x0, noise, t)
        v, mine = self.student(x, t, cond)
        task, levels = per_sample(v, velocity(x0, noise)), {}
        if self.teacher:
            with torch.no_grad():
                wanted, theirs = finite("the teacher", self.told, x, t, batch)
            levels["out"] = per_sample(v, wanted)
            if self.features:
                named = mine[self.features.student], theirs[self.features.teacher]
                levels["feat"] = self.features.distance(*named, x)
        means = {name: level.mean() for name, level in levels.items()}
        yield {"loss": self.scaling(task, levels, drawn), "task": task.mean(), **means}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
