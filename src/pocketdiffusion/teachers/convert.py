"""Other libraries' noising processes: how a prediction at one of their levels becomes v.

Flow matching (SD3, FLUX, Qwen-Image, Sana, Wan, LTX-Video) is our path already; its networks are told 1000 t.

Variance preserving (SD1.5, SD2, SDXL, PixArt-alpha, DiT): y = a_k x0 + b_k e, a_k^2 + b_k^2 = 1, 0 <= k < K.
Level k has our signal-to-noise ratio at t_k = b_k / (a_k + b_k), and there

    y = x_t / n,  n = sqrt((1 - t)^2 + t^2),  a = (1 - t) / n,  b = t / n
    epsilon         e = net(y, k),                     x0 = (y - b e) / a
    v_prediction    w = net(y, k),  e = b y + a w,     x0 = a y - b w
    sample          x0 = net(y, k),                    e = (y - a x0) / b
    v = e - x0

Between two levels k is interpolated in t. Outside [t_0, t_(K-1)] the network has seen nothing: it is asked at
the nearest level, as samplers do that start from pure noise, and of its two answers the one is used that the
division by 1 - t or by t cannot blow up:

    t > t_(K-1):   v = (x_t - x0) / t              t < t_0:   v = (e - x_t) / (1 - t)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diffusion.flow import expand
from .autoencoders import FAULTS

# input, number of the step as the network is told it -> prediction
Network = Callable[[Tensor, Tensor], Tensor]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Flow:
    """The network predicts v; ``shift`` is that of its own sampler, None where it follows the token count."""

    shift: float | None = 1.0
    steps: int = 1000
    config: Mapping[str, Any] = field(default_factory=dict)  # the scheduler's, as diffusers writes it

    def velocity(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """v at ``x`` for t of (B,) or (B, T)."""
        return network(x, t * self.steps)


@dataclass(frozen=True)
class Discrete:
    """The network predicts epsilon, v or x0 on a variance-preserving path; ``alphas`` (K,) are a_k^2."""

    alphas: Tensor
    prediction: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction_type {self.prediction!r}: expected one of {', '.join(PREDICTIONS)}")
        if self.prediction == "epsilon" and not self.alphas.min() > 0:
            raise ValueError(
                "prediction_type 'epsilon' with a last step of pure noise (rescale_betas_zero_snr):"
                " expected v_prediction or sample, epsilon says nothing there"
            )

    @property
    def levels(self) -> Tensor:
        """t_k (K,), increasing, float64."""
        a, b = self.alphas.double().sqrt(), (1 - self.alphas.double()).sqrt()
        return b / (a + b)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The step k, a real number, whose level is nearest to ``t`` (B,), and that level."""
        levels = self.levels.to(t.device, t.dtype)
        t = t.clamp(levels[0], levels[-1])
        above = torch.searchsorted(levels, t).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        return above - 1 + (t - low) / (high - low), t

    def velocity(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """v at ``x`` for t of (B,), in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, t = x.to(dtype), t.to(dtype)
        k, level = self.at(t)
        size = ((1 - level).square() + level.square()).sqrt()
        a, b = expand((1 - level) / size, x), expand(level / size, x)
        y = x / expand(((1 - t).square() + t.square()).sqrt(), x)
        x0, e = self.solve(network(y, k).to(dtype), y, a, b)
        t, level = expand(t, x), expand(level, x)
        first, last = self.levels[[0, -1]].tolist()
        # all three are finite in every row, because a gradient passes through all of them
        late, early = (x - x0) / t.clamp(min=last), (e - x) / (1 - t.clamp(max=first))
        return torch.where(t == level, e - x0, torch.where(t > level, late, early))

    def solve(self, found: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and e from the prediction ``found`` at y = a x0 + b e."""
        if self.prediction == "epsilon":
            return (y - b * found) / a, found
        if self.prediction == "v_prediction":
            return a * y - b * found, b * y + a * found
        return found, (y - a * found) / b


Process = Flow | Discrete


def process(config: Mapping[str, Any], source: str) -> Process:
    """The process that a ``scheduler_config.json`` of diffusers describes; ValueError names ``source``."""
    import diffusers

    name = config.get("_class_name")
    kind: Any = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(
            f"{source}: _class_name {name!r} is no scheduler of diffusers {diffusers.__version__}"
        )
    try:
        scheduler: Any = kind.from_config(dict(config))
        told = scheduler.config
        if str(name).startswith("FlowMatch"):
            shift = None if told.get("use_dynamic_shifting") else told.get("shift")
            return Flow(shift, told.num_train_timesteps, config)
        if told.get("prediction_type") == "flow_prediction":
            return Flow(told.get("flow_shift"), told.num_train_timesteps, config)
        if hasattr(scheduler, "alphas_cumprod"):
            return Discrete(scheduler.alphas_cumprod, told.get("prediction_type", "epsilon"), config)
    except FAULTS as error:
        raise ValueError(f"{source}: {error}".splitlines()[0]) from None
    raise ValueError(f"{source}: {name} is not read, only flow matching and schedules of betas")
