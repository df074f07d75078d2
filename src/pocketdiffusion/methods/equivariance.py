"""Scale equivariance: a smaller latent should decode to a smaller picture.

    h' ~ U{ceil(h/4) .. floor(h/2)},   z_lo = resize(z, h'),   x_lo = resize(x, f h')
    term = |decode(z_lo) - x_lo|            weight alpha = 0.25; of clips, space only

Source: "Improving the Diffusability of Autoencoders" (Skorokhodov et al. 2025, arXiv 2502.14831). What
differs here: both are resized with antialiasing, without which a factor of 3 picks single pixels; h' is drawn
among whole latent sizes within the paper's factors of 2 to 4, so that sizes always match; and the distance is
L1 unless another is given.

EQ-VAE's rule (Kouzelis et al. 2025, arXiv 2502.09509) is another: in half of the steps, z and x are both
scaled (8/32 to 31/32) and turned (by one to three quarters), and that is all that is decoded. In a quarter of
the other steps x is made smaller before it is encoded (by how much is not known to us; here as above).
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn import functional as F

from .autoencode import Change, Distance, Pass, Term, View, frames, l1


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing; of clips (B, C, T, H, W) every frame."""
    y = F.interpolate(frames(x), size, mode="bilinear", antialias=True)
    return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2) if x.ndim == 5 else y


def smaller(size: tuple[int, int], low: float = 0.25, high: float = 0.5) -> tuple[int, int]:
    """A random whole size between ``low`` and ``high`` times ``size``, of about the same proportions."""
    h, w = size
    new = int(torch.randint(ceil(h * low), max(ceil(h * low), int(h * high)) + 1, ()))
    return new, max(1, round(w * new / h))


def scale_equivariance(factor: int, distance: Distance = l1) -> Term:
    """``factor``: pixels per latent position and side."""

    def term(found: Pass) -> Tensor:
        h, w = smaller((found.z.shape[-2], found.z.shape[-1]))
        expected = resized(found.x, (factor * h, factor * w))
        return distance(found.autoencoder.decode(resized(found.z, (h, w))).float(), expected)

    return term


def eq_vae(factor: int, often: float = 0.5, prior: float = 0.25) -> View:
    """A view for Autoencode: x and z scaled and turned alike in ``often`` of the steps, and in ``prior`` of
    the others x made smaller before it is encoded."""

    def view(x: Tensor) -> tuple[Tensor, Change | None]:
        scale, turns = int(torch.randint(8, 32, ())) / 32, int(torch.randint(1, 4, ()))
        # positions of the latent
        h, w = (max(1, round(side // factor * scale)) for side in x.shape[-2:])

        def change(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            pair = resized(x, (factor * h, factor * w)), resized(z, (h, w))
            return pair[0].rot90(turns, (-2, -1)), pair[1].rot90(turns, (-2, -1))

        if torch.rand(()) < often:
            return x, change
        return resized(x, (factor * h, factor * w)) if torch.rand(()) < prior else x, None

    return view
