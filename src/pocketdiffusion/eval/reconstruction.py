"""How well an autoencoder gives its input back.

    PSNR        -10 log10(mean ((x - y) / 2)^2)              pixels in [-1, 1], so the peak is 2
    SSIM        mean of (2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2))
                over windows of 11 x 11, Gaussian 1.5; c_i = (K_i L)^2, K = .01, .03, L = 2; Wang et al. 2004
    perceptual  sum_l mean_hw |f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)||^2    LPIPS, Zhang et al. 2018, weights 1
    flicker     mean |(y_{t+1} - y_t) - (x_{t+1} - x_t)|                    ours
    frechet_clips    Frechet distance of [mean_t f_t, mean_t |f_{t+1} - f_t|], f_t the features of frame t
    cycle       mean |E(D(E(x))) - E(x)|                                    in latents of unit variance
    ratio       3 f_t f_s^2 / c                                             numbers in per number out

Measures for pictures take clips (B, C, T, H, W) frame by frame, in ``measure``. ``frechet_clips`` is ours and
stands where others report rFVD: features of pictures and of how much they change, not those of a network
that was trained on videos, so the two are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..methods.autoencode import frames
from ..methods.perceptual import Maps
from ..methods.perceptual import distance as distance_of
from ..nn.taps import tap
from .features import SceneNet
from .frechet import Features, Gaussian, frechet

Distance = Callable[[Tensor, Tensor], Tensor]  # two batches of pictures -> (B,)

WINDOW, SIGMA = 11, 1.5


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Decibels per picture: (B, ...) and (B, ...) -> (B,)."""
    return -10 * ((x - y) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10()


def by_frame(x: Tensor, y: Tensor) -> Tensor:
    """PSNR by distance in time: clips (B, C, T, H, W) twice -> (T,), means over clips."""
    return psnr(frames(x), frames(y)).unflatten(0, (x.shape[0], -1)).mean(0)


def moving(rows: Tensor, count: int) -> Tensor:
    """Features of clips from those of their frames: (B count, D) -> (B, 2 D)."""
    rows = rows.unflatten(0, (-1, count))
    return torch.cat([rows.mean(1), rows.diff(dim=1).abs().mean(1)], dim=1)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity per picture, at most 1: (B, C, H, W) twice -> (B,). Channels are averaged."""
    if x.ndim != 4 or min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of {WINDOW} x {WINDOW} pixels or more, got {tuple(x.shape)}")
    offset = torch.arange(WINDOW, device=x.device, dtype=x.dtype) - WINDOW // 2
    bell = (-0.5 * (offset / SIGMA).square()).exp()
    bell = bell / bell.sum()

    def blur(v: Tensor) -> Tensor:
        # only windows that lie inside; the two directions one after the other
        v = F.conv2d(v.flatten(0, 1)[:, None], bell.view(1, 1, 1, -1))
        return F.conv2d(v, bell.view(1, 1, -1, 1)).unflatten(0, x.shape[:2])[:, :, 0]

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mx, my = blur(x), blur(y)
    sx, sy, sxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    similar = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx * mx + my * my + c1) * (sx + sy + c2))
    return similar.flatten(1).mean(1)


def perceptual(maps: Maps, x: Tensor, y: Tensor) -> Tensor:
    """Between pictures (B, 3, H, W) as the network behind ``maps`` sees them: (B,), 0 for equal ones."""
    return distance_of(maps(x), maps(y))


def scene_maps(network: SceneNet) -> Maps:
    """The output of every stage's residual block; pictures are resized to the network's side first."""
    names = [f"stages.{i}" for i in range(1, len(network.stages), 2)]
    tapped = tap(network, names)
    return lambda x: list(tapped(x)[1].values())


def lpips(network: str = "alex", device: torch.device | str = "cpu") -> Distance:
    """The published LPIPS (alex, vgg or squeeze), by torchmetrics and torchvision's pretrained weights.

    A measure, and with methods.perceptual.judged a term to train with: pixels get gradients, it gets none.
    """
    try:
        from torchmetrics.image import lpip

        metric: Any = lpip.LearnedPerceptualImagePatchSimilarity(network)  # type: ignore[arg-type]
    except (ImportError, OSError, RuntimeError) as error:
        # a RuntimeError is what a torchvision built for another torch raises, an OSError a download
        needs = "torchmetrics, a torchvision that fits the installed torch and its pretrained weights"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"LPIPS needs {needs} (no extra of ours brings them): {reason}") from None
    metric.to(device)
    metric.net.requires_grad_(False)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        # the network alone: the metric around it would keep the score of every batch
        return metric.net(x.to(device), y.to(device)).flatten()

    return distance


def flicker(x: Tensor, y: Tensor) -> Tensor:
    """Of the reconstruction ``y`` of clips ``x`` (B, C, T, H, W): (B,), pixel units per frame.

    A constant error costs nothing, one that changes from frame to frame does. The measure is ours.
    """
    if x.ndim != 5 or x.shape[2] < 2:
        raise ValueError(f"flicker needs clips (B, C, T, H, W) of two frames or more, got {tuple(x.shape)}")
    return (y.diff(dim=2) - x.diff(dim=2)).abs().flatten(1).mean(1)


def fitted(autoencoder: Any, x: Tensor) -> Tensor:
    """Pictures as clips of one frame for an autoencoder of clips, clips as frames for one of pictures."""
    if getattr(autoencoder.config, "time_factor", 1) == 1:
        return frames(x)
    return x[:, :, None] if x.ndim == 4 else x


def ratio(config: Any) -> float:
    """Numbers of a clip per number of its latent: 3 f_t f_s^2 / c."""
    return 3 * getattr(config, "time_factor", 1) * config.factor**2 / config.channels


@torch.no_grad()
def reconstruct(autoencoder: Any, x: Tensor) -> Tensor:
    """``x`` (B, 3, H, W) through the posterior's mean and back, clamped to [-1, 1]."""
    return autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)


