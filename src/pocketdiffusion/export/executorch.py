"""ExecuTorch for phones and embedded CPUs, through XNNPACK, in as few calls as can be.

    fp32     as it is
    int8     linear layers: dynamic (activations measured as they come); convolutions: static, activations
             calibrated on the probes; weights per output channel
    8da4w    linear layers: 4-bit weights in groups of 32 inputs, activations rounded to 8 bits as they come
             (torchao's name and grid); all else in fp32

What XNNPACK does not take runs operator by operator and cuts the graph in pieces, so constants are folded,
and what only changes a shape is spelled as view and slice. A plan (compress.bits) leaves layers out (16).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..compress.bits import fitting
from ..compress.round import GROUP
from .onnx import quiet
from .program import Program
from .rewrite import ATTENTION, GELU, NORMS, TIME, rewritten

PRECISIONS = ("fp32", "int8", "8da4w")
PLANNED = ("int8", "8da4w")  # those that heed a plan of bits
SUFFIX = ".pte"
LIBRARY = "executorch.runtime"
DELEGATE = "delegate"

Named = Mapping[str, Any]
Probes = Sequence[Mapping[str, Tensor]]
Bits = Mapping[str, int]


def write(
    program: Program, path: Path, precision: str, bits: Bits | None = None, probes: Probes = ()
) -> None:
    """``program`` as a .pte file. ``bits`` by layer: 16 keeps it in fp32."""
    with quiet():  # torchao tells of every kernel that is not there
        import executorch.exir  # noqa: F401  a clear message when the extra is missing
        import torchao.quantization  # noqa: F401
    module = rewritten(program.module, {**ATTENTION, **NORMS, **GELU, **TIME}).eval()
    kept = {name for name, b in (fitting(module, bits, program.name) if bits else {}).items() if b == 16}
    example = tuple(program.inputs.values())
    with quiet():
        if precision == "8da4w":
            four(module, kept)
        exported = folded(torch.export.export(module, example))
        if precision == "int8":
            given = [tuple(p[key] for key in program.inputs) for p in probes or [program.inputs]]
            exported = torch.export.export(int8(exported.module(), given, kept), example)
        path.write_bytes(lowered(exported, program))


def folded(exported: Any) -> Any:
    """Rotary tables and other constants computed now; weights that are packed stay packed."""
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass

    unpacking = {
        node.target
        for node in exported.graph.nodes
        if node.op == "call_function" and "dequantize" in str(node.target)
    }
    return constant_prop_pass(exported, custom_skip_targets=unpacking)


def int8(module: Any, probes: Sequence[tuple[Tensor, ...]], kept: set[str]) -> nn.Module:
    """A graph with the quantiser's notes for XNNPACK, calibrated."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def layer(node: Any) -> bool:
        """Inside a layer with weights of its own (a mean spelled as a product is none), and not kept."""
        stack = node.meta.get("nn_module_stack")
        if not stack:  # a weight itself
            return True
        *_, (name, kind) = stack.values()
        return str(kind).endswith(("Linear", "Conv2d")) and name not in kept

    dynamic = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    static = get_symmetric_quantization_config(is_per_channel=True)
    quantiser = XNNPACKQuantizer().set_filter_function(layer)
    quantiser.set_operator_type(torch.ops.aten.linear.default, dynamic)  # type: ignore[arg-type]
    quantiser.set_operator_type(torch.ops.aten.conv2d.default, static)  # type: ignore[arg-type]
    prepared = prepare_pt2e(module, quantiser)
    for probe in probes:
        prepared(*probe)
    return convert_pt2e(prepared)


def four(module: nn.Module, kept: set[str]) -> None:
    """In place: linear layers whose rows are whole groups."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        weight_granularity=PerGroup(GROUP),
    )

    def chosen(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and layer.in_features % GROUP == 0 and name not in kept

    quantize_(module, config, filter_fn=chosen)


def spelled() -> Any:
    """A pass: unsqueeze, squeeze and select as views and slices, which XNNPACK takes; no empty expand."""
    from executorch.exir.dialects._ops import ops
    from executorch.exir.pass_base import ExportPass

    aten = ops.edge.aten
    views = (aten.unsqueeze_copy.default, aten.squeeze_copy.dims, aten.squeeze_copy.dim)

    class Spelled(ExportPass):  # type: ignore[misc]
        def call_operator(self, op: Any, args: Any, kwargs: Any, meta: Any) -> Any:
            def call(target: Any, *given: Any) -> Any:
                return ExportPass.call_operator(self, target, given, {}, meta)

            shape = list(meta["val"].shape) if isinstance(meta["val"], Tensor) else None
            if op in views:
                return call(aten.view_copy.default, args[0], shape)
            if op is aten.select_copy.int:
                x, axis, i = args
                i %= x.data.shape[axis]
                part = call(aten.slice_copy.Tensor, x, axis, i, i + 1, 1)
                return call(aten.view_copy.default, part, shape)
            if op is aten.expand_copy.default and list(args[0].data.shape) == shape:
                return args[0]
            return super().call_operator(op, args, kwargs, meta)

    return Spelled()


def lowered(exported: Any, program: Program) -> bytes:
    """The file, which also tells the names of its inputs and outputs."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    names = {"inputs": " ".join(program.inputs), "outputs": " ".join(program.outputs)}
    forget(exported.graph)
    edge = to_edge_transform_and_lower(
        exported,
        transform_passes=[spelled()],
        partitioner=[XnnpackPartitioner()],
        constant_methods=names,
    )
    whole = edge.exported_program()
    for graph in (whole.graph, *(m.original_module.graph for m in delegates(whole.graph_module))):
        forget(graph)
    return edge.to_executorch().buffer


def delegates(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if hasattr(m, "original_module")]


def forget(graph: Any) -> None:
    """Where each node came from, which every later pass would copy: most of the time that lowering takes."""
    for node in graph.nodes:
        node.meta.pop("from_node", None)


def opened(path: Path, threads: int | None = None) -> Callable[[Named], dict[str, Any]]:
    """The file as a function of named arrays, by ExecuTorch's Python runtime; all files share its threads."""
    from executorch.extension.pybindings import portable_lib as runtime
    from executorch.runtime import Runtime

    # before anything is loaded: a call waits for ever when its threads were replaced after that
    if threads and runtime._threadpool_get_thread_count() != threads:
        runtime._unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(path)
    methods = {name: program.load_method(name) for name in ("forward", "inputs", "outputs")}
    inputs, outputs = (methods[name].execute([])[0].split() for name in ("inputs", "outputs"))

    def call(given: Named) -> dict[str, Any]:
        found = methods["forward"].execute([torch.as_tensor(given[key]) for key in inputs])
        return {name: y.numpy().copy() for name, y in zip(outputs, found, strict=True)}

    return call


def operators(path: Path) -> dict[str, int]:
    """Calls of the delegate, and every operator that is left outside of it."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    found: Counter[str] = Counter()
    for instruction in (i for chain in plan.chains for i in chain.instructions):
        arguments: Any = instruction.instr_args
        index = getattr(arguments, "op_index", None)
        if index is not None:
            found[plan.operators[index].name] += 1
        elif hasattr(arguments, "delegate_index"):
            found[DELEGATE] += 1
    return dict(found.most_common())
