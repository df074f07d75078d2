"""Frechet and kernel distances between two sets of features.

    Frechet   |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))      of two Gaussians: FID, Heusel et al. 2017
    kernel    mean k(a, a') + mean k(b, b') - 2 mean k(a, b),  a != a'         KID, Binkowski et al. 2018
              k(x, y) = (x . y / D + 1)^3;  unbiased, so it may be a little negative

``features`` is any callable, pictures (B, 3, H, W) in [-1, 1] -> (B, D): the ``features`` of a trained
SceneNet (eval/features.py), or ``inception(path)``. Distances of different feature networks, or of sets of
different size, are not comparable: the Frechet distance of a small sample is too large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]


class Gaussian:
    """Mean and covariance of rows that arrive in pieces, in float64 on the CPU (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros((), dtype=torch.float64)  # (D,) once something was added
        self.scatter = torch.zeros((), dtype=torch.float64)  # (D, D) sum of (x - mean) (x - mean)^T

    def add(self, rows: Tensor) -> Gaussian:
        """``rows``: (B, D)."""
        rows = rows.detach().cpu().double()
        total, mean = self.n + len(rows), rows.mean(0)
        gap = mean - self.mean
        self.scatter = self.scatter + (rows - mean).T @ (rows - mean)
        self.scatter = self.scatter + torch.outer(gap, gap) * self.n * len(rows) / total
        self.mean = self.mean + gap * len(rows) / total
        self.n = total
        return self

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.n}")
        return self.scatter / (self.n - 1)


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def gaussian_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """The Frechet (2-Wasserstein) distance, squared, between two Gaussians."""
    half = root(cov_a)
    # the eigenvalues of C_a C_b are those of the symmetric C_a^(1/2) C_b C_a^(1/2)
    cross = torch.linalg.eigvalsh(half @ cov_b @ half).clamp(min=0).sqrt().sum()
    gap = (mean_a - mean_b).square().sum()
    return (gap + cov_a.trace() + cov_b.trace() - 2 * cross).clamp(min=0).item()


def frechet(a: Gaussian | Tensor, b: Gaussian | Tensor) -> float:
    """Between two sets, each given as its features (N, D) or as its statistics."""
    a, b = (Gaussian().add(s) if isinstance(s, Tensor) else s for s in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of different width: {tuple(a.mean.shape)} and {tuple(b.mean.shape)}")
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """The kernel between all rows of (N, D) and (M, D): (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy between rows (N, D) and (M, D)."""

    def within(x: Tensor) -> Tensor:
        k = polynomial(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return (within(a) + within(b) - 2 * polynomial(a, b).mean()).item()


def kernel(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of ``mmd`` over random subsets of both sets (all rows of a smaller one)."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"the kernel distance needs at least 2 rows in each set, got {len(a)} and {len(b)}")
    g = torch.Generator().manual_seed(seed)
    a, b = a.detach().cpu().double(), b.detach().cpu().double()

    def some(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=g)[:size]]

    values = torch.tensor([mmd(some(a), some(b)) for _ in range(subsets)])
    return values.mean().item(), values.std(correction=0).item()


@torch.no_grad()
def extract(features: Features, pictures: Iterable[Tensor]) -> Tensor:
    """Features (N, D) of all ``pictures``, which come in batches."""
    return torch.cat([features(x).float().cpu() for x in pictures])


def inception(path: str | Path, device: torch.device | str = "cpu") -> Features:
    """The Inception features (2048) of the published FID, with torch-fidelity's weights file at ``path``."""
    import pickle

    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:
        # a RuntimeError is what a torchvision built for another torch raises
        needs = (
            "torch-fidelity and a torchvision that fits the installed torch (no extra of ours brings them)"
        )
        raise ValueError(f"Inception features need {needs}: {error}") from None
    try:
        # torch-fidelity unpickles whatever it is given, so only plain tensors are let through
        torch.load(path, weights_only=True, map_location="meta")
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path}: not torch-fidelity's weights-inception-2015-12-05-*.pth ({reason})"
        ) from None
    network: Any = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    )
    network.to(device)

    def features(x: Tensor) -> Tensor:
        return network(((x.to(device) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))[0]

    return features
