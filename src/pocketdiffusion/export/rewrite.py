"""Same weights and function, operators that edge runtimes like: nn/ modules replaced.

    rewritten(module, {Core: FoldedCore, RMSNorm: SummedRMSNorm}) -> a copy; the original stays as it is

    FoldedCore       softmax(q k^T) v by two products, shared key-value heads folded into the tokens, an
                     additive mask: SDPA's own decomposition asks for isnan, any and full_like, and LiteRT
                     cannot run the expand that repeats key-value heads
    SplitAttention   rotary pairs (i, i + d/2) in place of (2i, 2i + 1), by permuting the rows of W_q and W_k:
                     two slices and one concatenation in place of 5-D tensors
    split_global_local   the same of GlobalLocal, whose compressed keys are permuted too
    Summed...Norm    means by a product with a constant column, eps as its bias: XNNPACK takes no mean over
                     the last axis
    FlatGroupNorm    means over (2, 3) of a 4-D tensor: GroupNorm itself is delegated nowhere
    FlatConv3d       a 2-D convolution of the frames that one output sees, stacked on channels: ExecuTorch has
                     no 3-D convolution, and quantisers leave it alone
    SigmoidMLP       gelu_tanh(x) = x sigmoid(1.5958 (x + 0.0447 x^3)), the same function

Every rule is tested to change nothing (1e-5). A target lists the rules that it wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn.attention.full import Attention, Core
from ..nn.attention.global_local import GlobalLocal
from ..nn.mlp import GEGLU, MLP
from ..nn.norm import GroupNorm, LayerNorm, RMSNorm, affine

Rules = Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]

# Below every logit, and still a number in half precision; exp of it is zero.
FAR = 1e4


class FoldedCore(nn.Module):
    """(q (B, H, N, d), k and v (B, K, M, d), mask (B, 1, 1, M) bool) -> y (B, H, N, d)."""

    def __init__(self, _core: nn.Module | None = None):
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        shape, group = q.shape, q.shape[1] // k.shape[1]
        if group > 1:
            q = q.reshape(shape[0], k.shape[1], group * shape[2], shape[3])
        logits = (q * shape[3] ** -0.5) @ k.transpose(2, 3)
        if mask is not None:
            logits = logits + (mask.to(q.dtype) - 1) * FAR
        y = logits.softmax(-1) @ v
        return y.reshape(shape) if group > 1 else y


def permute(module: nn.Module, index: Tensor, of: tuple[str, ...] = ("weight", "bias")) -> None:
    """Reorder the first dimension of a layer's parameters."""
    for name in of:
        value = getattr(module, name, None)
        if value is not None:
            setattr(module, name, nn.Parameter(value.detach()[index], requires_grad=False))


def split(attention: Attention) -> Tensor:
    """Permute queries and keys in place, so that rotary pairs lie half a head apart; the order of a head."""
    d = attention.head_dim
    order = torch.cat([torch.arange(0, d, 2), torch.arange(1, d, 2)])
    for linear, heads in ((attention.q, attention.heads), (attention.k, attention.kv_heads)):
        permute(linear, (torch.arange(heads)[:, None] * d + order).flatten())
    permute(attention.norm_q, order)
    permute(attention.norm_k, order)
    return order


class SplitAttention(nn.Module):
    """``Attention`` whose rotary pairs lie half a head apart."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        assert isinstance(attention, Attention)
        given = deepcopy(attention)
        self.heads, self.kv_heads, self.head_dim = given.heads, given.kv_heads, given.head_dim
        split(given)
        self.q, self.k, self.v, self.out = given.q, given.k, given.v, given.out
        self.norm_q, self.norm_k, self.core = given.norm_q, given.norm_k, given.core

    def forward(
        self, x: Tensor, rope: Tensor | None = None, other: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        source = x if other is None else other
        (b, n, _), m, d = x.shape, source.shape[1], self.head_dim
        q = self.norm_q(self.q(x).reshape(b, n, self.heads, d).transpose(1, 2))
        k = self.norm_k(self.k(source).reshape(b, m, self.kv_heads, d).transpose(1, 2))
        v = self.v(source).reshape(b, m, self.kv_heads, d).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        y = self.core(q, k, v, None if mask is None else mask[:, None, None])
        return self.out(y.transpose(1, 2).reshape(b, n, self.heads * d))


def split_global_local(attention: nn.Module) -> nn.Module:
    """``GlobalLocal`` whose rotary pairs lie half a head apart."""
    given: Any = deepcopy(attention)
    order = split(given)
    if given.see != "local":
        conv = given.compress_k
        permute(conv, order)
        conv.weight = nn.Parameter(conv.weight[:, order], requires_grad=False)
    given.rotate = rotate
    return given


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of ``x`` (..., N, d) by ``table`` (2, N, d/2)."""
    half = x.shape[-1] // 2
    cos, sin = table[0].to(x.dtype), table[1].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class SummedRMSNorm(nn.Module):
    column: Tensor
    eps: Tensor

    def __init__(self, norm: nn.Module):
        super().__init__()
        assert isinstance(norm, RMSNorm)
        self.weight = norm.weight
        self.register_buffer("column", torch.full((1, norm.dim), 1 / norm.dim))
        self.register_buffer("eps", torch.full((1,), norm.eps))

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(F.linear(x * x, self.column, self.eps))
        return y if self.weight is None else y * self.weight


