"""One pipeline on every runtime: torch, onnxruntime, ExecuTorch, the browser.

    pocket train scenes_runtimes
    pocket train scenes_runtimes --targets onnx:fp32 onnx:int8 --threads 1 --out runs/two_runtimes

Exports what is not yet in OUT, then times a denoising step (guided: two rows) and a whole picture on every
number of threads, and prints one table with eager fp32 as 1. The browser (target web) is Chromium, with the
playwright package; its first picture is counted from the moment the page is ready. Rows but the browser's are
marked where others were using the cores: give it a quiet machine. Exports to ExecuTorch take some minutes,
all else three. LiteRT has an environment of its own: scenes_litert.
Expected: see docs/results.md (speed on every runtime).
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..bench.latency import latency, threaded
from ..bench.table import text as table
from ..export.bundle import Choice, export, target
from ..export.program import Program, programs
from ..pipeline import Pipeline
from ..runtime.bundle import Bundle

TARGETS = (
    "onnx:fp32",
    "onnx:int8",
    "executorch:fp32",
    "executorch:int8",
    "executorch:8da4w",
    "web:fp32",
    "web:int8",
)
PROMPT = "two green stars"


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/scenes_runtimes")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    targets: tuple[str, ...] = TARGETS  # TARGET:PRECISION
    threads: tuple[int, ...] = (1, 2)
    runs: int = 40  # of a step
    pictures: int = 5
    compile: bool = True


Row = dict[str, Any]


def timed(call: Callable[[], Any], runs: int, threads: int) -> tuple[float, str]:
    found = latency(call, (), runs, warmup=2, threads=threads)
    return found.median, " contended" if found.contended else ""


def filled(row: Row, threads: int, step: tuple[float, str], picture: tuple[float, str] | None) -> None:
    row[f"step ms ({threads} thr)"], mark = step
    row[f"picture s ({threads} thr)"] = picture[0] / 1e3 if picture else None
    row["note"] = row.get("note") or mark.strip() or (picture[1].strip() if picture else "")


def eager(pipe: Pipeline, program: Program, args: Args) -> Row:
    weights = sum(p.nbytes for network in pipe.components.values() for p in network.parameters())
    row: Row = {"runtime": "eager fp32", "MB": weights / 1e6}
    inputs = tuple(program.inputs.values())
    for n in args.threads:
        step = timed(lambda: program.module(*inputs), args.runs, n)
        filled(row, n, step, timed(lambda: pipe.sample([PROMPT]), args.pictures, n))
    return row


def compiled(pipe: Pipeline, program: Program, args: Args) -> Row:
    """Compiled anew for each number of threads, which the generated code is made for."""
    row: Row = {"runtime": "compiled fp32", "MB": None}
    inputs = tuple(program.inputs.values())
    for n in args.threads:
        with threaded(n):
            torch._dynamo.reset()
            fast = torch.compile(program.module)
            step = timed(partial(fast, *inputs), args.runs, n)
        filled(row, n, step, None)
    return row


def native(folder: Path, program: Program, args: Args) -> Row:
    kind = json.loads((folder / "manifest.json").read_text())["target"]
    report = json.loads((folder / "report.json").read_text())
    row: Row = {"runtime": folder.name, "MB": sum(r["bytes"] for r in report["components"]) / 1e6}
    given = {key: value.numpy() for key, value in program.inputs.items()}
    for n in args.threads:
        bundle = Bundle.open(folder, n, runtimes={kind: target(kind).opened})
        step = timed(partial(bundle, "denoiser", given), args.runs, n)
        filled(row, n, step, timed(partial(bundle.generate, [PROMPT]), args.pictures, n))
        # its threads may only be replaced once it is gone
        del bundle
    return row


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A plain static host; the page's own service worker sends the headers that threads need."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def browser(folder: Path, args: Args) -> Row:
    """Chromium; the step's time is that of the whole sampling over its steps, as the page sees it."""
    from playwright.sync_api import sync_playwright

    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".wasm")
    row: Row = {"runtime": f"{folder.name} (Chromium)", "MB": size / 1e6}
    path = shutil.which("chromium") or shutil.which("google-chrome")
    firsts: list[str] = []
    with served(folder) as address, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for n in args.threads:
            tab = chromium.new_context().new_page()
            tab.goto(f"{address}?threads={n}")
            tab.wait_for_function("document.body.dataset.ready", timeout=120_000)
            about = json.loads(tab.evaluate("document.body.dataset.ready"))
            if about["threads"] != n:
                raise ValueError(f"--threads {n}: the browser runs {about['threads']}")
            found = [drawn(tab) for _ in range(args.pictures + 1)]
            firsts.append(f"{found[0][1] / 1e3:.1f} s ({n} thr)")
            steps, whole = (median(x) for x in zip(*found[1:]))
            filled(row, n, (steps, ""), (whole, ""))
        chromium.close()
    row["note"] = "first picture " + ", ".join(firsts)
    return row


def drawn(tab: Any) -> tuple[float, float]:
    """Milliseconds of a step and of a picture."""
    tab.evaluate("delete document.body.dataset.done")
    tab.fill("#prompt", PROMPT)
    tab.click("#go")
    tab.wait_for_function("document.body.dataset.done", timeout=300_000)
    times = json.loads(tab.evaluate("document.body.dataset.done"))["times"]
    count = int(tab.input_value("#steps"))
    return times["steps"] / count, sum(times.values())


@torch.no_grad()
def main(args: Args) -> None:
    if any(named.startswith("web") for named in args.targets):
        import playwright  # noqa: F401  before the minutes that the rest takes

        if max(args.threads) > (os.cpu_count() or 1):
            raise ValueError(f"--threads {max(args.threads)}: this machine has {os.cpu_count()} cores")
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = Pipeline.from_pretrained(args.model)
    program = programs(pipe)["denoiser"]
    folders = []
    for named in args.targets:
        kind, _, precision = named.partition(":")
        folders.append(args.out / f"{kind}-{precision}")
        if not folders[-1].exists():
            print(f"exporting {named}", flush=True)
            export(pipe, folders[-1], Choice(kind, precision), args.model)
    rows = [eager(pipe, program, args)]
    if args.compile:
        rows.append(compiled(pipe, program, args))
    for folder in folders:
        print(f"timing {folder.name}", flush=True)
        rows.append(browser(folder, args) if folder.name.startswith("web") else native(folder, program, args))
        (args.out / "runtimes.json").write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        for n in args.threads:
            row[f"speed ({n} thr)"] = rows[0][f"step ms ({n} thr)"] / row[f"step ms ({n} thr)"]
        row["note"] = row.pop("note", "")
    print(table(rows))
    (args.out / "runtimes.json").write_text(json.dumps(rows, indent=2) + "\n")
