"""Pipelines side by side in the demo: teacher and student, the widths of an elastic model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .demo import PROMPTS, Demo

if TYPE_CHECKING:
    from ..eval.compose import Result
    from ..pipeline import Pipeline


def costs(pipe: Pipeline, scored: Result, threads: int) -> dict[str, float]:
    """What a pipeline scores, and what a picture takes, counted and here."""
    from ..bench.latency import latency
    from ..bench.picture import picture

    found = picture(pipe)
    timed = latency(lambda: pipe.sample(["two green stars"]), (), runs=3, warmup=1, threads=threads)
    return {
        "SceneEval": scored.overall,
        "M parameters of the denoiser": found.parameters / 1e6,
        "steps": len(pipe.schedule.levels()) - 1,
        "guidance": pipe.schedule.guidance,
        "calls of the denoiser": found.calls,
        "GMACs per call": found.step / 1e9,
        "GMACs per picture": found.macs / 1e9,
        "seconds per picture": timed.median / 1e3,
    }


def compare(demo: Demo) -> None:
    """The pipeline beside its teacher: pictures from the same noise, scores, costs."""
    from ..bench.table import text
    from ..eval.report import grid, to_pil
    from . import evaluate

    demo.report.heading("Teacher and student")
    if demo.teacher is None:
        demo.report.text("Left out: no --teacher is named.")
        return
    assert demo.scored
    pictures = {"teacher": demo.teacher.sample(PROMPTS), "student": demo.pipe.sample(PROMPTS)}
    args = evaluate.Args(demo.args.teacher, per_prompt=2, prompts=demo.args.prompts)
    scored, _ = evaluate.scene_eval(evaluate.artist(demo.teacher, args), args)
    teacher = demo.seen[demo.args.teacher] = costs(demo.teacher, scored, demo.args.threads)
    student = demo.seen[demo.args.model] = costs(demo.pipe, demo.scored, demo.args.threads)
    no_ratio = ("SceneEval", "guidance")
    rows = [
        {
            "": name,
            "teacher": teacher[name],
            "student": student[name],
            "teacher / student": None if name in no_ratio else teacher[name] / student[name],
        }
        for name in teacher
    ]
    demo.report.text(
        f"Teacher: {demo.args.teacher}, student: {demo.args.model}. The same prompts, and the same noise "
        "where sizes agree. A step with guidance calls the denoiser twice; a picture's MACs count that, the "
        f"text and the decoder. Seconds are one picture's, here; SceneEval is of {scored.pictures} pictures "
        "only: docs/results.md has the full one."
    )
    demo.report.beside(pictures, PROMPTS).table(rows)
    both = [x for drawn in pictures.values() for x in to_pil(drawn)]
    grid(both, 2 * PROMPTS, columns=len(PROMPTS)).save(demo.args.out / "compare.png")
    print(text(rows))


def opened(name: str) -> dict[str, Pipeline]:
    """The widths of an elastic pipeline, by name. ValueError for any other pipeline."""
    from ..pipeline import Pipeline, supernet

    return {width: Pipeline.from_pretrained(name, width=width) for width in supernet(name).config.names}


def widths(demo: Demo) -> None:
    """What each width of an elastic model scores and takes, and the same as a plot."""
    from ..bench.table import text
    from ..eval.plots import lines
    from ..eval.report import grid, to_pil
    from . import evaluate

    demo.report.heading("One file, several widths")
    if not demo.elastic:
        demo.report.text("Left out: no --elastic is named.")
        return
    args = evaluate.Args(demo.args.elastic, per_prompt=2, prompts=demo.args.prompts)
    seconds, score = "seconds per picture", "SceneEval"
    pictures, found = {}, {}
    for width, pipe in demo.elastic.items():
        pictures[width] = pipe.sample(PROMPTS)
        scored, _ = evaluate.scene_eval(evaluate.artist(pipe, args), args)
        found[width] = costs(pipe, scored, demo.args.threads)
    measures = next(iter(found.values()))
    # widths across: there are few of them
    rows = [{"": name} | {width: own[name] for width, own in found.items()} for name in measures]
    demo.report.text(
        f"{demo.args.elastic}: the widths share one set of weights, and each is extracted as a plain model. "
        f"SceneEval is of {scored.pictures} pictures each, seconds are one picture's, here: widths whose "
        "scores lie within a tenth of each other are not told apart by so few."
    )
    demo.report.beside(pictures, PROMPTS).table(rows)
    spots = {name: [(seen[seconds], seen[score])] for name, seen in demo.seen.items()}
    points = {
        f"{demo.args.elastic}, by width": [(own[seconds], own[score]) for own in found.values()]
    } | spots
    demo.report.plot(lines(points, seconds, score), "What a picture takes, and what it scores")
    every = [x for drawn in pictures.values() for x in to_pil(drawn)]
    grid(every, len(pictures) * PROMPTS, columns=len(PROMPTS)).save(demo.args.out / "widths.png")
    print(text(rows))
