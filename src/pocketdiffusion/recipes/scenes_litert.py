"""A pipeline on LiteRT (TensorFlow Lite): converted, compared with torch, timed.

    python3 -m venv litert
    litert/bin/pip install -U pip
    litert/bin/pip install torch==2.13.0
    litert/bin/pip install torch==2.13.0 litert-torch==0.10.0 .
    litert/bin/pocket train scenes_litert --out runs/scenes_litert

    pocket train scenes_litert --threads 1 --out runs/scenes_litert_1

litert-torch pins older versions of typing_extensions and pydantic than the rest of the project gets: hence an
environment of its own (2.1 GB; a CPU build of torch will do). Writes COMPONENT-PRECISION.tflite, litert.json
and a table: size, relative error over what the components are given while a picture is drawn, milliseconds
beside eager torch in the same process; and the PSNR of that picture.

    fp32   as it is
    int8   weights per channel; activations quantised as they come (dynamic); arithmetic in integers
    int4   the same with 4-bit weights, two in a byte

Takes about a minute and a half of CPU time. Expected: relative errors of 1e-6, 0.01 and 0.1 for the denoiser;
the picture at 50 dB with int8 and 34 dB with int4, on the shipped pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ..bench.latency import latency
from ..bench.table import text as table
from ..export.bundle import Choice, manifest_of
from ..export.parity import PROMPTS, pictures, psnr, recorded, relative
from ..export.program import Program, programs
from ..export.rewrite import ATTENTION, rewritten
from ..pipeline import Pipeline

PRECISIONS = ("fp32", "int8", "int4")


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_litert")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    precisions: tuple[str, ...] = PRECISIONS
    threads: tuple[int, ...] = (1, 2)
    runs: int = 20
    probes: int = 6  # inputs per component, from everywhere along the way, to measure errors over


def converted(program: Program, folder: Path, precisions: tuple[str, ...]) -> dict[str, Path]:
    """Precision -> file. Attention is rewritten, since LiteRT cannot run SDPA's expanded key-value heads."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    ways = {"int8": recipe.dynamic_wi8_afp32, "int4": recipe.dynamic_wi4_afp32}
    # norms are not: as products with a column they are quantised too, which doubles the error at int8
    module = rewritten(program.module, ATTENTION).eval()
    whole = folder / f"{program.name}-fp32.tflite"
    litert_torch.convert(module, tuple(program.inputs.values())).export(str(whole))
    files = {"fp32": whole}
    for precision in precisions:
        if precision in ways:
            files[precision] = folder / f"{program.name}-{precision}.tflite"
            made = quantizer.Quantizer(str(whole), ways[precision]()).quantize(enable_progress_report=False)
            files[precision].write_bytes(made.quantized_model)
    return {p: files[p] for p in precisions}


def opened(program: Program, path: Path, threads: int) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The file as a function of named arrays."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(path), num_threads=threads).get_signature_runner()

    def call(given: Mapping[str, Any]) -> dict[str, Any]:
        found = run(**{f"args_{i}": np.ascontiguousarray(given[key]) for i, key in enumerate(program.inputs)})
        return {key: found[f"output_{i}"] for i, key in enumerate(program.outputs)}

    return call


def measured(
    program: Program, files: Mapping[str, Path], probes: Sequence[Any], args: Args
) -> list[dict[str, Any]]:
    """Rows: eager torch, then every file."""
    inputs = tuple(program.inputs.values())
    given = {key: value.numpy() for key, value in program.inputs.items()}
    weights = sum(p.nbytes for p in program.module.parameters())
    rows: list[dict[str, Any]] = [
        {"part": program.name, "runtime": "eager fp32", "MB": weights / 1e6, "rel": None}
    ]
    for precision, path in files.items():
        rel = relative(program, opened(program, path, 1), list(probes))
        size = path.stat().st_size
        rows.append({"part": program.name, "runtime": f"LiteRT {precision}", "MB": size / 1e6, "rel": rel})
    for n in args.threads:
        timed = [latency(program.module, inputs, args.runs, threads=n)]
        for path in files.values():
            run = opened(program, path, n)
            timed.append(latency(lambda f=run: f(given), (), args.runs, threads=n))
        for row, one in zip(rows, timed):
            note = " contended" if one.contended else ""
            row[f"ms ({n} thr)"] = one.median
            row[f"p10-p90 ({n} thr)"] = f"{one.p10:.3g}-{one.p90:.3g}"
            row[f"speed ({n} thr)"] = f"{timed[0].median / one.median:.2f}{note}"
    return rows


def main(args: Args) -> None:
    if odd := [p for p in args.precisions if p not in PRECISIONS]:
        raise ValueError(f"--precisions {odd[0]}: expected {', '.join(PRECISIONS)}")
    if args.probes < 1 or args.runs < 2 or not args.threads or min(args.threads) < 1:
        raise ValueError("--probes and --threads: expected 1 or more; --runs: 2 or more")
    try:
        import litert_torch
    except ModuleNotFoundError as missing:
        raise ValueError(
            f"no module {missing.name!r}: LiteRT needs an environment of its own, "
            "see pocket train scenes_litert --help"
        ) from None
    litert_torch.config.show_progress = False
    versions = {name: version(name) for name in ("torch", "litert-torch", "ai-edge-litert")}
    pipe = Pipeline.from_pretrained(args.model)
    made = programs(pipe)
    manifest = manifest_of(pipe, made, Choice("litert"), args.model)
    wanted, probes = recorded(made, manifest, pipe, PROMPTS[:1])
    args.out.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Path]] = {}
    rows: list[dict[str, Any]] = []
    for name, program in made.items():
        started = perf_counter()
        files[name] = converted(program, args.out, args.precisions)
        print(f"{name}: converted in {perf_counter() - started:.0f} s", flush=True)
        few = probes[name][:: -(-len(probes[name]) // args.probes)]
        rows += measured(program, files[name], few, args)
    print(table(rows))
    quality = {}
    for precision in args.precisions:
        run = {name: opened(program, files[name][precision], 1) for name, program in made.items()}

        def call(name: str, inputs: Any, run: Any = run) -> Any:
            return run[name](inputs)

        drawn = pictures(call, manifest, pipe, PROMPTS[:1])
        quality[precision] = psnr(drawn[0], wanted[0])
        print(f"{precision}: the picture agrees with torch's to {quality[precision]:.1f} dB")
    report = {"model": args.model, "versions": versions, "rows": rows, "psnr": quality}
    (args.out / "litert.json").write_text(json.dumps(report, indent=2) + "\n")
