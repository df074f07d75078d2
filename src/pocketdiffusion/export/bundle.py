"""A pipeline -> a bundle: programs, a manifest, the runtime, and proof that it is right.

    DIR/manifest.json                 what it is (runtime/manifest.py)
    DIR/{text_encoder,denoiser,decoder}.SUFFIX
    DIR/tokenizer.json
    DIR/run.py, DIR/pocketruntime/    target onnx: runs the bundle without this package
    DIR/report.json                   sizes, errors, operators, limits

Target web has a page in place of run.py (web.py).

A bundle is written under a temporary name and gets its own when parity holds; else nothing is left behind.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__, noise
from .. import runtime as runtime_folder
from ..bench.peak import peak
from ..compress.bits import Plan
from ..compress.lazy import Plan as LazyPlan
from ..disk import replacing
from ..pipeline import Pipeline
from ..runtime.manifest import COMPONENTS, FILE, Manifest, hashes
from . import lazy
from .foreign import ForeignPipeline
from .parity import demand, demand_pictures, pictures, psnr, recorded, relative
from .program import Program, programs

# target -> the module of this folder that writes and runs it
TARGETS: dict[str, str] = {"onnx": "onnx", "executorch": "executorch", "coreml": "coreml", "web": "web"}

RUN = """import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pocketruntime.runtime.run import main

sys.exit(main(Path(__file__).resolve().parent))
"""
CHECKED = 4  # steps
# Sizes at which devices give up, in bytes, and what to do.
DEVICE_LIMITS = {
    "a browser's ArrayBuffer": (2 * 2**30, "shard the weights or lower the precision"),
    "a graph on the Neural Engine": (10**9, "split the program or lower the precision"),
    "a Metal buffer": (4 * 2**30, "lower the precision"),
}


@dataclass(frozen=True)
class Choice:
    """How to export. ``plans``: bits per layer, by component (compress.bits). A bundle of some components
    alone is for an app that has the others; the runtime refuses it."""

    target: str = "onnx"
    precision: str = "fp32"
    size: int | None = None
    plans: Mapping[str, Plan] = field(default_factory=dict)
    components: tuple[str, ...] = COMPONENTS
    runtimes: tuple[str, ...] = ("wasm",)  # target web: builds of onnxruntime-web to put beside it
    lazy: LazyPlan | None = None  # branches that rest at some steps, as programs of their own (lazy.py)


@dataclass
class Report:
    """What was written, component by component, and how far it is from the original."""

    target: str
    precision: str
    components: list[dict[str, Any]]
    psnr: list[float]  # of whole pictures, dB; none of a part of a pipeline
    warnings: list[str]

    @property
    def bytes(self) -> int:
        return sum(row["bytes"] for row in self.components)


def target(name: str) -> Any:
    """The module of a target; ValueError for one that is not known."""
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    return importlib.import_module(f".{TARGETS[name]}", __package__)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a package that is a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def described(program: Program) -> dict[str, Any]:
    """Names, shapes and dtypes of a program's inputs and outputs."""

    def one(value: Any) -> dict[str, Any]:
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}

    inputs = {name: one(value) for name, value in program.inputs.items()}
    return {"inputs": inputs, "outputs": {name: one(value) for name, value in program().items()}}


def manifest_of(pipe: Pipeline, made: Mapping[str, Program], choice: Choice, model: str) -> Manifest:
    """The manifest before there are files."""
    x, z = made["denoiser"].inputs["x"], made["decoder"]()["picture"]
    return Manifest(
        choice.target,
        choice.precision,
        model,
        json.loads(json.dumps(asdict(pipe.schedule))),
        list(z.shape[-2:]),
        list(x.shape[1:]),
        words(pipe.text_encoder.tokenizer),
        {name: described(program) for name, program in made.items()},
        versions=versions(),
    )


def shortened(pipe: Pipeline, manifest: Manifest) -> Manifest:
    """What an export is checked with: of a pipeline of diffusers, which is large, few steps."""
    if not isinstance(pipe, ForeignPipeline):
        return manifest
    steps = min(CHECKED, manifest.schedule["steps"])
    return replace(manifest, schedule={**manifest.schedule, "steps": steps})


def words(tokenizer: Any) -> dict[str, Any]:
    """What a runtime needs to know to read prompts."""
    if hasattr(tokenizer, "described"):
        return tokenizer.described()
    begin, end = tokenizer.begin, tokenizer.end
    return {"tokenizer": "tokenizer.json", "length": tokenizer.length, "begin": begin, "end": end}


