"""The operators of MIL, in torch: one reading of what Apple's documentation says.

    OPERATORS["linear"](x=..., weight=..., bias=...)     arguments have MIL's names; numbers are tensors

Everything is computed in float32, integers in int64; types are the caller's affair (mil.py), so ``cast`` does
nothing here. Operators that our programs do not contain are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.div,
    "sub": torch.sub,
}
REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep),
}


def unary(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: f(x)


def binary(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: f(x, y)


def reduction(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
        chosen = list(range(x.ndim)) if axes is None else axes.tolist()
        return f(x, chosen, keep_dims is not None and bool(keep_dims))

    return reduce


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def conv(
    x: Tensor,
    weight: Tensor,
    strides: Tensor,
    pad_type: str,
    pad: Tensor,
    dilations: Tensor,
    groups: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """``pad``: before and after each axis, the first axis first; torch wants the last one first."""
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"a convolution with padding {pad_type!r} is not known")
    if pad_type == "custom":
        x = F.pad(x, [side for pair in reversed(pad.view(-1, 2).tolist()) for side in pair])
    call = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return call(x, weight, bias, strides.tolist(), 0, dilations.tolist(), int(groups))


def matmul(x: Tensor, y: Tensor, transpose_x: Tensor, transpose_y: Tensor) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    logits = query @ key.mT / query.shape[-1] ** 0.5
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1) @ value


def layer_norm(
    x: Tensor, axes: Tensor, epsilon: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    """``axes`` are the last ones, so that gamma and beta broadcast."""
    chosen = axes.tolist()
    y = x - x.mean(chosen, keepdim=True)
    y = y / (y.square().mean(chosen, keepdim=True) + epsilon).sqrt()
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def instance_norm(
    x: Tensor, epsilon: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    return F.instance_norm(x, weight=gamma, bias=beta, eps=float(epsilon))


def gather(
    x: Tensor, indices: Tensor, axis: Tensor, batch_dims: Tensor, validate_indices: Tensor | None = None
) -> Tensor:
    if batch_dims:
        raise ValueError("gather with batch_dims is not known")
    a = int(axis) % x.ndim
    flat = torch.where(indices < 0, indices + x.shape[a], indices).flatten()
    return x.index_select(a, flat).reshape(*x.shape[:a], *indices.shape, *x.shape[a + 1 :])


def pad(x: Tensor, pad: Tensor, mode: str, constant_val: Tensor) -> Tensor:
    sides = [side for pair in reversed(pad.view(-1, 2).tolist()) for side in pair]
    if mode == "constant":
        return F.pad(x, sides, value=float(constant_val))
    return F.pad(x, sides, mode="reflect" if mode == "reflect" else "replicate")


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    if split_sizes is not None:
        return x.split(split_sizes.tolist(), int(axis))
    assert num_splits is not None
    return x.chunk(int(num_splits), int(axis))


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes.tolist())


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """As in numpy; where a mask is set, that end is open, or the axis goes."""

    def of(mask: Tensor | None) -> list[bool]:
        return [False] * x.ndim if mask is None else mask.tolist()

    steps = [1] * x.ndim if stride is None else stride.tolist()
    rows = zip(begin.tolist(), end.tolist(), steps, of(begin_mask), of(end_mask), of(squeeze_mask))
    key = tuple(
        b if gone else slice(None if first else b, None if last else e, step)
        for b, e, step, first, last, gone in rows
    )
    # torch takes no negative steps
    return torch.from_numpy(x.numpy()[key].copy())


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """A size of -1 goes to the end."""
    pairs = zip(begin.tolist(), size.tolist())
    return x[tuple(slice(b, None if n == -1 else b + n) for b, n in pairs)]


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: Tensor, scale_factor_width: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=(float(scale_factor_height), float(scale_factor_width)))


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale (data - offset), each block of ``data`` with its own."""
    for axis, (n, blocks) in enumerate(zip(data.shape, scale.shape)):
        scale = scale.repeat_interleave(n // blocks, axis)
        offset = offset if offset is None else offset.repeat_interleave(n // blocks, axis)
    return scale * (data if offset is None else data - offset)


def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, vector_axis: Tensor | None = None) -> Tensor:
    """Each block of ``indices`` looks its numbers up in its own row of ``lut`` (..., numbers, 1)."""
    if lut.shape[-1] > 1:
        raise ValueError("lookup tables of vectors are not known")
    table = lut.squeeze(-1)
    for axis, (n, blocks) in enumerate(zip(indices.shape, lut.shape)):
        table = table.repeat_interleave(n // blocks, axis)
    return table.gather(-1, indices[..., None]).squeeze(-1)


OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: unary(f) for name, f in UNARY.items()},
    **{name: binary(f) for name, f in BINARY.items()},
    **{name: reduction(f) for name, f in REDUCTIONS.items()},
    "batch_norm": batch_norm,
    "cast": lambda x, dtype: x,
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)),
    "concat": lambda values, axis, interleave=None: torch.cat(values, int(axis)),
    "constexpr_blockwise_shift_scale": constexpr_blockwise_shift_scale,
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "conv": conv,
    "expand_dims": expand_dims,
    "gather": gather,
    "gelu": gelu,
    "instance_norm": instance_norm,
    "inverse": lambda x, epsilon: 1 / (x + epsilon),
    "layer_norm": layer_norm,
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, float(alpha)),
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "log": lambda x, epsilon: (x + epsilon).log(),
    "matmul": matmul,
    "pad": pad,
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, int(upscale_factor)),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, int(downscale_factor)),
    "reshape": lambda x, shape: x.reshape(shape.tolist()),
    "rsqrt": lambda x, epsilon: (x + epsilon).rsqrt(),
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "select": lambda cond, a, b: torch.where(cond, a, b),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "softmax": lambda x, axis: x.softmax(int(axis)),
    "split": split,
    "squeeze": squeeze,
    "stack": lambda values, axis: torch.stack(values, int(axis)),
    "tile": lambda x, reps: x.tile(reps.tolist()),
    "transpose": lambda x, perm: x.permute(perm.tolist()),
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
