"""Trains an autoencoder: L1 reconstruction and a KL term on the posterior.

    mean, logvar = posterior(x),   z = mean + exp(logvar / 2) e + noise e'
    loss = mean |decode(z) - x| + beta mean 1/2 (mean^2 + exp(logvar) - 1 - logvar)

The form is that of latent diffusion (Rombach et al. 2022) without its perceptual and adversarial terms.
``noise`` (ours, 0 by default) teaches a decoder to forgive the small errors of a denoiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..types import Batch


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over all elements of KL(N(mean, exp(logvar)) || N(0, 1)), in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class Autoencode:
    """``autoencoder`` is any types.Autoencoder that is a module; what of it requires gradients is trained."""

    def __init__(self, autoencoder: Any, beta: float = 1e-4, noise: float = 0.0):
        self.autoencoder, self.beta, self.noise = autoencoder, beta, noise
        self.players = {"autoencoder": [p for p in autoencoder.parameters() if p.requires_grad]}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("autoencoder",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        mean, logvar = self.autoencoder.posterior(batch.x)
        mean, logvar = mean.float(), logvar.float()
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        if self.noise:
            z = z + self.noise * torch.randn_like(mean)
        l1 = (self.autoencoder.decode(z).float() - batch.x).abs().mean()
        divergence = kl(mean, logvar)
        yield {"loss": l1 + self.beta * divergence, "l1": l1, "kl": divergence}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
