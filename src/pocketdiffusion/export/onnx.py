"""ONNX for onnxruntime: the dynamo exporter, and its own packers for int8 and 4 bits.

    fp32    as it is
    fp16    weights and arithmetic in half precision, inputs and outputs in fp32: half the size
    int8    products with constant weights: dynamic (activations measured as they come); convolutions: static,
            activations calibrated on the probes. The fast one on CPUs and in WASM. Weights use 7 of the 8
            bits: processors without VNNI add pairs of products in 16 bits, and 8-bit weights overflow them
    w8      8-bit weights, arithmetic in fp32: a quarter of the size
    w4      4-bit weights in groups of 32 where a plan says so or everywhere: MatMulNBits

A plan (compress.bits) may leave layers out (16 bits) or choose 8 or 4 for each under w8 and w4.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compress.bits import fitting
from ..compress.round import codes, layers, rounded
from ..runtime import bundle
from .program import Program
from .rewrite import ATTENTION, rewritten

PRECISIONS = ("fp32", "fp16", "int8", "w8", "w4")
PLANNED = ("int8", "w8", "w4")  # those that heed a plan of bits
SUFFIX = ".onnx"
LIBRARY = "onnxruntime"  # what runs it here, for measuring its memory
opened = bundle.opened
OPSET = 21  # the first with scales per block

Named = Mapping[str, Any]
Probes = Sequence[Mapping[str, Tensor]]
Bits = Mapping[str, int]


class Half(nn.Module):
    """A module in half precision behind fp32 inputs and outputs."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.half()

    def forward(self, *inputs: Tensor) -> Any:
        found = self.module(*(x.half() if x.is_floating_point() else x for x in inputs))
        return tuple(y.float() for y in found) if isinstance(found, tuple) else found.float()


@contextmanager
def quiet() -> Any:
    """The exporter tells of every library that is not there."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def graph(program: Program, module: nn.Module) -> Any:
    """The ModelProto of ``module`` with the names of ``program``."""
    import onnx  # noqa: F401  a clear message when the extra is missing
    import onnxscript  # noqa: F401

    with quiet():
        exported = torch.onnx.export(
            module,
            tuple(program.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    # the exporter notes where in the source each node comes from: half of a small file
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    return proto


def write(
    program: Program, path: Path, precision: str, bits: Bits | None = None, probes: Probes = ()
) -> None:
    """``program`` as an ONNX file. ``bits`` by layer for w8 and w4 (16 keeps a layer out of int8 as well)."""
    import onnx

    module = rewritten(program.module, ATTENTION)
    every = dict.fromkeys(layers(module), {"w8": 8, "w4": 4}.get(precision, 16))
    chosen = fitting(module, bits or every, program.name)
    if precision == "fp16":
        onnx.save(graph(program, Half(module)), path)
        return
    if precision in ("w8", "w4"):
        module = rounded(module, chosen)
    proto = graph(program, module)
    if precision == "int8":
        kept = {name for name, b in (bits or {}).items() if b == 16}
        proto = int8(proto, owners(proto, module, kept), probes or [program.inputs])
    elif precision in ("w8", "w4"):
        pack(proto, module, chosen)
        named = owners(proto, module, {n for n, b in chosen.items() if b != 4})
        proto = four(proto, named)
    onnx.save(proto, path)


def constants(proto: Any) -> dict[str, Any]:
    return {i.name: i for i in proto.graph.initializer}


def owners(proto: Any, module: nn.Module, names: set[str]) -> list[str]:
    """Graph nodes that use the weight of one of the layers ``names``, found by its values."""
    from onnx import numpy_helper

    wanted = set()
    for name, layer in layers(module).items():
        if name in names:
            w = layer.weight.detach().numpy()  # type: ignore[union-attr,operator]
            wanted |= {w.tobytes(), np.ascontiguousarray(w.T).tobytes()}
    known = constants(proto)
    found = []
    for node in proto.graph.node:
        for key in node.input:
            if key in known and numpy_helper.to_array(known[key]).tobytes() in wanted:
                found.append(node.name)
    return found


def int8(proto: Any, leave: list[str], probes: Probes) -> Any:
    """Dynamic int8 products; where there are convolutions, static int8 for those."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    operators = {node.op_type for node in proto.graph.node}
    with tempfile.TemporaryDirectory() as folder, quiet():
        a, b = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        if "Conv" in operators:
            # calibration looks at those tensors only whose type is noted
            onnx.save(onnx.shape_inference.infer_shapes(proto), a)
            quantize_static(
                a,
                b,
                Reader(probes),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                nodes_to_exclude=leave,
                extra_options={"ActivationSymmetric": False},
            )
            proto = onnx.load(b)
        if operators & {"MatMul", "Gemm"}:
            # but noted shapes stop the dynamic quantiser, which turns weights around
            del proto.graph.value_info[:]
            onnx.save(proto, a)
            quantize_dynamic(
                a,
                b,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                nodes_to_exclude=leave,
                # of tensors behind the static part no type is noted; products take none but floats
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
            )
            proto = onnx.load(b)
    return proto


