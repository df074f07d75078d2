"""Feed-forward layers: MLP (tanh-approximated GELU) and GEGLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """down(gelu(up(x))), (..., dim) -> (..., out); out is dim unless given."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class GEGLU(nn.Module):
    """down(gelu(gate(x)) * up(x)) (Shazeer 2020). Separate gate and up weights suit edge runtimes."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(dim, hidden)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))
