"""pocket costs: what every block and branch takes, here or on a phone, as a table.

    pocket costs scenes --runtime onnx -o out/costs.json
    pocket costs DiT:scenes --batch 2              # a preset with random weights: as fast as trained ones
    pocket costs scenes --component vae --names "decoder.*"
    pocket costs elastic -o out/widths.json        # every width of an elastic model, for generate --step-ms
    pocket costs scenes --export out/blocks        # ONNX files to measure elsewhere, and blocks.json
    pocket costs --take out/blocks --device "iPhone 16, onnxruntime" -o out/phone.json

Equal blocks are measured once. For another device, run every file of --export there and write its time in ms
into blocks.json; --take checks them and makes the table. Pruning and search look candidates up in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..device import choose
from ..disk import replacing

if TYPE_CHECKING:
    from ..bench.costs import Measured, Runtime

LIST = "blocks.json"


@dataclass(frozen=True)
class Args:
    model: Annotated[str, tyro.conf.Positional] = "snapgen_scenes"
    """A shipped pipeline's name, a folder of a pipeline or of one network, or CLASS:PRESET."""
    component: str = "transformer"
    """Which network of a pipeline: transformer, text_encoder or vae."""
    width: str | None = None
    """Of an elastic model: one of its widths by name; default: all of them."""
    names: tuple[str, ...] = ()
    """Submodules to measure, * for one part of a dotted name; default: the model, its BLOCKS and BRANCHES."""
    runtime: str = "eager"
    """eager or onnx."""
    precision: str = "fp32"
    """Eager: fp32, bf16 or fp16 (autocast). ONNX: fp32, fp16, int8, w8 or w4."""
    batch: int = 1
    threads: int = 1
    runs: int = 20
    device: str = "auto"
    """Where eager torch runs; with --take the name of the device that was measured."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """The table, a JSON file."""
    export: Path | None = None
    """Write the blocks as ONNX files into this folder and measure nothing."""
    take: Path | None = None
    """A folder of --export, or its blocks.json, with "ms" filled in."""


def check(args: Args) -> None:
    """Everything that can be refused before the model is loaded."""
    if args.batch < 1 or args.threads < 1 or args.runs < 2:
        raise ValueError("--batch and --threads: expected 1 or more; --runs: 2 or more")
    if args.runtime not in ("eager", "onnx"):
        raise ValueError(f"--runtime {args.runtime}: expected eager or onnx")
    if args.export and args.out:
        raise ValueError("--export writes blocks to measure and no table: leave -o out")
    if args.export and any(r.get("ms") for r in blocks_of(args.export)):
        raise ValueError(f"{args.export / LIST}: holds times already; name another folder")
    if args.export and args.take:
        raise ValueError("--export writes blocks to measure, --take reads the times: give one of them")
    if args.take and (args.device == "auto" or args.out is None):
        raise ValueError("--take: say on what the times were measured (--device NAME) and where to (-o FILE)")
    if args.export or args.runtime == "onnx":
        from ..export import onnx

        if args.precision not in onnx.PRECISIONS:
            raise ValueError(f"--precision {args.precision}: ONNX has {', '.join(onnx.PRECISIONS)}")
        if args.device not in ("auto", "cpu"):
            raise ValueError(f"--device {args.device}: onnxruntime runs on the CPU here")


def blocks_of(folder: Path) -> list[dict[str, Any]]:
    """The blocks of an earlier --export, if there is one that can be read."""
    try:
        return json.loads((folder / LIST).read_text())["entries"]
    except (OSError, ValueError, KeyError):
        return []


def network(args: Args, device: Any) -> Any:
    from .. import store
    from ..pipeline import COMPONENTS, find

    if ":" in args.model and not Path(args.model).exists():
        name, _, chosen = args.model.partition(":")
        made = getattr(store.kind(name), name)(store.preset(name, chosen))
    else:
        folder = find(args.model)
        if (folder / "model_index.json").exists():
            if args.component not in COMPONENTS:
                raise ValueError(f"--component {args.component}: expected {', '.join(COMPONENTS)}")
            folder = folder / args.component
        made = store.load(folder)
    return made.to(device).eval().requires_grad_(False)


def widths(model: Any, args: Args) -> list[Any]:
    """Of an elastic model every width, or the one that is named; of any other the model itself."""
    if not hasattr(model, "extract"):
        if args.width:
            raise ValueError(f"{args.model}: a {type(model).__name__} has one width, not {args.width!r}")
        return [model]
    names = model.config.names if args.width is None else (args.width,)
    if args.export and args.width is None:
        raise ValueError(f"--export: name one of {args.model}'s widths (--width {names[0]})")
    return [model.extract(name).eval().requires_grad_(False) for name in names]


def onnxruntime(args: Args) -> Runtime:
    import tempfile

    import onnxruntime as ort

    from ..bench.costs import Runtime, machine, measured
    from ..bench.latency import latency
    from ..export import onnx
    from ..export.program import flattened

    def measure(module: Any, inputs: Sequence[Any]) -> Measured:
        program = flattened(type(module).__name__, module, inputs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "block.onnx"
            onnx.write(program, path, args.precision)
            run, size = onnx.opened(path, args.threads), path.stat().st_size
        given = {key: value.numpy() for key, value in program.inputs.items()}
        return measured(latency(lambda: run(given), (), args.runs, threads=args.threads), size)

    where = f"{machine()}, onnxruntime {ort.__version__}, {args.threads} thr"
    return Runtime(where, args.precision, measure)


def export(model: Any, inputs: Sequence[Any], args: Args) -> None:
    """One ONNX file per distinct block, and the list in which their times are to be written."""
    from ..bench.costs import distinct
    from ..bench.table import text
    from ..compress.costs import FORMAT
    from ..export import onnx
    from ..export.program import flattened

    assert args.export
    rows: list[dict[str, Any]] = []
    with replacing(args.export, (LIST,)) as temporary:
        for i, ((op, shapes), same) in enumerate(distinct(model, inputs, args.names).items()):
            file = f"{i:02d}-{op}.onnx"
            print(f"writing {file}", flush=True)
            program = flattened(op, same[0].module, same[0].inputs)
            onnx.write(program, temporary / file, args.precision)
            rows.append(
                {
                    "file": file,
                    "ms": None,
                    "feeds": {k: list(v.shape) for k, v in program.inputs.items()},
                    "op": op,
                    "inputs": shapes.inputs,
                    "parts": dict(shapes.parts),
                    "precision": args.precision,
                    "bytes": (temporary / file).stat().st_size,
                    "seen": [call.name for call in same],
                }
            )
        (temporary / LIST).write_text(json.dumps({"format": FORMAT, "entries": rows}, indent=2) + "\n")
    print(text([{"file": r["file"], "MB": r["bytes"] / 1e6, "calls": len(r["seen"])} for r in rows]))
    print(f"{args.export / LIST}: fill in 'ms', then pocket costs --take {args.export} --device NAME -o FILE")


def main(args: Args) -> None:
    check(args)
    from ..bench.costs import eager, fill, rows
    from ..bench.table import text
    from ..compress.costs import Costs, merged, taken

    def said(what: str) -> None:
        print(f"measuring {what}", flush=True)

    if args.take:
        assert args.out
        table = taken(args.take / LIST if args.take.is_dir() else args.take, args.device)
    else:
        onnx = bool(args.export) or args.runtime == "onnx"
        device = choose("cpu" if onnx else args.device)
        models = widths(network(args, device), args)
        if args.export:
            return export(models[0], models[0].example(args.batch, device), args)
        runtime = onnxruntime(args) if onnx else eager(device, args.precision, args.threads, args.runs)

        def measured(model: Any) -> Costs:
            return fill(model, model.example(args.batch, device), runtime, args.names, said)

        table = merged([measured(model) for model in models])
    print(text(rows(table)))
    print("on " + " | ".join(table.devices))
    if args.out:
        table.save(args.out)
        print(args.out)
