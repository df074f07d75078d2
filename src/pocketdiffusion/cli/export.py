"""pocket export: a pipeline -> a bundle for a device, checked against the original.

    pocket export --precision int8 -o out/int8                           # what ships, for onnxruntime
    pocket export scenes --precision w4 --size-mb 4 -o out/4mb           # bits per layer under a budget
    pocket export --target web --precision int8 -o out/site              # then: pocket serve-web out/site
    pocket export --target executorch --precision 8da4w -o out/android
    pocket export --target coreml --precision fp16 -o out/ios
    pocket export --precision int8 --dry-run
    pocket export runs/lazy_scenes/pipeline --lazy 0.4 -o out/lazy       # a plan as a few static graphs
    pocket export my_autoencoder/ --size 256 -o out/vae                  # an autoencoder by itself
    pocket export my_sd15/ --precision w8 -o out/sd15                    # a pipeline of diffusers

An ONNX bundle carries its own runtime: python out/int8/run.py "two green stars". What does not compute what
the original does is not written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from ..compress.bits import Plan
    from ..export.program import Program
    from ..pipeline import Pipeline


@dataclass(frozen=True)
class Args:
    model: Annotated[str, tyro.conf.Positional] = "snapgen_scenes"
    """A shipped pipeline's name or a folder, of diffusers too."""
    decoder: Path | None = None
    """A folder with another decoder of the same latents (pocket train tiny_decoder)."""
    width: str | None = None
    """Of an elastic model: a width by name, or a file of one (kdmd_scenes); default: the full one."""
    target: str = "onnx"
    """Which runtime: onnx, executorch, coreml or web."""
    precision: str = "fp32"
    """fp32, fp16, int8, w8, w4 or 8da4w, as far as the target has it."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Folder of the bundle."""
    size: int | None = None
    """Pixels per side; default: what the model was trained for."""
    size_mb: float | None = None
    """Budget for the weights of all components: 16, 8 or 4 bits are chosen per layer (w8 and w4)."""
    components: tuple[str, ...] = ("text_encoder", "denoiser", "decoder")
    """Which parts to write, for an app that has the others."""
    plan: Path | None = None
    """Folder of plans (COMPONENT.json); with --size-mb they are written there, without it read from there."""
    lazy: str | None = None
    """Target onnx: a plan of the pipeline's, by name, as a program for each set of branches that rest."""
    graphs: int = 4
    """With --lazy: programs of the denoiser at most; steps that differ little share one."""
    webgpu: bool = False
    """Target web: put onnxruntime-web's WebGPU build (27 MB) beside the WASM one."""
    calibrate: str = "scenes"
    """int8 of an autoencoder by itself: scenes, or a folder of pictures or videos to calibrate on."""
    dry_run: bool = False
    """Say what would be written, and write nothing."""


def check(args: Args) -> None:
    """Everything that can be refused before the model is loaded."""
    from ..export.bundle import target

    writer = target(args.target)
    if args.precision not in writer.PRECISIONS:
        known = ", ".join(writer.PRECISIONS)
        raise ValueError(f"--precision {args.precision}: target {args.target} has {known}")
    if args.plan is not None and args.size_mb is None and args.precision not in writer.PLANNED:
        raise ValueError(f"--plan: target {args.target} reads one with {', '.join(writer.PLANNED)}")
    every = Args.components
    if not args.components or set(args.components) - set(every):
        raise ValueError(f"--components {' '.join(args.components)}: expected some of {', '.join(every)}")
    if args.target == "web" and set(args.components) != set(every):
        raise ValueError("--components: a page needs them all")
    if args.out is None and not args.dry_run:
        raise ValueError("-o DIR: name a folder for the bundle (or --dry-run)")
    if args.size_mb is not None and (args.precision not in ("w8", "w4") or args.target == "executorch"):
        wrong = f"--target {args.target} --precision {args.precision}"
        raise ValueError(f"--size-mb chooses weight bits: use w8 or w4 of onnx, web or coreml, not {wrong}")
    if args.lazy and (args.target != "onnx" or args.plan or args.size_mb or args.components != every):
        raise ValueError(f"--lazy {args.lazy}: needs target onnx, and no --plan, --size-mb and --components")
    if args.size_mb is not None and args.size_mb <= 0:
        raise ValueError(f"--size-mb {args.size_mb}: expected a positive size")


def measured(pipe: Pipeline, made: Mapping[str, Program], args: Args) -> dict[str, Plan]:
    """Plans under --size-mb, with a progress bar."""
    from tqdm import tqdm

    from ..export.budget import count, plans
    from ..export.bundle import Choice, manifest_of, shortened
    from ..export.parity import recorded

    assert args.size_mb is not None
    manifest = manifest_of(pipe, made, Choice(args.target), args.model)
    _, probes = recorded(made, shortened(pipe, manifest), pipe)
    choices = (8, 4) if args.precision == "w4" else (8,)
    with tqdm(total=count(made), desc="layers", delay=2, disable=None) as bar:
        return plans(made, probes, int(args.size_mb * 1e6), choices, lambda *_: bar.update())