def versions() -> dict[str, str]:
    found = {"pocketdiffusion": __version__}
    for name in ("torch", "onnx", "onnxruntime", "executorch", "torchao", "coremltools"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def carry_runtime(folder: Path) -> None:
    """A copy of runtime/ and noise.py, and the script that starts it."""
    package = folder / "pocketruntime"
    (package / "runtime").mkdir(parents=True)
    (package / "__init__.py").write_text('"""The runtime of pocketdiffusion bundles."""\n')
    assert noise.__file__ and runtime_folder.__file__
    shutil.copy(noise.__file__, package / "noise.py")
    for path in sorted(Path(runtime_folder.__file__).parent.glob("*.py")):
        shutil.copy(path, package / "runtime" / path.name)
    (folder / "run.py").write_text(RUN)


def limits(name: str, size: int) -> list[str]:
    return [
        f"{name} takes {size / 1e9:.2f} GB, more than {what} holds ({limit / 1e9:.1f} GB): {advice}"
        for what, (limit, advice) in DEVICE_LIMITS.items()
        if size > limit
    ]


def export(
    pipe: Pipeline,
    folder: Path,
    choice: Choice,
    model: str = "",
    seen: Callable[[str], None] = lambda what: None,
) -> Report:
    """Write the bundle and check it. ``seen`` is told what is done next.

    ValueError for a target or precision that is not there, ParityError when the result is wrong.
    """
    writer = target(choice.target)
    if choice.precision not in writer.PRECISIONS:
        known = ", ".join(writer.PRECISIONS)
        raise ValueError(f"target {choice.target} has no precision {choice.precision!r}; known: {known}")
    if choice.target == "web" and isinstance(pipe, ForeignPipeline):
        raise ValueError(f"target web: its page cannot read prompts as a {pipe.kind} does; use target onnx")
    made = programs(pipe, choice.size)
    components = list(choice.components)
    steps: list[str] = []
    if choice.lazy:
        made, steps = lazy.programs(pipe, made, choice.lazy)
        components += [name for name in made if name not in COMPONENTS]
    manifest = manifest_of(pipe, made, choice, model)
    if steps:
        manifest.schedule["lazy"] = steps
    seen("sampling the original")
    brief = shortened(pipe, manifest)
    wanted, probes = recorded(made, brief, pipe)
    manifest = replace(manifest, components={name: manifest.components[name] for name in components})
    with replacing(folder, (FILE,)) as temporary:
        run, rows, warnings, ratios = {}, [], [], []
        for name in components:
            seen(f"writing {name}")
            path = temporary / f"{name}{writer.SUFFIX}"
            plan = choice.plans.get(name)
            writer.write(made[name], path, choice.precision, plan.bits if plan else None, probes[name])
            manifest.components[name]["file"] = path.name
            run[name] = writer.opened(path)
            rel = relative(made[name], run[name], probes[name])
            demand(name, choice.precision, rel)
            bytes_ = size_of(path)
            row = {"component": name, "bytes": bytes_, "rel": rel, "operators": writer.operators(path)}
            if writer.LIBRARY:
                try:
                    row["peak"] = peak(path, probes[name][0], writer.__name__, writer.LIBRARY)
                except ValueError as error:
                    warnings.append(f"no peak memory: {error}")
            rows.append(row)
            warnings += limits(name, bytes_)
        if set(COMPONENTS) <= set(run):
            seen("sampling the bundle")
            found = pictures(lambda name, inputs: run[name](inputs), brief, pipe)
            ratios = [psnr(a, b) for a, b in zip(found, wanted)]
            demand_pictures(choice.precision, ratios)
        report = Report(choice.target, choice.precision, rows, ratios, warnings)
        finish(pipe, temporary, manifest, report, writer, choice)
    return report


def finish(
    pipe: Pipeline, folder: Path, manifest: Manifest, report: Report, writer: Any, choice: Choice
) -> None:
    """Everything beside the components; the manifest last, but for what names its hash."""
    pipe.text_encoder.tokenizer.save(folder)
    (folder / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    if choice.target == "web":
        manifest = writer.furnish(folder, manifest, choice.runtimes)
        replace(manifest, files=hashes(folder, [writer.UNSEALED])).write(folder)
        writer.seal(folder)
        return
    if choice.target == "onnx":
        carry_runtime(folder)
    replace(manifest, files=hashes(folder)).write(folder)


def table(report: Report) -> Sequence[dict[str, Any]]:
    """Rows to print. ``outside``: operators that the target's delegate does not take, where it has one."""
    rows = []
    for r in report.components:
        row = {"component": r["component"], "MB": r["bytes"] / 1e6, "rel. error": r["rel"]}
        if "peak" in r:
            row["peak MB"] = r["peak"] / 1e6
        if "delegate" in r["operators"]:
            left = {k: n for k, n in r["operators"].items() if k != "delegate"}
            row["delegate calls"] = r["operators"]["delegate"]
            row["outside"] = ", ".join(f"{n} {k.split('::')[-1]}" for k, n in left.items()) or "none"
        rows.append(row)
    return rows