@torch.no_grad()
def measure(
    autoencoder: Any,
    batches: Iterable[Tensor],
    features: SceneNet | Features | None = None,
    distance: Distance | None = None,
) -> dict[str, float]:
    """All of the above over pictures (B, 3, H, W) or clips (B, 3, T, H, W), one batch in memory at a time.

    ``features`` are for the Frechet distance between input and output, ``distance`` is ``lpips()`` or a
    ``perceptual``; a SceneNet brings both. Keys: pictures (or frames), ratio, psnr, ssim, cycle; perceptual
    and frechet with a network; flicker for clips, and with a network and two clips or more frechet_clips.
    Pixels are clamped to [-1, 1], except inside the cycle.
    """
    if isinstance(features, SceneNet):
        distance = distance or partial(perceptual, scene_maps(features))
        features = features.features
    sums: dict[str, float] = {}
    pictures, clips, count = (Gaussian(), Gaussian()), (Gaussian(), Gaussian()), 0
    for x in batches:
        given = fitted(autoencoder, x)
        z = autoencoder.encode(given)
        y = autoencoder.decode(z)
        if y.shape != given.shape:
            raise ValueError(
                f"{tuple(given.shape)} came back as {tuple(y.shape)}: sides or frames do not fit"
            )
        found = {"cycle": (autoencoder.encode(y) - z).abs().mean()}
        a, b = frames(x), frames(y).clamp(-1, 1)
        found |= {"psnr": psnr(a, b).mean(), "ssim": ssim(a, b).mean()}
        if distance:
            found["perceptual"] = distance(a, b).mean()
        moves = x.ndim == 5 and x.shape[2] > 1
        if moves:
            found["flicker"] = flicker(x, b.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)).mean()
        for side, v in enumerate((a, b) if features else ()):
            rows = features(v)  # type: ignore[misc]
            pictures[side].add(rows)
            if moves:
                clips[side].add(moving(rows, x.shape[2]))
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value.item() * len(a)
        count += len(a)
    if not count:
        raise ValueError("nothing to measure: no batches were given")
    means = {name: total / count for name, total in sums.items()}
    distances = {"frechet": frechet(*pictures)} if features else {}
    if clips[0].n > 1:
        distances["frechet_clips"] = frechet(*clips)
    return {"pictures": count, "ratio": ratio(autoencoder.config), **means, **distances}
