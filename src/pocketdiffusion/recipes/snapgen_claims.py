"""SnapGen's four steps: adversarial distillation against what is simpler, over seeds.

    pocket train snapgen_claims --student runs/snapgen_scenes_kd/pipeline
    pocket train snapgen_claims --student FOLDER --arms adversarial kd --control kd --steps 500

``student``: a pipeline of many steps. Arms: ``adversarial``, tuned by snapgen_scenes_4step; ``kd``, the same
run without the discriminator, so that at the same levels only the guided teacher and the data teach;
``path``, tuned by the teacher's trajectories (snapgen_scenes_path), with equal steps and batches;
``undistilled``, the student as it is with as few steps and its own guidance; ``teacher``, as its pipeline
says; ``teacher_equal_macs``, the teacher with the fewest steps that cost no less than the student's few. The
last three are not trained. Of a seed all arms share the noise of sampling; ``GMACs`` are of a whole picture.
Every run is kept (OUT/ARM-SEED.json) and not repeated. The paper claims that four adversarial steps come
close to the student's many (GenEval 0.61 to 0.66). Run for a DiT that is its own student (--student scenes
--steps 300 --lr 1e-4 --pictures 256): docs/results.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bench.picture import picture
from ..bench.table import text
from ..device import choose
from ..eval.seeds import against, collect, settings, table
from ..methods.adversarial import Adversarial
from ..pipeline import Pipeline
from ..train import spread
from ..train.fit import State
from ..types import Batch
from . import snapgen_scenes_4step as hasten
from . import snapgen_scenes_path as paths
from .snapgen_kd_ladder import drawn

MAY_CHANGE = {"arms", "control", "seeds"}
MEASURES = {"scene_eval": 3, "frechet": 2, "GMACs": 3}
ARMS = ("adversarial", "kd", "path", "undistilled", "teacher", "teacher_equal_macs")


@dataclass(frozen=True)
class Args:
    student: str  # a folder with the pipeline to begin with
    out: Path = Path("runs/snapgen_claims")
    arms: tuple[str, ...] = ARMS
    control: str = "undistilled"
    seeds: tuple[int, ...] = (0, 1, 2)
    teacher: str = "scenes"  # a shipped pipeline's name or a folder
    levels: int = 4  # steps of the results
    shift: float = 2.5  # of those levels
    objective: str = "hinge"  # or non_saturating, relativistic (methods/adversarial.py)
    weight: float = 1.0  # of the distillation term
    width: int = 32  # of the discriminator's heads
    steps: int = 1500
    batch: int = 16
    uses: int = 4
    lr: float = 2e-5  # of adversarial and kd
    lr_heads: float = 1e-4
    lr_path: float = 5e-4
    fine: int = 3  # path: steps of the teacher for each of the student's
    pool: int = 16  # path: batches of trajectories that are there at a time
    pictures: int = 512  # for the Frechet distance
    prompts: int = 20  # of each category of SceneEval, one picture each
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


class Told:
    """The generator's turn of ``Adversarial`` without the discriminator: weight S(L_task, L_kd)."""

    def __init__(self, method: Adversarial):
        self.method, self.players = method, {"generator": method.players["generator"]}

    def turn(self, step: int) -> tuple[str, ...]:
        return ("generator",)

    def losses(self, player: str, batch: Batch) -> Iterator[dict[str, Tensor]]:
        assert self.method.guide
        parts = self.method.taught(self.method.draft(batch), batch, self.method.guide)
        yield {"loss": parts["kd"], **parts}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def like(kind: Any, args: Any, **others: Any) -> Any:
    """Another recipe's Args with what both have, nothing to look at, and ``others``."""
    shared = {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}
    unseen = {"look": 0} if any(f.name == "look" for f in fields(kind)) else {}
    return kind(**shared | unseen | others)


def told(args: hasten.Args, teacher: Pipeline, base: Pipeline) -> tuple[State, Pipeline]:
    method, data, pipe = hasten.prepared(args, teacher, base)
    return hasten.train(Told(method), data, {"transformer": pipe.transformer}, args, []), pipe


def equal(teacher: Pipeline, budget: int) -> int:
    """The fewest of the teacher's steps that cost ``budget``, or all of them."""
    every = len(teacher.schedule.levels()) - 1
    return next((n for n in range(1, every) if picture(teacher, n).macs >= budget), every)


def arranged(arm: str, args: Args, teacher: Pipeline, base: Pipeline) -> Pipeline:
    """A pipeline of an arm that is not trained."""
    if arm == "teacher":
        return teacher
    owner, steps = (base, args.levels) if arm == "undistilled" else (teacher, 0)
    if not steps:
        few = hasten.few(args.levels, args.shift, base)
        steps = equal(teacher, picture(Pipeline(base.transformer, base.text_encoder, base.vae, few)).macs)
    schedule = replace(owner.schedule, steps=steps, times=None)
    return Pipeline(owner.transformer, owner.text_encoder, owner.vae, schedule, owner.decoder)


def main(args: Args) -> None:
    arms = list(dict.fromkeys((args.control, *args.arms)))
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"--arms {unknown[0]}: expected some of {', '.join(ARMS)}")
    if spread.world() > 1:
        raise ValueError("snapgen_claims runs in one process; start several with other --seeds")
    teacher, base = hasten.opened(like(hasten.Args, args, device=str(choose(args.device))))

    def run(arm: str, seed: int) -> dict[str, float]:
        own = {"seed": seed, "out": args.out / f"{arm}-{seed}"}
        state: State | None = None
        if arm == "path":
            few = like(paths.Args, args, **own, lr=args.lr_path, uses=paths.Args.uses)
            student = Pipeline.from_pretrained(args.student).transformer.to(teacher.device)
            state, pipe = paths.followed(few, teacher, base, student)
        elif arm in ("adversarial", "kd"):
            train = hasten.hastened if arm == "adversarial" else told
            state, pipe = train(like(hasten.Args, args, **own), teacher, base)
        else:
            pipe = arranged(arm, args, teacher, base)
        with state.averaged() if state else nullcontext():
            return {**drawn(pipe, args, seed), "GMACs": picture(pipe).macs / 1e9}

    found = collect(args.out, arms, args.seeds, run, settings(args, MAY_CHANGE))
    measures = {m: d for m, d in MEASURES.items() if args.prompts or m != "scene_eval"}
    print(text(table(found, measures)))
    if len(arms) > 1:
        print(text(against(found, args.control, measures)))
