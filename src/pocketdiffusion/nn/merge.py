"""Tokens merged by cells of 2 x 2 and back, and a stream that meets an earlier one (U-ViT).

    merge      W [four tokens of a cell] + b          begins as their mean
    unmerge    four tokens, [W x + b]                 begins as copies
    fuse       W [x, earlier]                         begins as x

Merging and back is the identity at first on maps that are constant over each cell.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Merge(nn.Linear):
    """(B, h w, D) -> (B, h/2 w/2, D) by cells of 2 x 2; begins as their mean."""

    def __init__(self, dim: int):
        super().__init__(4 * dim, dim)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.out_features).repeat(1, 4) / 4)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:  # type: ignore[override]
        cells = x.unflatten(1, (h // 2, 2, w // 2, 2)).permute(0, 1, 3, 2, 4, 5)
        return super().forward(cells.flatten(3).flatten(1, 2))


class Unmerge(nn.Linear):
    """(B, h/2 w/2, D) -> (B, h w, D); begins by copying."""

    def __init__(self, dim: int):
        super().__init__(dim, 4 * dim)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.in_features).repeat(4, 1))
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:  # type: ignore[override]
        cells = super().forward(x).unflatten(2, (2, 2, -1)).unflatten(1, (h // 2, w // 2))
        return cells.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)


class Fuse(nn.Linear):
    """W [x, earlier]; begins as x."""

    def __init__(self, dim: int):
        super().__init__(2 * dim, dim, bias=False)

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.out_features, self.in_features))

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([x, earlier], -1))