class Reader:
    """Calibration inputs, one by one; what onnxruntime calls a CalibrationDataReader."""

    def __init__(self, probes: Probes):
        self.left = iter(probes)

    def get_next(self) -> dict[str, Any] | None:
        probe = next(self.left, None)
        return None if probe is None else {k: v.numpy() for k, v in probe.items()}


def pack(proto: Any, module: nn.Module, bits: Bits) -> None:
    """In place: weights at 16 bits as halves; those at 8, and those at 4 that MatMulNBits does not take, as
    integers and scales. AssertionError when the exporter changed a weight on the way."""
    from onnx import numpy_helper

    matrices = set(owners(proto, module, {n for n, b in bits.items() if b == 4}))
    products = {n.input[1] for n in proto.graph.node if n.op_type == "MatMul" and n.name in matrices}
    by_value: dict[bytes, tuple[Tensor, bool, int]] = {}
    forms: dict[str, set[bytes]] = {}
    for name, layer in layers(module).items():
        w: Tensor = layer.weight.detach()  # type: ignore[union-attr,operator,assignment]
        by_value[w.numpy().tobytes()] = (w, False, bits[name])
        forms[name] = {w.numpy().tobytes()}
        if w.ndim == 2:
            turned = np.ascontiguousarray(w.numpy().T).tobytes()
            by_value[turned] = (w, True, bits[name])
            forms[name].add(turned)
    there = {key: numpy_helper.to_array(constant).tobytes() for key, constant in constants(proto).items()}
    lost = [name for name, values in forms.items() if not values & set(there.values())]
    assert not lost, f"the weight of {lost[0]} is not in the graph as it was, so it cannot be packed"
    unpacking: list[Any] = []
    for key, constant in constants(proto).items():
        found = by_value.get(there[key])
        if found is None or key in products:
            continue
        made, nodes = packed(key, *found)
        proto.graph.initializer.remove(constant)
        proto.graph.initializer.extend(made)
        unpacking += nodes
    for i, node in enumerate(unpacking):
        proto.graph.node.insert(i, node)


def packed(key: str, weight: Tensor, turned: bool, bits: int) -> tuple[list[Any], list[Any]]:
    """Initialisers and nodes that give the constant ``key`` back: ``weight``, or its transpose."""
    from onnx import TensorProto, helper, numpy_helper

    if bits == 16:
        half = weight.half().numpy()
        halves = numpy_helper.from_array(np.ascontiguousarray(half.T if turned else half), f"{key}.half")
        cast = helper.make_node("Cast", [halves.name], [key], f"{key}.unpack", to=TensorProto.FLOAT)
        return [halves], [cast]
    q, scale = (x.numpy() for x in codes(weight, bits))
    extra: dict[str, Any] = {"axis": 1 if turned else 0}
    flat = scale.shape[1] > 1  # one scale per block of inputs: as a matrix, whatever the shape
    if flat:
        q = q.reshape(len(q), -1)
        extra = {"axis": 0 if turned else 1, "block_size": q.shape[1] // scale.shape[1]}
        scale = scale.T if turned else scale
    else:
        scale = scale[:, 0]
    q = np.ascontiguousarray(q.T if turned else q).astype(np.int8)
    if bits == 4:
        pairs = np.append(q.ravel(), np.zeros(q.size % 2, np.int8)).reshape(-1, 2) & 0xF
        bytes_ = (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()
        integers = helper.make_tensor(f"{key}.int4", TensorProto.INT4, q.shape, bytes_, raw=True)
    else:
        integers = numpy_helper.from_array(q, f"{key}.int8")
    scales = numpy_helper.from_array(np.ascontiguousarray(scale).astype(np.float32), f"{key}.scale")
    tensors, shaped = [integers, scales], flat and weight.ndim > 2
    to = f"{key}.matrix" if shaped else key
    nodes = [
        helper.make_node("DequantizeLinear", [integers.name, scales.name], [to], f"{key}.unpack", **extra)
    ]
    if shaped:
        shape = numpy_helper.from_array(np.array(weight.shape, np.int64), f"{key}.shape")
        tensors.append(shape)
        nodes.append(helper.make_node("Reshape", [to, shape.name], [key], f"{key}.fold"))
    return tensors, nodes


def four(proto: Any, leave: list[str]) -> Any:
    """MatMul with a constant matrix -> MatMulNBits, 4 bits in groups of 32 inputs."""
    del proto.graph.value_info[:]
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with quiet():
        packer = MatMulNBitsQuantizer(proto, block_size=32, is_symmetric=True, nodes_to_exclude=leave)
        packer.process()
    return packer.model.model


def operators(path: Path) -> dict[str, int]:
    """How often each operator is in the graph."""
    import onnx

    found: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