class SummedLayerNorm(nn.Module):
    column: Tensor
    eps: Tensor

    def __init__(self, norm: nn.Module):
        super().__init__()
        assert isinstance(norm, LayerNorm)
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("column", torch.full((1, norm.dim), 1 / norm.dim))
        self.register_buffer("eps", torch.full((1,), norm.eps))

    def forward(self, x: Tensor) -> Tensor:
        x = x - F.linear(x, self.column)
        y = x * torch.rsqrt(F.linear(x * x, self.column, self.eps))
        return affine(y, self.weight, self.bias)


class FlatGroupNorm(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        assert isinstance(norm, nn.GroupNorm)
        self.groups, self.channels, self.eps = norm.num_groups, norm.num_channels, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.reshape(b, self.groups, c // self.groups * h, w)
        y = y - y.mean((2, 3), keepdim=True)
        y = y * torch.rsqrt((y * y).mean((2, 3), keepdim=True) + self.eps)
        y = y.reshape(b, c, h, w)
        return y * self.weight[:, None, None] + self.bias[:, None, None] if self.weight is not None else y


class FlatConv3d(nn.Module):
    """Without padding in time, as causal convolutions are (nn/causal.py pads by frames)."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        assert isinstance(conv, nn.Conv3d) and conv.padding[0] == 0 and conv.groups == 1
        assert conv.padding_mode == "zeros" and set(conv.dilation) == {1}
        t, h, w = conv.kernel_size
        self.kernel, self.stride = t, conv.stride[0]
        channels, padding = t * conv.in_channels, (int(conv.padding[1]), int(conv.padding[2]))
        self.conv = nn.Conv2d(channels, conv.out_channels, (h, w), conv.stride[1:], padding)  # type: ignore[arg-type]
        flat = conv.weight.detach().transpose(1, 2).flatten(1, 2)  # (out, t * in, h, w)
        self.conv.weight = nn.Parameter(flat.contiguous(), requires_grad=False)
        self.conv.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        frames = range(0, x.shape[2] - self.kernel + 1, self.stride)
        y = [self.conv(x[:, :, i : i + self.kernel].transpose(1, 2).flatten(1, 2)) for i in frames]
        return torch.stack(y, 2)


class SigmoidMLP(nn.Module):
    def __init__(self, mlp: nn.Module):
        super().__init__()
        assert isinstance(mlp, MLP)
        self.up, self.down = mlp.up, mlp.down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.up(x)))


class SigmoidGEGLU(nn.Module):
    def __init__(self, mlp: nn.Module):
        super().__init__()
        assert isinstance(mlp, GEGLU)
        self.gate, self.up, self.down = mlp.gate, mlp.up, mlp.down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu(self.gate(x)) * self.up(x))


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, since (1 + tanh u) / 2 = sigmoid(2 u)."""
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


ATTENTION: Rules = {Attention: SplitAttention, GlobalLocal: split_global_local, Core: FoldedCore}
NORMS: Rules = {
    RMSNorm: SummedRMSNorm,
    LayerNorm: SummedLayerNorm,
    GroupNorm: FlatGroupNorm,
    nn.GroupNorm: FlatGroupNorm,
}
TIME: Rules = {nn.Conv3d: FlatConv3d}
GELU: Rules = {MLP: SigmoidMLP, GEGLU: SigmoidGEGLU}


def rewritten(module: nn.Module, rules: Rules) -> nn.Module:
    """A copy of ``module`` in which every submodule of a ruled type is replaced, inner ones too."""
    return _replace(deepcopy(module), rules)


def _replace(module: nn.Module, rules: Rules) -> nn.Module:
    rule = rules.get(type(module))
    module = rule(module) if rule else module
    for name, child in module.named_children():
        setattr(module, name, _replace(child, rules))
    return module
