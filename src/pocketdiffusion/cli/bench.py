"""pocket bench: parameters, multiply-accumulates, latency and memory of a pipeline's parts.

    pocket bench --model scenes --threads 1 2
    pocket bench --model scenes --bundle out/scenes-fp32 out/scenes-int8     # against exported bundles

Latencies are medians of one run on this machine: compare them with each other, not with another machine's.
A denoising step is one call of the denoiser; with guidance a step of the sampler makes it at twice the batch.
Peak memory is that of fp32, whatever --dtype. Bundles are compared with eager fp32 at the shapes they were
exported with; "load" is the time until the first result (of a picture: until the first picture), "speed" the
ratio of the medians.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device import choose, precision


@dataclass(frozen=True)
class Args:
    model: str = "snapgen_scenes"
    """A shipped pipeline's name or a folder, of diffusers too."""
    width: str | None = None
    """Of an elastic model: a width by name, or a file of one (kdmd_scenes); default: the full one."""
    bundle: tuple[Path, ...] = ()
    """Exported folders (pocket export) to compare with the model."""
    batch: int = 1
    threads: tuple[int, ...] = (1,)
    """Numbers of CPU threads to measure with."""
    runs: int = 20
    pictures: int = 3
    """With --bundle: whole pictures to time."""
    device: str = "auto"
    dtype: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    memory: bool = True
    """Measure peak memory as well (a fresh process per part on the CPU)."""
    markdown: bool = False
    out: Path | None = None
    """Also write the rows to this JSON file."""


