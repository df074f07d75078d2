"""Latent consistency: what was reconstructed should be encoded as the original was.

    q1 = N(mu, sigma^2) from x;   q2 = N(mu', sigma'^2) from y = decode(z), by the same encoder held constant
    loss = mean KL(q2 || sg[q1])
         = mean [ log(sigma / sigma') + (sigma'^2 + (mu' - mu)^2) / (2 sigma^2) - 1/2 ]

A perceptual loss whose feature network is the encoder itself. Source: H3AE (Wu et al. 2025, eq. 3), which
has a KL between the two posteriors; its direction and weight are not known to us. Ours: this direction; all
in units of the means' own deviation, per channel of the batch, which a KL does not notice but for the clamp
of log variances to [-8, 4]; and the mean squared difference of the means as the other form.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from .autoencode import Pass

CLAMP = (-8.0, 4.0)  # of log variances; those of a trained video autoencoder are tiny, and divided by


@contextmanager
def constant(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through ``module`` and do not reach its parameters."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def kl_between(mean2: Tensor, logvar2: Tensor, mean1: Tensor, logvar1: Tensor) -> Tensor:
    """Mean over elements of KL(N(mean2, exp(logvar2)) || N(mean1, exp(logvar1))), in nats."""
    spread = (logvar2 - logvar1).exp() + (mean2 - mean1).square() * (-logvar1).exp()
    return 0.5 * (logvar1 - logvar2 + spread - 1).mean()


def again(found: Pass) -> tuple[Tensor, Tensor]:
    """The posterior of the reconstruction, the encoder's weights constant."""
    with constant(found.autoencoder):
        mean, logvar = found.autoencoder.posterior(found.y)
    return mean.float(), logvar.float()


def scale(mean: Tensor) -> Tensor:
    """The deviation of every channel of means (B, C, ...), constant: (1, C, 1, ...)."""
    rest = [d for d in range(mean.ndim) if d != 1]
    return mean.detach().std(rest, keepdim=True).clamp(min=1e-4)


def latent_kl(found: Pass) -> Tensor:
    """KL(q2 || sg[q1]); in nats per element."""
    mean, logvar = again(found)
    unit = scale(found.mean)
    variances = (v - 2 * unit.log() for v in (logvar, found.logvar.detach()))
    second, first = (v.clamp(*CLAMP) for v in variances)
    return kl_between(mean / unit, second, found.mean.detach() / unit, first)


def latent_mse(found: Pass) -> Tensor:
    """mean (mu' - sg[mu])^2 / std^2: the form that no small variance can blow up."""
    return ((again(found)[0] - found.mean.detach()) / scale(found.mean)).square().mean()