def plans_of(pipe: Pipeline, made: Mapping[str, Program], args: Args) -> dict[str, Plan]:
    from ..compress.bits import Plan, fitting

    if args.size_mb is not None:
        plans = measured(pipe, made, args)
        for name, plan in plans.items() if args.plan else ():
            plan.save(args.plan / f"{name}.json")  # type: ignore[operator]
        return plans
    if args.plan is None:
        return {}
    plans = {name: Plan.load(args.plan / f"{name}.json") for name in made}
    for name, plan in plans.items():
        fitting(made[name].module, plan.bits, name)
    return plans


def is_autoencoder(model: str) -> bool:
    """Whether the name or folder is an autoencoder (or a decoder) by itself."""
    from ..pipeline import find

    folder = find(model)
    return (folder / "config.json").exists() and not (folder / "model_index.json").exists()


def autoencoder(args: Args) -> None:
    """An autoencoder's programs."""
    from ..bench.table import short, text
    from ..export.bundle import table
    from ..export.streams import export, programs
    from .autoencoder import network_of

    if args.plan or args.size_mb or args.decoder or args.width or args.lazy:
        raise ValueError(f"{args.model}: --plan, --size-mb, --decoder, --width and --lazy are for pipelines")
    if args.webgpu or args.target == "web" or args.components != Args.components:
        raise ValueError(f"{args.model}: --target web, --webgpu and --components are for pipelines")
    network = network_of(args.model)
    if args.dry_run:
        made = programs(network, args.size)
        rows = [
            {"program": name, "inputs": ", ".join(f"{k} {tuple(v.shape)}" for k, v in p.inputs.items())}
            for name, p in made.items()
        ]
        print(text(rows))
        return
    assert args.out is not None
    say = partial(print, flush=True)
    report = export(network, args.out, args.target, args.precision, args.size, say, args.calibrate)
    print(text(table(report)))
    agree = f"; streams agree to {min(report.psnr):.1f} dB with whole clips" if report.psnr else ""
    print(f"{args.out}: {short(report.bytes, 'B')}{agree}")


def main(args: Args) -> None:
    check(args)
    if is_autoencoder(args.model):
        return autoencoder(args)
    if args.calibrate != Args.calibrate:
        raise ValueError(f"--calibrate {args.calibrate}: is for an autoencoder by itself, not a pipeline")
    from ..bench.table import short, text
    from ..compress.bits import table as bits_table
    from ..compress.bits import uniform
    from ..export.bundle import Choice, export, table
    from ..export.foreign import opened
    from ..export.lazy import fewer
    from ..export.lazy import programs as programs_of
    from ..export.program import programs

    pipe = opened(args.model, args.decoder, args.width)
    chosen = [name for name in Args.components if name in args.components]
    every = programs(pipe, args.size)
    made = {name: every[name] for name in chosen}
    lazy = fewer(pipe.lazy(args.lazy), args.graphs) if args.lazy else None
    if lazy:
        made = programs_of(pipe, every, lazy)[0]
        graphs = sum(name.startswith("denoiser") for name in made)
        print(f"{graphs} programs of the denoiser, {lazy.laziness:.2f} of the calls of its branches rest")
    if args.dry_run:
        rows: list[dict[str, Any]] = []
        for name, program in made.items():
            inputs = ", ".join(f"{k} {tuple(v.shape)}" for k, v in program.inputs.items())
            fine, least = (uniform(program.module, b).bytes for b in (16, 4))
            sizes = f"{short(fine, 'B')} - {short(least, 'B')}"
            rows.append({"component": name, "inputs": inputs, "weights, 16 to 4 bits": sizes})
        print(text(rows))
        return
    plans = plans_of(pipe, every, args)
    for name, plan in ((name, plans[name]) for name in made if plans):
        print(f"{name}: {short(plan.bytes, 'B')} of weights, predicted relative error {plan.error**0.5:.3g}")
        print(text(bits_table(made[name].module, plan)))
    assert args.out is not None
    runtimes = ("wasm", "webgpu") if args.webgpu else ("wasm",)
    source = f"{args.model} ({args.width})" if args.width else args.model
    choice = Choice(args.target, args.precision, args.size, plans, tuple(chosen), runtimes, lazy)
    report = export(pipe, args.out, choice, source, lambda what: print(what, flush=True))
    print(text(table(report)))
    agree = f"; pictures agree to {median(report.psnr):.1f} dB (median)" if report.psnr else ""
    print(f"{args.out}: {short(report.bytes, 'B')}{agree}")
    for warning in report.warnings:
        print(f"warning: {warning}")
