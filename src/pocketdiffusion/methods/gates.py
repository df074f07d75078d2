"""Gates learn which branches may rest, on a frozen denoiser: LazyDiT's two-step scheme.

    p odd;  x = (1 - s) x0 + s e at s = times[p - 1]
    full model at s: every branch's output is kept;  one Euler step to t = times[p]
    v       full model at t
    v_hat   gated model at t: a branch gives k F(z) + (1 - k) kept
    loss    mean (1 - t)^2 (v - v_hat)^2 + sum over kinds rho mean_b sum_branches k

Only gates of odd p are reached, so that no output is older than one step and at most half of the branches
rest. (1 - t)^2 makes the error that of e, as the paper's is. Nothing is guided in training; 10 % of the
captions are emptied, the same in all three calls. Source: LazyDiT (arXiv 2412.12444) and its official code,
whose step number counts the other way (T - 1 - p).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.flow import interpolate
from ..nn.gate import Compute, Gates, switched
from ..types import Batch
from .kd import Embed, emptied


class LearnGates:
    """``times``: the levels at which the sampler calls the denoiser, decreasing, without the final 0.

    ``rho``: the weight of being computed, by the last part of a branch's name ("attn", "mlp").
    """

    def __init__(
        self,
        model: nn.Module,
        gates: Gates,
        embed: Embed,
        times: Sequence[float],
        rho: Mapping[str, float],
        drop: float = 0.1,
    ):
        if len(times) != gates.steps or len(times) < 2:
            raise ValueError(
                f"{len(times)} times for gates of {gates.steps} steps: expected as many, 2 or more"
            )
        if unknown := {n.rpartition(".")[2] for n in gates.names} - set(rho):
            raise ValueError(f"no rho for {sorted(unknown)[0]!r}")
        self.network, self.hub = switched(model, gates.names)
        self.gates, self.embed, self.drop, self.rho = gates, embed, drop, dict(rho)
        self.times = torch.tensor([float(t) for t in times])
        self.players = {"gates": list(gates.parameters())}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("gates",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        x0, cond = self.embed(emptied(batch, self.drop))
        p = 2 * int(torch.randint(self.gates.steps // 2, ())) + 1
        s, t = (self.times[i].to(x0.device).expand(len(x0)) for i in (p - 1, p))
        x, kept, k = interpolate(x0, torch.randn_like(x0), s), {}, {}

        def keep(name: str, z: Tensor, compute: Compute) -> Tensor:
            kept[name] = compute(None)
            return kept[name]

        def blend(name: str, z: Tensor, compute: Compute) -> Tensor:
            k[name] = self.gates.keep(name, p, z)
            share = k[name].view(-1, *[1] * (kept[name].ndim - 1)).to(kept[name].dtype)
            return share * compute(None) + (1 - share) * kept[name]

        try:
            with torch.no_grad():
                self.hub.rule = keep
                x = x + (t - s).view(-1, 1, 1, 1) * self.network(x, s, cond)
                self.hub.rule = None
                wanted = self.network(x, t, cond)
            self.hub.rule = blend
            found = self.network(x, t, cond)
        finally:
            self.hub.rule = None
        error = ((1 - t).square() * (found.float() - wanted.float()).square().flatten(1).mean(1)).mean()
        kinds: dict[str, list[Tensor]] = {}
        for name, value in k.items():
            kinds.setdefault(name.rpartition(".")[2], []).append(value.mean())
        busy = {kind: torch.stack(values).sum() for kind, values in kinds.items()}
        cost = sum(self.rho[kind] * value for kind, value in busy.items())
        shares = {f"keep_{kind}": value / len(kinds[kind]) for kind, value in busy.items()}
        yield {"loss": error + cost, "error": error, **shares}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
