"""Core ML programs on any machine: reads a saved .mlpackage back and runs it in torch.

What it checks: the conversion, the weights and their compression, under one reading of the operators
(milops.py). What it is not: a device. An operator is computed in float32 and its result then rounded once, to
half precision where the program says fp16; hardware also rounds inside a sum, fuses operators, and chooses
where each runs. Nothing here is a measure of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .milops import OPERATORS
from .onnx import quiet as muted

Named = Mapping[str, Any]
Value = Tensor | str | list[Any]


@contextmanager
def quiet() -> Iterator[None]:
    """coremltools tells of every library and version that it would rather have, and draws progress bars."""
    with muted(), redirect_stderr(StringIO()):
        yield


def read(path: Path) -> Any:
    """The main function of a package, as coremltools' own MIL objects."""
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
    return program.functions["main"]


def constant(value: Any) -> Value:
    """What a ``const`` holds: text, or numbers as a tensor of float32, int64 or bool."""
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype != bool:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    return torch.from_numpy(np.array(array))


def typed(value: Tensor, kind: str, half: bool) -> Tensor:
    """``value`` as an output of MIL type ``kind`` holds it."""
    if kind == "bool":
        return value.bool()
    if not kind.startswith("fp"):
        return value.long()
    return value.half().float() if half and kind == "fp16" else value.float()


class Step:
    """One operator of a program: the names that it reads and writes, without its MIL objects."""

    def __init__(self, op: Any):
        from coremltools.converters.mil.mil.types import builtin_to_string

        self.kind = op.op_type
        self.inputs = {
            key: [v.name for v in given] if isinstance(given, (list, tuple)) else given.name
            for key, given in op.inputs.items()
            if given is not None
        }
        self.outputs = [(v.name, builtin_to_string(v.dtype)) for v in op.outputs]

    def reads(self) -> list[str]:
        return [n for given in self.inputs.values() for n in (given if isinstance(given, list) else [given])]

    def run(self, known: dict[str, Value], half: bool) -> None:
        given = {
            key: [known[name] for name in names] if isinstance(names, list) else known[names]
            for key, names in self.inputs.items()
        }
        found = OPERATORS[self.kind](**given)
        for (name, kind), y in zip(
            self.outputs, found if isinstance(found, tuple) else (found,), strict=True
        ):
            known[name] = typed(y, kind, half)


@torch.no_grad()
def runner(function: Any, half: bool = True) -> Callable[[Named], dict[str, Any]]:
    """A MIL function as a function of named arrays. ``half=False``: fp16 results are not rounded.

    Weights are decompressed once, here. ValueError for operators that are not in milops.
    """
    from coremltools.converters.mil.mil.types import builtin_to_string

    constants: dict[str, Value] = {}
    steps: list[Step] = []
    for op in list(function.operations):
        if op.op_type == "const":
            constants[op.outputs[0].name] = constant(op.outputs[0].val)
            continue
        steps.append(Step(op))
    if unknown := sorted({step.kind for step in steps} - set(OPERATORS)):
        raise ValueError(f"no meaning is known for the MIL operator {', '.join(unknown)}")
    live = []
    for step in steps:
        if all(name in constants for name in step.reads()):
            step.run(constants, half)
        else:
            live.append(step)
    inputs = {name: builtin_to_string(v.dtype) for name, v in function.inputs.items()}
    outputs = [v.name for v in function.outputs]

    # when a value is read for the last time it is dropped: a big model does not hold all of them at once
    last = {name: i for i, step in enumerate(live) for name in step.reads()}
    kept = {*constants, *outputs}
    done = [[n for n in {*step.reads()} - kept if last[n] == i] for i, step in enumerate(live)]

    @torch.no_grad()
    def call(given: Named) -> dict[str, Any]:
        known = dict(constants)
        for name, kind in inputs.items():
            known[name] = typed(torch.from_numpy(np.asarray(given[name])), kind, half)
        for step, gone in zip(live, done):
            step.run(known, half)
            for name in gone:
                del known[name]
        return {name: known[name].numpy() for name in outputs}  # type: ignore[union-attr]

    return call


def opened(path: Path, half: bool = True) -> Callable[[Named], dict[str, Any]]:
    """A package as a function of named arrays."""
    try:
        return runner(read(path), half)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
