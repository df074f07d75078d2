"""Trains an autoencoder: reconstruction, a KL term, and the terms that a recipe adds.

    mean, logvar = posterior(x),   z = mean + exp(logvar / 2) e + noise e'
    y    = decode(z)               or decode(z, first frame) in the rows where m = 1, m ~ Bernoulli(told)
    loss = mean |y - x| + beta mean 1/2 (mean^2 + exp(logvar) - 1 - logvar) + sum_i w_i term_i(x, z, y)

The form is that of latent diffusion (Rombach et al. 2022); ``told`` is H3AE's omni objective (Wu et al. 2025,
eq. 1; its probability is not published), which teaches one decoder to work with and without a clean first
frame. ``noise`` (ours, 0 by default) teaches a decoder to forgive the small errors of a denoiser. Terms are
in consistency.py, equivariance.py, chopping.py, perceptual.py and wavelet.py; a GAN in patch_gan.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import Batch


@dataclass(frozen=True)
class Pass:
    """One way through an autoencoder, as terms see it."""

    autoencoder: Any
    x: Tensor  # pictures (B, 3, H, W) or clips (B, 3, T, H, W)
    mean: Tensor
    logvar: Tensor
    z: Tensor
    y: Tensor  # what was decoded from z


Term = Callable[[Pass], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]
# x, z -> what is expected in place of x, what is decoded in place of z
Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# x -> what is encoded in its place, and what is changed after that, if anything
View = Callable[[Tensor], tuple[Tensor, Change | None]]


@dataclass(frozen=True)
class Weighed:
    """A term, its weight, and the steps over which that grows from nothing."""

    term: Term
    weight: float
    ramp: int = 0

    def at(self, step: int) -> float:
        return self.weight * min(1.0, (step + 1) / (self.ramp + 1))


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over all elements of KL(N(mean, exp(logvar)) || N(0, 1)), in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def l1(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).abs().mean()


def frames(x: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) as pictures (B T, C, H, W), which pictures are already."""
    return x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x


class Autoencode:
    """``autoencoder`` is any types.Autoencoder that is a module; what of it requires gradients is trained.

    ``terms``: name -> Weighed, added to the loss and reported by name; one of weight 0 is not computed.
    ``view`` may change what is encoded, what is decoded and what is expected of it (equivariance.eq_vae).
    ``told``: how often a clip's first frame is given to the decoder, per row.
    """

    def __init__(
        self,
        autoencoder: Any,
        beta: float = 1e-4,
        noise: float = 0.0,
        terms: Mapping[str, Weighed] | None = None,
        told: float = 0.0,
        distance: Distance = l1,
        view: View | None = None,
    ):
        self.autoencoder, self.beta, self.noise, self.told = autoencoder, beta, noise, told
        self.terms = {name: term for name, term in (terms or {}).items() if term.weight}
        if view and self.terms:
            raise ValueError("a view changes what is decoded, so terms have no meaning beside it")
        self.distance, self.view, self.step = distance, view, 0
        self.players = {"autoencoder": [p for p in autoencoder.parameters() if p.requires_grad]}

    def turn(self, step: int) -> tuple[str, ...]:
        self.step = step
        return ("autoencoder",)

    def run(self, x: Tensor) -> Pass:
        """One pass, sampled."""
        x, change = self.view(x) if self.view else (x, None)
        mean, logvar = (part.float() for part in self.autoencoder.posterior(x))
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        if self.noise:
            z = z + self.noise * torch.randn_like(mean)
        if change:
            x, z = change(x, z)
        if self.told and x.ndim == 5:
            told = (torch.rand(len(x), device=x.device) < self.told).to(z)
            return Pass(
                self.autoencoder, x, mean, logvar, z, self.autoencoder.decode(z, x[:, :, 0], told).float()
            )
        return Pass(self.autoencoder, x, mean, logvar, z, self.autoencoder.decode(z).float())

    def parts(self, found: Pass) -> dict[str, Tensor]:
        """The loss and what it is made of."""
        error, divergence = self.distance(found.y, found.x), kl(found.mean, found.logvar)
        more = {name: weighed.term(found) for name, weighed in self.terms.items()}
        loss = error + self.beta * divergence
        for name, value in more.items():
            loss = loss + self.terms[name].at(self.step) * value
        return {"loss": loss, "l1": error, "kl": divergence, **more}

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        yield self.parts(self.run(batch.x))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def taught(decode: Callable[[Tensor], Tensor]) -> Term:
    """How far from what a teacher's ``decode`` makes of the same latents: distillation of a decoder."""

    def term(found: Pass) -> Tensor:
        with torch.no_grad():
            target = decode(found.z).float()
        return l1(found.y, target)

    return term
