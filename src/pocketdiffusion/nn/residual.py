"""Residual convolutions that are told the time: dense, or separable and expanded (SnapGen).

    h = act(norm1(x))
    y = skip(x) + conv2(act(norm2(conv1(h) + W temb)))      conv1: channels -> inner, conv2: inner -> out

Dense (inner = out) this is SDXL's block. With separable convolutions and inner = 2 out it is SnapGen's
(arXiv 2412.09619; the form is read from public code of its descendants), close to the universal inverted
bottleneck of MobileNetV4. ``skip`` is a 1 x 1 convolution where the width changes.
"""

from __future__ import annotations

from torch import Tensor, nn

from .conv import SeparableConv

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "hardswish": nn.Hardswish}


def conv3(channels: int, out: int, separable: bool) -> nn.Module:
    return SeparableConv(channels, out) if separable else nn.Conv2d(channels, out, 3, padding=1)


class TimedConvs(nn.Module):
    """The branch: h (B, channels, H, W), temb (B, temb), already activated -> (B, out, H, W)."""

    def __init__(
        self, channels: int, inner: int, out: int, temb: int, separable: bool, groups: int, act: str
    ):
        super().__init__()
        self.conv1 = conv3(channels, inner, separable)
        self.time = nn.Linear(temb, inner)
        self.norm = nn.GroupNorm(groups, inner)
        self.act = ACTIVATIONS[act]()
        self.conv2 = conv3(inner, out, separable)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(h) + self.time(temb)[:, :, None, None]
        return self.conv2(self.act(self.norm(h)))

    def silence(self) -> None:
        """Let the branch start at zero."""
        last = self.conv2.pointwise if isinstance(self.conv2, SeparableConv) else self.conv2
        for p in last.parameters():
            nn.init.zeros_(p)


class TimedResBlock(nn.Module):
    """x (B, channels, H, W), temb (B, temb) -> (B, out, H, W); ``skip``: whether x needs its own 1 x 1."""

    def __init__(
        self,
        channels: int,
        inner: int,
        out: int,
        temb: int,
        separable: bool = True,
        groups: int = 32,
        act: str = "silu",
        skip: bool = False,
    ):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.act = ACTIVATIONS[act]()
        self.conv = TimedConvs(channels, inner, out, temb, separable, groups, act)
        self.skip = nn.Conv2d(channels, out, 1) if skip else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.skip(x) + self.conv(self.act(self.norm(x)), temb)
