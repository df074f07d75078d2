"""Trajectory distillation: a few long steps in place of a teacher's many short ones.

    1 = s_0 > s_1 > ... > s_K = 0       the student's levels
    x_k                                 where the teacher's own sampler, from noise x_0, is at level s_k
    k ~ U{0..K-1},   target = (x_(k+1) - x_k) / (s_(k+1) - s_k)
    loss = mean || v(x_k, s_k, c) - target ||^2

One Euler step of the student from s_k is then what the teacher does between s_k and s_(k+1). Both are
functions of the noise and the prompt alone, so nothing has to be averaged over; and the teacher's guidance
is in its trajectory, so the student needs none. No pictures are needed, only prompts.
Sources: Luhman and Luhman 2021 (arXiv 2101.02388) for one step; Salimans and Ho 2022 (arXiv 2202.00512), who
get there by halving. That all K steps are learned at once, straight from the teacher, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.times import few_step
from ..types import Batch, Cond, Denoiser
from .kd import per_sample


class Trajectory:
    """Batches hold whole trajectories, x (B, K + 1, C, H, W), from noise to picture, and their prompts.

    ``embed(batch) -> x, cond`` of the student. ``levels``: s_0 to s_(K-1), decreasing, without the final 0.
    """

    def __init__(
        self,
        student: Denoiser,
        embed: Callable[[Batch], tuple[Tensor, Cond]],
        parameters: Sequence[nn.Parameter],
        levels: Sequence[float],
    ):
        self.student, self.embed, self.levels = student, embed, few_step(levels).float()
        self.players = {"student": list(parameters)}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("student",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        path, cond = self.embed(batch)
        if path.shape[1] != len(self.levels):
            raise ValueError(f"trajectories of {path.shape[1]} points, expected {len(self.levels)}")
        rows, levels = torch.arange(len(path), device=path.device), self.levels.to(path.device)
        k = torch.randint(path.shape[1] - 1, rows.shape, device=path.device)
        x, ahead, t, s = path[rows, k], path[rows, k + 1], levels[k], levels[k + 1]
        target = (ahead - x) / (s - t)[:, None, None, None]
        errors = per_sample(self.student(x, t, cond), target)
        named = {
            f"at_{float(t):.2f}": errors[k == i].mean() for i, t in enumerate(levels[:-1]) if (k == i).any()
        }
        yield {"loss": errors.mean(), **named}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
