"""Convolution blocks: separable convolution, the plain residual block, resampling by two."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SeparableConv(nn.Module):
    """Depthwise k x k (with bias), then pointwise 1 x 1 (without), as SnapGen's U-Net counts them."""

    def __init__(self, channels: int, out: int, kernel: int = 3, stride: int = 1, bias: bool = False):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), (B, C, H, W) -> (B, out, H, W)."""

    def __init__(self, channels: int, out: int, groups: int = 8):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Down(nn.Module):
    """Halve the resolution: 2 x 2 pixels onto channels, then 1 x 1."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.proj = nn.Conv2d(4 * channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.pixel_unshuffle(x, 2))


class Up(nn.Module):
    """Double the resolution: 1 x 1, then channels onto 2 x 2 pixels."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, 4 * out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.proj(x), 2)


class UpNearest(nn.Module):
    """Double the resolution: nearest neighbour, then a separable 3 x 3; about what ``Up`` costs."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.conv = SeparableConv(channels, out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
