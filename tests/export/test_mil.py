"""Each operator of the MIL interpreter against numpy or torch, and programs as they lie on the disk."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pocketdiffusion.export.mil import opened, quiet, runner
from pocketdiffusion.export.milops import OPERATORS

if not importlib.util.find_spec("coremltools"):
    pytest.skip("needs the extra coreml", allow_module_level=True)
pytestmark = pytest.mark.slow

with quiet():
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

draw = np.random.default_rng(0)


def normal(*shape):
    return draw.standard_normal(shape).astype(np.float32)


def t(f):
    """A function of tensors as one of arrays."""
    return lambda *xs: f(*(torch.from_numpy(x) for x in xs)).numpy()


def built(build, *arrays):
    """A program whose inputs x, y, z are like ``arrays``."""
    specs = [mb.TensorSpec(a.shape, types.numpy_type_to_builtin_type(a.dtype)) for a in arrays]
    return mb.program(input_specs=specs, opset_version=ct.target.iOS18)(build)


def ran(build, *arrays, half=True):
    found = runner(built(build, *arrays).functions["main"], half)(dict(zip("xyz", arrays)))
    return list(found.values())


X, Y = normal(2, 6, 4), normal(2, 6, 4)
POSITIVE, PICTURE = np.abs(X) + 0.1, normal(2, 8, 6, 6)
KERNEL, BIAS, ROWS = normal(5, 4, 3, 3), normal(5), np.array([4, 0, -1], np.int32)
Q, K, V = normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 8)
MASK = np.arange(7)[None, None, None] < np.array([7, 3])[:, None, None, None]
CODES = draw.integers(-8, 8, (4, 6))
SCALE, OFFSET = normal(2, 3).astype(np.float16), draw.integers(-8, 8, (2, 3))
LUT = normal(2, 1, 4, 1).astype(np.float16)
BLOB = normal(9, 16)
INT4, UINT2 = types.nptype_from_builtin(types.int4), types.nptype_from_builtin(types.uint2)


def unary(name, f, x=X):
    return name, lambda x: getattr(mb, name)(x=x), f, x


def binary(name, f, x=X, y=Y):
    return name, lambda x, y: getattr(mb, name)(x=x, y=y), f, x, y


def reduction(name, f):
    build = lambda x: getattr(mb, name)(x=x, axes=[0, -1], keep_dims=True)  # noqa: E731
    return name, build, lambda x: f(x, axis=(0, 2), keepdims=True), X


def blocks(a):
    """One number per block of 2 x 2 -> one per entry."""
    return np.repeat(np.repeat(a, 2, 0), 2, 1)


def dequantised(x):
    return x + (CODES - blocks(OFFSET)) * blocks(SCALE)


def conv(x, weight, **more):
    return mb.conv(x=x, weight=weight, bias=BIAS, **more)


CASES = [
    unary("abs", np.abs),
    unary("cos", np.cos),
    unary("erf", t(torch.erf)),
    unary("exp", np.exp),
    unary("floor", np.floor),
    unary("identity", lambda x: x),
    unary("logical_not", np.logical_not, X > 0),
    unary("relu", lambda x: np.maximum(x, 0)),
    unary("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    unary("silu", lambda x: x / (1 + np.exp(-x))),
    unary("sin", np.sin),
    unary("softplus", lambda x: np.log(1 + np.exp(x))),
    unary("sqrt", np.sqrt, POSITIVE),
    unary("square", np.square),
    unary("tanh", np.tanh),
    binary("add", np.add),
    binary("add", np.add, X, normal(6, 1)),
    binary("equal", np.equal, ROWS, ROWS[::-1].copy()),
    binary("floor_div", np.floor_divide, X, POSITIVE),
    binary("greater", np.greater),
    binary("greater_equal", np.greater_equal, ROWS, ROWS[::-1].copy()),
    binary("less", np.less),
    binary("less_equal", np.less_equal, ROWS, ROWS[::-1].copy()),
    binary("logical_and", np.logical_and, X > 0, Y > 0),
    binary("logical_or", np.logical_or, X > 0, Y > 0),
    binary("maximum", np.maximum),
    binary("minimum", np.minimum),
    binary("mul", np.multiply),
    binary("not_equal", np.not_equal, ROWS, ROWS[::-1].copy()),
    binary("pow", np.power, POSITIVE, Y),
    binary("real_div", np.divide, X, POSITIVE),
    binary("sub", np.subtract),
    reduction("reduce_l2_norm", lambda x, **k: np.sqrt(np.square(x).sum(**k))),
    reduction("reduce_max", np.max),
    reduction("reduce_mean", np.mean),
    reduction("reduce_min", np.min),
    reduction("reduce_sum", np.sum),
    ("reduce_sum", lambda x: mb.reduce_sum(x=x), lambda x: x.sum(), X),
    ("cast", lambda x: mb.cast(x=x, dtype="int32"), np.trunc, X * 3),
    ("cast", lambda x: mb.cast(x=x, dtype="bool"), lambda x: x != 0, ROWS),
    ("cast", lambda x: mb.cast(x=x, dtype="fp16"), lambda x: x.astype(np.float16), X),
    ("clip", lambda x: mb.clip(x=x, alpha=-0.5, beta=0.7), lambda x: np.clip(x, -0.5, 0.7), X),
    ("inverse", lambda x: mb.inverse(x=x, epsilon=0.1), lambda x: 1 / (x + 0.1), POSITIVE),
    ("log", lambda x: mb.log(x=x, epsilon=0.1), lambda x: np.log(x + 0.1), POSITIVE),
    ("rsqrt", lambda x: mb.rsqrt(x=x, epsilon=0.1), lambda x: (x + 0.1) ** -0.5, POSITIVE),
    ("leaky_relu", lambda x: mb.leaky_relu(x=x, alpha=0.2), lambda x: np.where(x > 0, x, 0.2 * x), X),
    ("gelu", lambda x: mb.gelu(x=x), t(F.gelu), X),
    (
        "gelu",
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
        X,
    ),
    (
        "gelu",
        lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
        lambda x: x / (1 + np.exp(-1.702 * x)),
        X,
    ),
    ("softmax", lambda x: mb.softmax(x=x, axis=1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), X),
    ("linear", lambda x: mb.linear(x=x, weight=Y[0], bias=X[0, :, 0]), lambda x: x @ Y[0].T + X[0, :, 0], X),
    ("matmul", lambda x, y: mb.matmul(x=x, y=y, transpose_y=True), lambda x, y: x @ y.swapaxes(1, 2), X, Y),
    ("matmul", lambda x, y: mb.matmul(x=x, y=y, transpose_x=True), lambda x, y: x.swapaxes(1, 2) @ y, X, Y),
    (
        "conv",
        lambda x: conv(x, KERNEL, groups=1, pad_type="custom", pad=[1, 0, 2, 1], strides=[2, 1]),
        t(lambda x: F.conv2d(F.pad(x, (2, 1, 1, 0)), *map(torch.from_numpy, (KERNEL, BIAS)), stride=(2, 1))),
        PICTURE[:, :4],
    ),
    (
        "conv",
        lambda x: mb.conv(x=x, weight=KERNEL[:4, :2], groups=4, dilations=[2, 2]),
        t(lambda x: F.conv2d(x, torch.from_numpy(KERNEL[:4, :2]), groups=4, dilation=2)),
        PICTURE,
    ),
    (
        "conv",
        lambda x: mb.conv(x=x, weight=KERNEL[:, :, 0]),
        t(lambda x: F.conv1d(x, torch.from_numpy(KERNEL[:, :, 0]))),
        PICTURE[:, :4, 0],
    ),
    (
        "scaled_dot_product_attention",
        lambda x, y, z: mb.scaled_dot_product_attention(query=x, key=y, value=z, attn_mask=MASK),
        t(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.from_numpy(MASK))),
        Q,
        K,
        V,
    ),
    (
        "scaled_dot_product_attention",
        lambda x, y, z: mb.scaled_dot_product_attention(query=x, key=y, value=z, attn_mask=K[:, :, :5, :7]),
        t(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.from_numpy(K[:, :, :5, :7]))),
        Q,
        K,
        V,
    ),
    (
        "layer_norm",
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=BIAS[:4], beta=BIAS[1:], epsilon=0.1),
        t(lambda x: F.layer_norm(x, (4,), torch.from_numpy(BIAS[:4]), torch.from_numpy(BIAS[1:]), 0.1)),
        X,
    ),
    (
        "layer_norm",
        lambda x: mb.layer_norm(x=x, axes=[1, 2], epsilon=0.1),
        t(lambda x: F.layer_norm(x, (6, 4), eps=0.1)),
        X,
    ),
    (
        "batch_norm",
        lambda x: mb.batch_norm(
            x=x, mean=BIAS[:4], variance=BIAS[:4] ** 2, gamma=BIAS[1:], beta=BIAS[1:], epsilon=0.1
        ),
        lambda x: (
            (x - BIAS[:4, None, None]) / np.sqrt(BIAS[:4, None, None] ** 2 + 0.1) * BIAS[1:, None, None]
            + BIAS[1:, None, None]
        ),
        PICTURE[:, :4],
    ),
    (
        "instance_norm",
        lambda x: mb.instance_norm(x=x, gamma=BIAS[:4], beta=BIAS[1:], epsilon=0.1),
        lambda x: (
            (x - x.mean((2, 3), keepdims=True))
            / np.sqrt(x.var((2, 3), keepdims=True) + 0.1)
            * BIAS[:4, None, None]
            + BIAS[1:, None, None]
        ),
        PICTURE[:, :4],
    ),
    ("gather", lambda x, y: mb.gather(x=x, indices=y, axis=1), lambda x, y: x[:, y], X, ROWS),
    ("gather", lambda x, y: mb.gather(x=x, indices=y, axis=0), lambda x, y: x[y], X[0], ROWS[None]),
    (
        "select",
        lambda x, y, z: mb.select(cond=x, a=y, b=z),
        lambda c, a, b: np.where(c, a, b),
        X[:, :1] > 0,
        X,
        Y,
    ),
    ("concat", lambda x, y: mb.concat(values=[x, y], axis=-2), lambda x, y: np.concatenate([x, y], 1), X, Y),
    ("stack", lambda x, y: mb.stack(values=[x, y], axis=1), lambda x, y: np.stack([x, y], 1), X, Y),
    ("split", lambda x: mb.split(x=x, num_splits=3, axis=1), lambda x: np.split(x, 3, 1), X),
    ("split", lambda x: mb.split(x=x, split_sizes=[1, 5], axis=1), lambda x: np.split(x, [1], 1), X),
    ("reshape", lambda x: mb.reshape(x=x, shape=(3, -1)), lambda x: x.reshape(3, -1), X),
    ("transpose", lambda x: mb.transpose(x=x, perm=[2, 0, 1]), lambda x: x.transpose(2, 0, 1), X),
    ("expand_dims", lambda x: mb.expand_dims(x=x, axes=[0, -1]), lambda x: x[None, ..., None], X),
    ("squeeze", lambda x: mb.squeeze(x=x, axes=[1]), lambda x: x[:, 0], X[:1, :1]),
    ("squeeze", lambda x: mb.squeeze(x=x), lambda x: x[0, 0], X[:1, :1]),
    ("tile", lambda x: mb.tile(x=x, reps=[1, 2, 3]), lambda x: np.tile(x, (1, 2, 3)), X),
    (
        "slice_by_index",
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, 5, 0],
            end=[0, 1, -1],
            stride=[1, -2, 1],
            squeeze_mask=[True, False, False],
            begin_mask=[False, False, True],
        ),
        lambda x: x[1, 5:1:-2, :-1],
        X,
    ),
    (
        "slice_by_size",
        lambda x: mb.slice_by_size(x=x, begin=[0, 1, 2], size=[1, -1, 2]),
        lambda x: x[:1, 1:, 2:4],
        X,
    ),
    (
        "pad",
        lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], mode="constant", constant_val=3.0),
        lambda x: np.pad(x, [(0, 0), (1, 0), (0, 2)], constant_values=3),
        X,
    ),
    (
        "pad",
        lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], mode="reflect"),
        lambda x: np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 2)], "reflect"),
        PICTURE,
    ),
    (
        "pad",
        lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], mode="replicate"),
        lambda x: np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 2)], "edge"),
        PICTURE,
    ),
    (
        "pixel_shuffle",
        lambda x: mb.pixel_shuffle(x=x, upscale_factor=2),
        lambda x: x.reshape(2, 2, 2, 2, 6, 6).transpose(0, 1, 4, 2, 5, 3).reshape(2, 2, 12, 12),
        PICTURE,
    ),
    (
        "pixel_unshuffle",
        lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
        lambda x: x.reshape(2, 8, 3, 2, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 32, 3, 3),
        PICTURE,
    ),
    (
        "upsample_nearest_neighbor",
        lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
        lambda x: x.repeat(2, 2).repeat(3, 3),
        PICTURE,
    ),
    (
        "constexpr_blockwise_shift_scale",
        lambda x: mb.add(
            x=x,
            y=mb.constexpr_blockwise_shift_scale(
                data=CODES.astype(INT4), scale=SCALE.astype(np.float32), offset=OFFSET.astype(INT4)
            ),
        ),
        dequantised,
        normal(4, 6),
    ),
    (
        "constexpr_lut_to_dense",
        lambda x: mb.add(
            x=x,
            y=mb.constexpr_lut_to_dense(indices=(CODES % 4).astype(UINT2), lut=LUT.astype(np.float32)),
        ),
        lambda x: x + np.take_along_axis(np.repeat(LUT[:, 0, :, 0], 2, 0), CODES % 4, 1),
        normal(4, 6),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_operators(case):
    name, build, expected, *arrays = case
    program = built(build, *arrays)
    assert name in {op.op_type for op in program.functions["main"].operations}
    wanted = expected(*arrays)
    wanted = wanted if isinstance(wanted, list) else [wanted]
    found = ran(build, *arrays)
    assert len(found) == len(wanted)
    for y, r in zip(found, wanted):
        assert y.shape == r.shape and (y.dtype == bool) == (r.dtype == bool)
        np.testing.assert_allclose(y, r, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case():
    assert {case[0] for case in CASES} == set(OPERATORS)


def test_half_precision_is_rounded_where_the_program_says_so():
    def build(x):
        a = mb.mul(x=mb.cast(x=x, dtype="fp16"), y=np.float16(1.001))
        return mb.cast(x=mb.mul(x=a, y=a), dtype="fp32")

    a = X.astype(np.float16) * np.float16(1.001)
    np.testing.assert_array_equal(ran(build, X)[0], (a * a).astype(np.float32))
    # the constant stays what fp16 made of it
    np.testing.assert_allclose(ran(build, X, half=False)[0], (X * np.float32(np.float16(1.001))) ** 2, 1e-6)


def test_unknown_operators_are_named():
    with pytest.raises(ValueError, match="operator cumsum, reverse"):
        ran(lambda x: mb.reverse(x=mb.cumsum(x=x)), X)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: mb.conv(x=x, weight=KERNEL, pad_type="same"),
        lambda x: mb.gather(x=x, indices=ROWS[:, None][:2], axis=1, batch_dims=1),
        lambda x: mb.add(
            x=x,
            y=mb.constexpr_lut_to_dense(
                indices=np.zeros((1, 2), UINT2), lut=normal(1, 1, 4, 2), vector_axis=1
            ),
        ),
    ],
    ids=["padding", "batch_dims", "vectors"],
)
def test_unknown_modes_are_refused(build):
    with pytest.raises(ValueError, match="not known"):
        ran(build, PICTURE[:, :4, :4, :4])


def test_a_saved_package(tmp_path):
    """Weights at 4 and 8 bits from the blob, several outputs, names and the order of inputs."""
    data = draw.integers(-8, 8, (64, 32))
    scale = normal(64, 2).astype(np.float16)

    def build(x, y):
        four = mb.constexpr_blockwise_shift_scale(data=data.astype(INT4), scale=scale)
        eight = mb.constexpr_blockwise_shift_scale(data=data.astype(np.int8), scale=scale)
        a = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=four)
        b = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=eight)
        table = mb.gather(x=BLOB, indices=y, axis=0)
        return (
            mb.cast(x=a, dtype="fp32", name="a"),
            mb.cast(x=b, dtype="fp32"),
            mb.identity(x=table, name="t"),
        )

    x = normal(3, 32)
    path = tmp_path / "p.mlpackage"
    with quiet():
        model = ct.convert(
            built(build, x, ROWS),
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    model.save(str(path))
    found = opened(path)({"y": ROWS.astype(np.int64), "x": x})
    weight = (data * np.repeat(scale, 16, 1)).astype(np.float16).astype(np.float32)
    (first, a), (_, b), (third, table) = found.items()
    assert (first, third) == ("a", "t")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, x.astype(np.float16).astype(np.float32) @ weight.T, rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(table, BLOB[ROWS])
