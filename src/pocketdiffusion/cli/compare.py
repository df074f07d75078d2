"""Frames beside what became of them: panels to look at, and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 256  # smaller pictures are shown enlarged, by the largest whole factor that stays below
GAP = 2  # pixels between two pictures


def panels(x: Tensor, y: Tensor, gain: float) -> Iterator[Tensor]:
    """Frames (T, 3, H, W) twice -> pictures of x, y and ``gain`` |x - y| (black: none), side by side."""
    import torch

    k = max(1, SIDE // max(x.shape[-2:]))
    difference = (gain * (x - y).abs() - 1).clamp(max=1)
    rows = [v.repeat_interleave(k, -1).repeat_interleave(k, -2).cpu() for v in (x, y, difference)]
    bar = torch.zeros(*rows[0].shape[:-1], GAP)
    yield from torch.cat([rows[0], bar, rows[1], bar, rows[2]], dim=-1)


class Tally:
    """Measures of frames (T, 3, H, W) that come in chunks, in order; means as of the whole clip."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {"psnr": [], "ssim": [], "flicker": []}
        self.last: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        import torch

        from ..eval.reconstruction import WINDOW, flicker, psnr, ssim

        self.found["psnr"] += psnr(x, y).tolist()
        if min(x.shape[-2:]) >= WINDOW:
            self.found["ssim"] += ssim(x, y).tolist()
        a, b = (x, y) if self.last is None else (torch.cat(pair) for pair in zip(self.last, (x, y)))
        if len(a) > 1:
            change = flicker(a.transpose(0, 1)[None], b.transpose(0, 1)[None])
            self.found["flicker"] += change.tolist() * (len(a) - 1)
        self.last = x[-1:], y[-1:]

    def means(self) -> dict[str, float | None]:
        """psnr (dB per frame), the worst frame's, ssim and flicker; None for what they do not have."""
        means: dict[str, float | None] = {k: sum(v) / len(v) if v else None for k, v in self.found.items()}
        return {"psnr": means["psnr"], "psnr_worst": min(self.found["psnr"], default=None), **means}
