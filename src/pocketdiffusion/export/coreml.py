"""Core ML for iPhones and Macs (iOS 18): a program becomes an .mlpackage, a folder.

    fp16    weights and arithmetic in half precision, Core ML's own; inputs and outputs in fp32
    fp32    as it is: runs on the CPU and the GPU, never on the Neural Engine
    w8      8-bit weights, one scale per output channel; arithmetic in fp16
    w4      4-bit weights in groups of 32 inputs (one per output channel where the row does not divide), or
            what a plan says (compress.bits: 4, 8, or 16 for fp16)

Weights are rounded by compress.round and packed as they are, integers and scales:

    w' = fp16(q fp16(s))        for the w = q s of the rounded model

so a packed weight is off by the rounding of its scale and of the product, 2^-10 at most (more where s is
below 6e-5, the smallest normal fp16). The groups of a kernel wider than one point cross its taps, which Core
ML's blocks cannot: such a kernel is packed as a matrix and reshaped.

No Mac is needed to write a package. Here it is run by an interpreter (mil.py), which is no device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compress.bits import fitting
from ..compress.round import codes, layers, rounded
from ..nn.attention.full import Core
from . import mil
from .mil import quiet
from .program import Program
from .rewrite import TIME, rewritten

PRECISIONS = ("fp16", "fp32", "w8", "w4")
PLANNED = ("w8", "w4")  # those that heed a plan of bits
SUFFIX = ".mlpackage"
LIBRARY = ""  # the interpreter's memory says nothing about a device's
# They multiply scales into the weights of convolutions, which would then leave their grid.
FOLDING = {"common::fuse_conv_scale", "common::fuse_conv_batchnorm"}

Named = Mapping[str, Any]
Probes = Sequence[Mapping[str, Tensor]]
Bits = Mapping[str, int]


class SharedCore(nn.Module):
    """``Core`` whose heads that share a key-value head lie in the token axis: Core ML repeats none."""

    def __init__(self, _core: nn.Module):
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        folded = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        return F.scaled_dot_product_attention(folded, k, v, mask).reshape(q.shape)


def unaliased(exported: Any) -> Any:
    """Without the views of a whole tensor that coremltools has no word for."""
    for node in list(exported.graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            exported.graph.erase_node(node)
    return exported


def graph(program: Program, module: nn.Module, precision: str) -> Any:
    """``module`` as a MIL program with the output names of ``program``."""
    with quiet():
        import coremltools as ct

        passes = ct.PassPipeline.DEFAULT
        if precision in ("w8", "w4"):
            passes.remove_passes(FOLDING)
        exported = torch.export.export(module, tuple(program.inputs.values())).run_decompositions({})
        return ct.convert(
            unaliased(exported),
            convert_to="milinternal",
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in program.outputs],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            pass_pipeline=passes,
        )


def write(
    program: Program, path: Path, precision: str, bits: Bits | None = None, probes: Probes = ()
) -> None:
    """``program`` as a package. ``bits`` by layer for w8 and w4; ``probes`` are other targets' need."""
    module = rewritten(program.module, {Core: SharedCore, **TIME})
    every = dict.fromkeys(layers(module), {"w8": 8, "w4": 4}.get(precision, 16))
    chosen = fitting(module, bits or every, program.name)
    packing = precision in ("w8", "w4")
    if packing:
        module = rounded(module, chosen)
    made = graph(program, module, precision)
    if packing:
        pack(made.functions["main"], module, chosen)
    save(made, program, path)


def pack(function: Any, module: nn.Module, bits: Bits) -> None:
    """In place: weights at 8 and 4 bits, found by their values, as integers and scales."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

    def key(array: Any) -> tuple[Any, bytes]:
        return array.shape, array.tobytes()

    by_value: dict[Any, tuple[Tensor, int]] = {}
    for name, layer in layers(module).items():
        weight: Tensor = layer.weight.detach()  # type: ignore[union-attr,operator,assignment]
        if bits[name] < 16:
            by_value[key(weight.half().numpy())] = (weight, bits[name])
    # coremltools lets no operator in that does not say where it came from
    origin = ScopeInfo(ScopeSource.EXIR_STACK_TRACE, "pack"), ScopeInfo(ScopeSource.EXIR_DEBUG_HANDLE, [None])
    for op in list(function.operations):
        constant = op.outputs[0]
        if op.op_type != "const" or (found := by_value.get(key(np.asarray(constant.val)))) is None:
            continue
        with function, mb.scope(*origin):
            new = packed(*found, name=f"{constant.name}_packed", before_op=op)
        function.replace_uses_of_var_after_op(anchor_op=op, old_var=constant, new_var=new)
        function.remove_ops([op])


def packed(weight: Tensor, bits: int, name: str, before_op: Any) -> Any:
    """A variable with the numbers of ``weight``, which lies on the grid of ``bits``."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    q, scale = codes(weight, bits)
    # one scale per row, or blocks along the only axis that is left
    direct = scale.shape[1] == 1 or weight[0, 0].numel() == 1
    data = (q if direct else q.flatten(1)).numpy()
    made = mb.constexpr_blockwise_shift_scale(
        data=data.astype(types.nptype_from_builtin(types.int8 if bits == 8 else types.int4)),
        scale=scale.reshape(*scale.shape, *[1] * (data.ndim - 2)).half().numpy(),
        name=name,
        before_op=before_op,
    )
    if direct:
        return made
    return mb.reshape(x=made, shape=list(weight.shape), name=f"{name}_kernel", before_op=before_op)


def save(made: Any, program: Program, path: Path) -> None:
    """Write a MIL program, its inputs named as those of ``program``."""
    with quiet():
        import coremltools as ct

        model = ct.convert(
            made,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        spec = model.get_spec()
        for given, name in zip([i.name for i in spec.description.input], program.inputs, strict=True):
            ct.utils.rename_feature(spec, given, name, rename_outputs=False)
        # made anew, since a model that knows its MIL program puts notes for ExecuTorch into the package
        ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(path))


def opened(path: Path, threads: int | None = None) -> Callable[[Named], dict[str, Any]]:
    """The package as a function of named arrays, by the interpreter; ``threads`` are torch's own here."""
    return mil.opened(path)


def operators(path: Path) -> dict[str, int]:
    """How often each operator is in the program, constants left out."""
    with quiet():
        import coremltools as ct

        function = ct.utils.load_spec(str(path)).mlProgram.functions["main"]
    found: dict[str, int] = {}
    for op in function.block_specializations[function.opset].operations:
        if op.type != "const":
            found[op.type] = found.get(op.type, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
