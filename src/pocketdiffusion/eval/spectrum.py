"""Spectra of pictures and latents by block DCT, and the error of scale equivariance.

    C[k, n] = a_k cos(pi (2n + 1) k / (2B)),   a_0 = sqrt(1/B),  a_k = sqrt(2/B)
    D       = C X C^T                     of every B x B block of every channel, B = 8
    A_uv    = E|D_uv| / E|D_00|           the amplitude curve, read in zigzag order
    P_uv    = E D_uv^2                    the power curve; sum P = B^2 E X^2 (Parseval)
    HF      = sum_{i >= 32} P_i / sum_{i >= 1} P_i              i counts along the zigzag
    slope   = of the straight line through (i, log10 A_i), least squares
    SE      = mean |Dec(down z) - down x|

Source: Skorokhodov et al. 2025 (arXiv 2502.14831) for the plot and for what SE asks of a decoder. Ours: B,
HF, the slope, and the ratio of averages in A (one per block is unstable where D_00 is near 0, as in latents).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..methods.autoencode import frames
from ..methods.chopping import BLOCK, dct
from ..methods.equivariance import resized
from .reconstruction import fitted

HIGH = 32  # the first zigzag index that counts as high frequency


@lru_cache
def zigzag(size: int = BLOCK) -> tuple[int, ...]:
    """Row-major indices of a block's cells along its diagonals u + v: 0, 1, 8, 16, 9, 2, ..."""
    path: list[int] = []
    for s in range(2 * size - 1):
        rows = [u for u in range(size) if 0 <= s - u < size]
        path += [u * size + s - u for u in (rows if s % 2 else reversed(rows))]
    return tuple(path)


class Spectrum:
    """Of pictures (B, C, H, W) or clips (B, C, T, H, W), frame by frame, that arrive in batches.

    ``count`` pictures or frames were added; ``amplitude`` and ``power`` are (64,) in zigzag order, float64.
    """

    def __init__(self) -> None:
        self.count = self.blocks = 0
        self.sums = torch.zeros(2, BLOCK**2, dtype=torch.float64)  # of |D| and of D^2, in zigzag order

    @torch.no_grad()
    def add(self, x: Tensor) -> Spectrum:
        if x.ndim not in (4, 5):
            raise ValueError(f"expected (B, C, H, W) or (B, C, T, H, W), got {tuple(x.shape)}")
        x = frames(x)
        found = dct(x if x.dtype == torch.float64 else x.float()).reshape(-1, BLOCK**2)[:, list(zigzag())]
        self.sums += torch.stack((found.abs().sum(0), found.square().sum(0))).cpu().double()
        self.blocks += len(found)
        self.count += len(x)
        return self

    def mean(self, which: int) -> Tensor:
        if not self.blocks:
            raise ValueError("a spectrum of nothing: no picture was added")
        return self.sums[which] / self.blocks

    @property
    def amplitude(self) -> Tensor:
        """A, 1 at index 0."""
        mean = self.mean(0)
        return mean / mean[0].clamp(min=1e-12)

    @property
    def power(self) -> Tensor:
        """P, in squared units of what was added."""
        return self.mean(1)

    @property
    def levels(self) -> Tensor:
        """log10 of the amplitude curve, at least -12."""
        return self.amplitude.clamp(min=1e-12).log10()

    @property
    def high(self) -> float:
        """HF, between 0 and 1; 0 where there is no AC energy at all."""
        power = self.power
        return (power[HIGH:].sum() / power[1:].sum().clamp(min=1e-30)).item()

    @property
    def slope(self) -> float:
        """Decades per zigzag index; 0 is white noise, natural pictures fall."""
        index = torch.arange(BLOCK**2, dtype=torch.float64)
        index -= index.mean()
        return ((index * self.levels).sum() / index.square().sum()).item()


@torch.no_grad()
def curves(autoencoder: Any, batches: Iterable[Tensor], seed: int = 0) -> dict[str, Spectrum]:
    """Of the pixels, of the posterior's means, and of samples z = mean + exp(logvar / 2) e.

    ``batches``: pictures (B, 3, H, W) or clips (B, 3, T, H, W) on the autoencoder's device.
    """
    found = {name: Spectrum() for name in ("pixels", "latents", "sampled")}
    generator = torch.Generator().manual_seed(seed)
    for x in batches:
        mean, logvar = autoencoder.posterior(fitted(autoencoder, x))
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        found["pixels"].add(x)
        found["latents"].add(mean)
        found["sampled"].add(mean + (logvar / 2).exp() * noise)
    return found


@torch.no_grad()
def equivariance_error(autoencoder: Any, x: Tensor, size: int | tuple[int, int]) -> float:
    """SE of pictures or clips, in pixel units: z to ``size`` (height, width), x to factor times that.

    Antialiased on both sides: without, a factor of 3 would pick single pixels. The decoder's output is taken
    as it is, not clamped.
    """
    h, w = (size, size) if isinstance(size, int) else size
    x = fitted(autoencoder, x)
    z, factor = autoencoder.encode(x), autoencoder.config.factor
    if not (0 < h <= z.shape[-2] and 0 < w <= z.shape[-1]):
        raise ValueError(f"size {h} x {w}: latents of {z.shape[-2]} x {z.shape[-1]} can only be made smaller")
    wanted = resized(x, (factor * h, factor * w))
    return (autoencoder.decode(resized(z, (h, w))) - wanted).abs().mean().item()
