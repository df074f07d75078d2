"""Data with a closed form: where the true velocity is known, everything can be checked against the truth."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pocketdiffusion.diffusion.flow import expand, to_v
from pocketdiffusion.types import Cond


@dataclass(frozen=True)
class Gaussian:
    """Denoisers of x0 ~ N(mean, std^2), elementwise and independent. The mean is read from ``cond``.

    m_t = (1 - t) mean                 V_t = (1 - t)^2 std^2 + t^2          x_t ~ N(m_t, V_t)
    v(x, t) = E[e - x0 | x_t = x] = -mean + (t - (1 - t) std^2) / V_t (x - m_t)
    The ODE dx/dt = v keeps (x - m_t) / sqrt(V_t) constant.
    """

    std: float = 0.5

    def cond(self, *means: float) -> Cond:
        tokens = torch.tensor(means, dtype=torch.float64).view(-1, 1, 1)
        return Cond(tokens, torch.ones(len(means), 1, dtype=torch.bool))

    def variance(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 * self.std**2 + t**2

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        t, mean = expand(t, x), expand(cond.tokens[:, 0, 0], x)
        slope = (t - (1 - t) * self.std**2) / self.variance(t)
        return -mean + slope * (x - (1 - t) * mean)

    def ode(self, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
        """The exact solution at level ``s`` of the ODE that passes through ``x`` at ``t``."""
        t, s, mean = expand(t, x), expand(s, x), expand(cond.tokens[:, 0, 0], x)
        return (1 - s) * mean + torch.sqrt(self.variance(s) / self.variance(t)) * (x - (1 - t) * mean)

    def student(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """A perfect few-step student: its x0 is the end of the ODE, a sample and not a mean."""
        return to_v(x, self.ode(x, t, torch.zeros_like(t), cond), t)


@pytest.fixture
def gaussian() -> Gaussian:
    return Gaussian()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
