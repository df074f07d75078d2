"""pocket demo: sample, train, score, compare, time and export, in a report to look at.

    pocket demo --out out/demo
    pocket demo --model FOLDER --teacher FOLDER        # any two pipelines side by side

About seven minutes on two cores. Writes report.html and PNG files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..eval.compose import Result
    from ..eval.report import Report
    from ..pipeline import Pipeline

PROMPTS = (
    "a red circle",
    "two green stars",
    "three black rings",
    "a striped blue square",
    "a yellow diamond and a purple cross",
    "a red square to the left of a cyan circle",
    "a pink heart above a brown ring",
    "three red circles and a blue square",
)

EACH = 3  # pictures per prompt
COUNTED = (
    "five red circles",
    "three blue stars",
    "six green squares",
    "four yellow diamonds",
)


@dataclass(frozen=True)
class Args:
    out: Path = Path("out/demo")
    model: str = "snapgen_scenes"
    """A shipped pipeline's name or a folder."""
    teacher: str = "scenes"
    """The pipeline of many steps beside it, which is also sampled lazily and corrected; empty: none."""
    elastic: str = "elastic"
    """An elastic pipeline: a shipped name or a folder, whose widths are compared; empty: none."""
    train_steps: int = 600
    """Steps of the small model that is trained live."""
    prompts: int = 6
    """SceneEval prompts per category (of 60), two pictures each."""
    threads: int = 2


@dataclass
class Demo:
    """What the sections share."""

    args: Args
    pipe: Pipeline
    teacher: Pipeline | None
    elastic: dict[str, Pipeline]  # by width
    report: Report
    scored: Result | None = None  # of ``pipe``
    seen: dict[str, dict[str, float]] = field(default_factory=dict)  # name -> what costs() says

    @property
    def many(self) -> Pipeline:
        """The pipeline of many steps, if there is one."""
        return self.teacher or self.pipe


def generate(demo: Demo) -> None:
    """Pictures of the shipped pipeline."""
    from ..eval.report import grid

    every = [p for p in PROMPTS for _ in range(EACH)]
    started = time.perf_counter()
    pictures = demo.pipe(PROMPTS, num_images=EACH)
    seconds = (time.perf_counter() - started) / len(pictures)
    grid(pictures, every, columns=2 * EACH).save(demo.args.out / "shipped.png")
    demo.report.heading("From prompt to picture")
    schedule = demo.pipe.schedule
    demo.report.text(
        f"{demo.args.model}: {len(schedule.levels()) - 1} steps, guidance {schedule.guidance}, seed 0, "
        f"{seconds:.2f} s per picture here."
    )
    demo.report.grid(pictures, every)