def parts(pipe: Any, batch: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name -> (module, inputs) of the three programs that a device would run."""
    from ..export.foreign import ForeignPipeline, decoding

    device = pipe.device
    own = not isinstance(pipe, ForeignPipeline)
    x, t, cond = pipe.transformer.example(batch, device) if own else pipe.example(batch)
    return {
        "text encoder": (pipe.text_encoder, pipe.text_encoder.example(batch, device)),
        "denoising step": (pipe.transformer, (x, t, cond)),
        "decoder": (decoding(pipe.decoder), (x,)),
    }


def rows(pipe: Any, args: Args) -> list[dict[str, Any]]:
    import torch

    from ..bench.cost import cost
    from ..bench.latency import latency
    from ..bench.memory import peak
    from ..bench.table import short

    dtype = precision(args.dtype)
    out = []
    for name, (module, inputs) in parts(pipe, args.batch).items():
        found = cost(module, inputs)
        row: dict[str, Any] = {
            "part": name,
            "parameters": short(found.parameters),
            "MACs": short(found.macs),
        }
        for n in args.threads:
            with torch.no_grad(), torch.autocast(pipe.device.type, dtype, enabled=dtype != torch.float32):
                timed = latency(module, inputs, args.runs, threads=n)
            row[f"ms ({n} thr)"] = timed.median
            row[f"p10-p90 ({n} thr)"] = f"{timed.p10:.3g}-{timed.p90:.3g}" + (
                " contended" if timed.contended else ""
            )
        if args.memory and pipe.device.type in ("cpu", "cuda"):
            row["peak"] = short(peak(module, inputs).peak, "B")
        out.append(row)
    return out


def bundle_rows(pipe: Any, args: Args) -> list[dict[str, Any]]:
    """Eager fp32 and every bundle: each component, then a whole picture, at every number of threads."""
    import importlib
    import time

    from ..export.bundle import size_of, target
    from ..export.program import programs
    from ..runtime.manifest import COMPONENTS
    from .generate import bundle_of

    bundles = {folder: bundle_of(folder, sequential=True) for folder in args.bundle}
    for folder, bundle in bundles.items():
        library = target(bundle.manifest.target).LIBRARY
        if not library:
            raise ValueError(
                f"{folder}: {bundle.manifest.target} is interpreted here, its times would mean nothing"
            )
        importlib.import_module(library)  # no part of anyone's loading
    made = programs(pipe)
    rows: list[dict[str, Any]] = []
    for name in COMPONENTS:
        eager = eager_row(made[name], args)
        rows.append(eager)
        rows += [component_row(folder, bundle, made[name], eager, args) for folder, bundle in bundles.items()]
    eager = {
        "part": "picture",
        "runtime": "eager fp32",
        "MB": sum(r["MB"] for r in rows if "eager" in r["runtime"]),
    }
    prompt = "two green stars"
    for n in args.threads:
        eager |= timed(n, lambda: pipe.sample([prompt]), args.pictures, None)
    rows.append(eager)
    for folder, bundle in bundles.items():
        size = sum(size_of(folder / c["file"]) for c in bundle.manifest.components.values()) / 1e6
        row: dict[str, Any] = {"part": "picture", "runtime": str(folder), "MB": size}
        for n in args.threads:
            bundle.threads, bundle.sequential = n, False
            started = time.perf_counter()
            bundle.generate([prompt])
            row.setdefault("load ms", 1e3 * (time.perf_counter() - started))
            row |= timed(n, lambda b=bundle: b.generate([prompt]), args.pictures, eager[f"ms ({n} thr)"])
            bundle.loaded.clear()
        rows.append(row)
    return rows


def eager_row(program: Any, args: Args) -> dict[str, Any]:
    weights = sum(p.nbytes for p in program.module.parameters())
    inputs = tuple(program.inputs.values())
    row: dict[str, Any] = {
        "part": program.name,
        "runtime": "eager fp32",
        "MB": weights / 1e6,
        "load ms": None,
    }
    if args.memory:
        from ..bench.memory import peak

        row["peak MB"] = peak(program.module, inputs).peak / 1e6
    for n in args.threads:
        row |= timed(n, lambda: program.module(*inputs), args.runs, None)
    return row


def component_row(
    folder: Path, bundle: Any, program: Any, eager: dict[str, Any], args: Args
) -> dict[str, Any]:
    """One component of a bundle; "load" is the time until its first result."""
    import time

    from ..bench.peak import peak
    from ..export.bundle import size_of, target

    name, inputs = program.name, program.inputs
    described = bundle.manifest.components[name]
    if (ours := [list(v.shape) for v in inputs.values()]) != (
        theirs := [i["shape"] for i in described["inputs"].values()]
    ):
        raise ValueError(f"{folder}: {name} takes {theirs}, {args.model} takes {ours}")
    given = {key: value.numpy() for key, value in inputs.items()}
    path, writer = folder / described["file"], target(bundle.manifest.target)
    row: dict[str, Any] = {"part": name, "runtime": str(folder), "MB": size_of(path) / 1e6}
    if args.memory:
        row["peak MB"] = peak(path, given, writer.__name__, writer.LIBRARY) / 1e6
    for n in args.threads:
        bundle.threads = n
        started = time.perf_counter()
        bundle(name, given)
        row.setdefault("load ms", 1e3 * (time.perf_counter() - started))
        row |= timed(n, lambda: bundle(name, given), args.runs, eager[f"ms ({n} thr)"])
        bundle.release(name)
    return row


def timed(threads: int, call: Any, runs: int, eager: float | None) -> dict[str, Any]:
    """Milliseconds, and how many times faster than eager fp32."""
    from ..bench.latency import latency

    found = latency(call, (), runs, warmup=min(3, runs), threads=threads)
    ratio = (eager or found.median) / found.median
    note = " contended" if found.contended else ""
    return {f"ms ({threads} thr)": found.median, f"speed ({threads} thr)": f"{ratio:.2f}{note}"}


def main(args: Args) -> None:
    if args.batch < 1 or any(n < 1 for n in args.threads):
        raise ValueError("--batch and --threads: expected 1 or more")
    import json

    from ..bench.table import markdown, text
    from ..export.foreign import opened

    # bundles run on the CPU, and are compared with the model there
    pipe = opened(args.model, width=args.width).to(choose("cpu" if args.bundle else args.device))
    found = bundle_rows(pipe, args) if args.bundle else rows(pipe, args)
    print((markdown if args.markdown else text)(found))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=2) + "\n")