def train(demo: Demo) -> None:
    """The recipe `live`: a small denoiser from scratch, on the shipped autoencoder's latents."""
    import torch

    from ..eval.plots import lines
    from ..eval.report import grid
    from ..recipes.live import PROMPTS, Args, live

    args = Args(model=demo.args.model, steps=demo.args.train_steps)
    seen = live(demo.pipe, args)
    both = (demo.pipe.transformer, demo.pipe.text_encoder)
    larger = sum(p.numel() for part in both for p in part.parameters()) / seen.parameters
    demo.report.heading("Training, live")
    demo.report.text(
        f"A denoiser and text encoder of {seen.parameters / 1e6:.2f} M parameters from random weights: "
        f"{args.steps} steps of {args.batch} pictures in {seen.seconds:.0f} s. Rows: after one, two and "
        f"three thirds. {demo.args.model} is {larger:.0f} times larger and has seen many more pictures."
    )
    width = max(1, args.steps // 60)
    starts = range(0, len(seen.losses) - width + 1, width)
    smooth = [(i, sum(seen.losses[i : i + width]) / width) for i in starts]
    demo.report.plot(lines({"flow matching loss": smooth}, "step", "loss"))
    pictures, captions = torch.cat(seen.pictures), PROMPTS * len(seen.pictures)
    demo.report.grid(pictures, captions)
    grid(pictures, captions, columns=len(PROMPTS)).save(demo.args.out / "live.png")


def score(demo: Demo) -> None:
    """A part of SceneEval, judged by a detector that sees pixels only."""
    from . import evaluate

    args = evaluate.Args(demo.args.model, per_prompt=2, prompts=demo.args.prompts)
    result = demo.scored = evaluate.scene_eval(evaluate.artist(demo.pipe, args), args)[0]
    rows = [
        {"category": c, "score": round(s, 2), "95 % interval": "{:.2f} - {:.2f}".format(*result.intervals[c])}
        for c, s in result.scores.items()
    ]
    demo.report.heading("Scored").table([*rows, {"category": "overall", "score": round(result.overall, 2)}])
    demo.report.text(f"{result.pictures} pictures only; the full evaluation is in docs/results.md.")
    print(result.table())


def spend_less(demo: Demo) -> None:
    """Lazy sampling beside fewer steps: what rests, pictures, time."""
    from ..bench.latency import latency
    from ..bench.table import text
    from ..compress.lazy import alternating
    from ..eval.plots import heat
    from ..eval.report import grid, to_pil
    from ..nn.gate import branches

    pipe, steps = demo.many, len(demo.many.schedule.levels()) - 1
    demo.report.heading("Spend less")
    if pipe.schedule.times:
        demo.report.text(f"Left out: a pipeline of {steps} steps has none to spare.")
        return
    names = branches(pipe.transformer)
    plans = pipe.plans or {"alternating": alternating(names, pipe.schedule.levels()[:-1].tolist())}
    name, plan = max(plans.items(), key=lambda found: found[1].laziness)
    ways: dict[str, dict[str, Any]] = {
        f"{steps} steps": {},
        f"{steps} steps, {plan.laziness:.0%} lazy": {"lazy": plan},
        f"{max(1, round(steps * (1 - plan.laziness)))} steps": {
            "steps": max(1, round(steps * (1 - plan.laziness)))
        },
    }
    full, rows, pictures = pipe.sample(PROMPTS), [], {}
    for way, how in ways.items():
        drawn = pictures[way] = pipe.sample(PROMPTS, **how)

        def one(how: dict[str, Any] = how) -> object:
            return pipe.sample(["two green stars"], **how)

        timed = latency(one, (), runs=3, warmup=1, threads=demo.args.threads)
        away = float((drawn - full).abs().mean()) if how else None
        rows.append(
            {"": way, "seconds per picture": timed.median / 1e3, "mean difference from the first": away}
        )
    squares = {n: [float(not rests) for rests in row] for n, row in plan.skips.items()}
    demo.report.text(
        f"The plan {name!r}: branches of the denoiser that rest at some steps, where what they gave the step "
        "before stands in; beside it, as many steps as cost about the same. Every second step needs no "
        "training; pocket train lazy_scenes learns other plans."
    )
    demo.report.beside(pictures, PROMPTS).table(rows)
    demo.report.plot(heat(squares, "step; filled: computed"), "What is computed")
    every = [x for drawn in pictures.values() for x in to_pil(drawn)]
    grid(every, len(pictures) * PROMPTS, columns=len(PROMPTS)).save(demo.args.out / "lazy.png")
    print(text(rows))


def count_right(demo: Demo) -> None:
    """Count correction: what was foreseen, what had to change, what came of it."""
    import torch

    from ..eval.report import grid
    from .counting import LEAST, Looking

    demo.report.heading("Count right")
    steps = len(demo.many.schedule.levels()) - 1
    if demo.many.schedule.times or steps < LEAST:
        demo.report.text(f"Left out: {steps} steps leave nothing to go back to; it takes {LEAST}.")
        return
    looking, shown, lines = Looking(demo.many), [], []
    for prompt in COUNTED:
        made = looking(prompt)
        shown.append(made.shown)
        lines.append(f"{prompt}: {made.line()}")
    demo.report.text(
        "Each row of three: what the denoiser foresees near the end, what goes (red) and comes (green), "
        "and what came of it. Nothing changes where the count is right; docs/results.md says how often it "
        "helps.\n\n" + "\n".join(lines)
    )
    demo.report.grid(torch.stack(shown), list(COUNTED), 300)
    grid(torch.stack(shown), COUNTED, columns=2).save(demo.args.out / "count.png")
    print("\n".join(lines))


def measure(demo: Demo) -> None:
    """Parameters, multiply-accumulates, latency and memory of the three parts."""
    from ..bench.table import text
    from . import bench

    rows = bench.rows(
        demo.pipe, bench.Args(demo.args.model, threads=tuple(sorted({1, demo.args.threads})), runs=10)
    )
    demo.report.heading("Timed").table(rows)
    demo.report.text("Milliseconds on this machine, at this moment: compare them with each other only.")
    print(text(rows))


def device(demo: Demo) -> None:
    """An int8 bundle, its table beside eager fp32, and its pictures beside the original's."""
    import importlib.util

    import torch

    from ..bench.table import text
    from ..export.bundle import Choice, export
    from ..runtime.bundle import Bundle
    from . import bench

    if not importlib.util.find_spec("onnxruntime"):
        demo.report.heading("Onto a device").text("Left out: it needs the extra onnx.")
        return
    folder = demo.args.out / "bundle-int8"
    report = export(demo.pipe, folder, Choice("onnx", "int8"), demo.args.model)
    rows = bench.bundle_rows(demo.pipe, bench.Args(demo.args.model, bundle=(folder,), runs=10))
    for row in rows:
        row["runtime"] = "onnxruntime int8" if row["runtime"] == str(folder) else row["runtime"]
    prompts = PROMPTS[:6]
    ours = torch.from_numpy(Bundle.open(folder).generate(prompts)).permute(0, 3, 1, 2)
    theirs = demo.pipe.sample(prompts)
    demo.report.heading("Onto a device").table(rows)
    median = sorted(report.psnr)[len(report.psnr) // 2]
    demo.report.text(
        f"The same pipeline exported to ONNX in int8, {report.bytes / 1e6:.1f} MB, run by onnxruntime "
        "without torch. First the original's pictures, then the bundle's, from the same noise "
        f"({median:.0f} dB at the median of three). Rounding leads a trajectory elsewhere; whether it ends "
        "worse is for SceneEval to say."
    )
    demo.report.grid(torch.cat([theirs, ours / 127.5 - 1]), [*prompts, *prompts])
    print(text(rows))


def main(args: Args) -> None:
    import torch

    from ..eval.report import Report
    from ..pipeline import Pipeline
    from .compared import compare, opened, widths

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    # before minutes are spent
    teacher = Pipeline.from_pretrained(args.teacher) if args.teacher else None
    elastic = opened(args.elastic) if args.elastic else {}
    demo = Demo(args, Pipeline.from_pretrained(args.model), teacher, elastic, Report("pocketdiffusion demo"))
    for section in (generate, train, score, compare, widths, spend_less, count_right, measure, device):
        started = time.perf_counter()
        print(f"== {section.__name__}")
        section(demo)
        # what is done stays, should a later section fail
        page = demo.report.save(args.out / "report.html")
        print(f"   {time.perf_counter() - started:.0f} s")
    print(page)
