"""Lazy plans for a pipeline: read off trained gates, or searched.

    pocket train lazy_scenes                                             # the shipped pipeline, 50 steps
    pocket train lazy_scenes --steps-sampled 20 --laziness 0.2 0.4
    pocket train lazy_scenes --branches "blocks.*.attn" "blocks.*.cross" "blocks.*.mlp"      # ours: all kinds
    pocket costs scenes -o out/one.json
    pocket costs scenes --batch 2 -o out/two.json                        # two rows: where it is guided
    pocket train lazy_scenes --steps-sampled 20 --costs out/one.json out/two.json --budget-ms 300

Only gates train, for a few hundred steps, by LazyDiT's scheme of two adjacent levels (methods/gates.py);
self-attention and feed-forward may rest, as in the paper. Then the gated pipeline draws --looked prompts, and
a plan for every --laziness skips what the gates kept least; where in the depth each kind rests is printed.
With --costs and --budget-ms nothing is learned: how much the rest of one branch at one step changes
--searched pictures is measured, and what costs least error per millisecond rests until the denoiser's calls
for a picture fit the budget. Numbers: docs/results.md. Ends with maps of the plans (SVG) and OUT/pipeline,
the pipeline with its plans and --steps-sampled steps; gates are in OUT/gates.safetensors:

    pocket generate "two green stars" --model runs/lazy_scenes/pipeline --lazy 0.4
    pocket generate "two green stars" --model runs/lazy_scenes/pipeline --lazy 300ms
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch

from ..compress import ops
from ..compress.costs import Costs, merged
from ..compress.lazy import ByGates, Calls, Lazy, Plan, measured, ranked, searched
from ..data.scenes import TRAIN_WORLD, Scenes
from ..device import bf16, choose
from ..diffusion.guidance import cfg
from ..diffusion.samplers import STEPS, run
from ..disk import save_tensors
from ..eval.plots import heat
from ..methods.gates import LearnGates
from ..nn.gate import Gates, branches, widths
from ..pipeline import Pipeline, Schedule
from ..train import spread
from ..train.fit import Run, fit
from ..types import Denoiser
from .snapgen_scenes_kd import reads, scenes

Seen = dict[tuple[str, int], list[float]]  # mean k of every call, by branch and step


@dataclass(frozen=True)
class Args:
    out: Path = Path("runs/lazy_scenes")
    model: str = "scenes"  # a shipped pipeline's name or a folder
    branches: tuple[str, ...] = ("blocks.*.attn", "blocks.*.mlp")  # * for a block's number
    steps_sampled: int = 50  # of the sampler; gates are of its levels
    laziness: tuple[float, ...] = (0.2, 0.4)  # a plan for each
    rho: float = 3e-5  # weight of being computed, of every kind of branch; between all rest and none
    looked: int = 64  # prompts that plans are read off
    costs: tuple[Path, ...] = ()  # tables of pocket costs: plans are searched
    budget_ms: tuple[float, ...] = ()  # with --costs: of all the denoiser's calls for one picture
    precision: str = "fp32"  # of the table's rows
    searched: int = 4  # pictures of a search
    steps: int = 300
    batch: int = 32  # per process
    uses: int = 4
    lr: float = 3e-4  # ours: at 1e-2 all gates are shut after a few steps and rank nothing
    seed: int = 0
    bf16: bool | None = None  # autocast; None: where the device has it in hardware
    device: str = "cpu"


def trained(pipe: Pipeline, args: Args) -> Gates:
    """Gates for every branch and level."""
    names = branches(pipe.transformer, args.branches)
    gates = Gates(
        widths(pipe.transformer, pipe.transformer.example(1, pipe.device), names), args.steps_sampled
    )
    gates.to(pipe.device)
    times = pipe.schedule.levels()[:-1].tolist()
    rho = {name.rpartition(".")[2]: args.rho for name in names}
    method = LearnGates(pipe.transformer, gates, reads(pipe.text_encoder, False), times, rho)
    settings = Run(
        args.steps, args.out, args.seed, bf16=bf16(pipe.device, args.bf16), save_every=100, name="gates"
    )
    optimiser = torch.optim.AdamW(gates.parameters(), args.lr, weight_decay=0.0)
    fit(method, scenes(args, pipe, pipe.schedule.size), {"gates": optimiser}, {"gates": gates}, settings)
    return gates


def walking(pipe: Pipeline, x: torch.Tensor, captions: list[str]) -> Callable[[Denoiser], torch.Tensor]:
    """Whole trajectories from noise ``x``, guided as the pipeline is, with any denoiser; no decoder.

    Fresh noise, where the sampler asks for it, is the same in every walk.
    """
    schedule = pipe.schedule
    with torch.no_grad():
        cond, null = pipe.text_encoder.embed(captions), pipe.text_encoder.embed([""])

    def fresh(i: int) -> torch.Tensor:
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).to(x)

    @torch.no_grad()
    def walk(denoiser: Denoiser) -> torch.Tensor:
        model, end = cfg(denoiser, null, schedule.guidance, schedule.interval), x
        for step in run(STEPS[schedule.sampler], model, x, schedule.levels(), cond, fresh):
            end = step.x
        return end

    return walk


def looked(pipe: Pipeline, gates: Gates, args: Args) -> tuple[Seen, Calls]:
    """What gates say on some trajectories, guided as the pipeline is."""
    seen: Seen = {}
    by, calls = ByGates(gates, pipe.schedule.levels()[:-1].tolist(), seen=seen), Calls(decided={})
    lazy, world = Lazy(pipe.transformer, by), Scenes(TRAIN_WORLD, 16, pipe.schedule.size)
    side = pipe.schedule.size // pipe.vae.config.factor
    for i in range(max(1, args.looked // 16)):
        captions = [s.caption for s in world.specs(args.seed + 1, i)]
        g = torch.Generator().manual_seed(i)
        x = torch.randn(16, pipe.vae.config.channels, side, side, generator=g).to(pipe.device)
        walking(pipe, x, captions)(lazy.start(calls))
    return seen, calls


def errors(pipe: Pipeline, names: list[str], pictures: int, seed: int) -> dict[tuple[str, int], float]:
    """What the rest of one branch at one step changes, on prompts of the training world."""
    schedule, side = pipe.schedule, pipe.schedule.size // pipe.vae.config.factor
    captions = [s.caption for s in Scenes(TRAIN_WORLD, pictures, schedule.size).specs(seed + 1, 0)]
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(pictures, pipe.vae.config.channels, side, side, generator=g).to(pipe.device)
    return measured(pipe.transformer, names, schedule.levels()[:-1].tolist(), walking(pipe, x, captions))


def rows(schedule: Schedule) -> list[int]:
    """For every step, how often the denoiser sees a picture: twice where it is guided."""
    (low, high), guided = schedule.interval, schedule.guidance != 1
    return [1 + (guided and low <= t <= high) for t in schedule.levels()[:-1].tolist()]


def reachable(schedule: Schedule) -> float:
    """How much of all calls gates can let rest: every second step, but not where guidance begins."""
    seen = rows(schedule)
    return sum(seen[i] <= seen[i - 1] for i in range(1, len(seen), 2)) / len(seen)


def milliseconds(pipe: Pipeline, names: list[str], args: Args) -> tuple[dict[str, list[float]], float]:
    """By the tables: a call of each branch at every step, and all else in all of the denoiser's calls."""
    tables, batches = merged([Costs.load(path) for path in args.costs]), rows(pipe.schedule)
    costs: dict[str, dict[int, float]] = {name: {} for name in ["", *names]}
    for batch in sorted(set(batches)):
        try:
            for call in ops.calls(pipe.transformer, pipe.transformer.example(batch, pipe.device), costs):
                costs[call.name][batch] = tables(call.op, call.shapes, args.precision).ms
        except ValueError as error:
            told = f"pocket costs {args.model} --batch {batch} --precision {args.precision} measures it"
            raise ValueError(f"--costs: {error}; {told}") from None
    whole, found = costs.pop(""), {name: [ms[n] for n in batches] for name, ms in costs.items()}
    return found, max(0.0, sum(whole[n] for n in batches) - sum(map(sum, found.values())))


def searches(pipe: Pipeline, args: Args) -> dict[str, Plan]:
    """A plan for every budget."""
    if pipe.schedule.sampler == "heun":
        raise ValueError(f"--model {args.model}: heun calls the denoiser twice in a step, expected one call")
    names, times = branches(pipe.transformer, args.branches), pipe.schedule.levels()[:-1].tolist()
    costs, rest = milliseconds(pipe, names, args)
    full = rest + sum(map(sum, costs.values()))
    if any(not 0 < ms < full for ms in args.budget_ms):
        raise ValueError(f"--budget-ms: expected more than 0 and less than {full:.4g}, what all calls take")
    found, made = errors(pipe, names, args.searched, args.seed), {}
    least = full - sum(costs[name][step] for name, step in found)
    for ms in args.budget_ms:
        if ms < least:
            told = ceil(100 * least) / 100  # a budget that can be kept
            raise ValueError(f"--budget-ms {ms:g}: what never rests takes {told:g} ms")
        plan = made[f"{ms:g}ms"] = searched(times, found, costs, ms - rest)
        saved = sum(
            costs[name][i] for name, row in plan.skips.items() for i, rests in enumerate(row) if rests
        )
        print(f"{full:.4g} ms without rests, {full - saved:.4g} ms with")
    return made


def where(skips: Mapping[str, Sequence[bool]]) -> str:
    """How lazy each kind of branch is along the depth, a line each."""
    kinds: dict[str, list[float]] = {}
    for name, row in skips.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(sum(row) / len(row))
    wide = max(map(len, kinds))
    return "\n".join(f"{k:{wide}}  {' '.join(f'{share:.2f}' for share in v)}" for k, v in kinds.items())


def check(args: Args) -> None:
    if args.costs or args.budget_ms:
        if not (args.costs and args.budget_ms):
            raise ValueError("--costs and --budget-ms: a search needs both")
    elif args.steps_sampled < 2 or args.steps_sampled % 2:
        raise ValueError(
            f"--steps-sampled {args.steps_sampled}: expected an even number, gates work in pairs"
        )
    elif any(not 0 < share <= 0.5 for share in args.laziness):
        raise ValueError(f"--laziness {max(args.laziness):g}: expected more than 0 and at most 0.5")


def learned(pipe: Pipeline, args: Args) -> dict[str, Plan]:
    """A plan for every laziness."""
    gates = trained(pipe, args)
    if spread.rank():
        return {}
    save_tensors(dict(gates.state_dict()), args.out / "gates.safetensors", {"format": "pt"})
    seen, calls = looked(pipe, gates, args)
    print(f"the gates themselves: {calls.laziness:.3f} of {', '.join(args.branches)} rest")
    times = pipe.schedule.levels()[:-1].tolist()
    return {f"{share:g}": ranked(seen, gates.names, times, share) for share in args.laziness}


def main(args: Args) -> None:
    check(args)
    pipe = Pipeline.from_pretrained(args.model).to(choose(args.device))
    if pipe.schedule.times:
        raise ValueError(
            f"--model {args.model}: has {len(pipe.schedule.times)} steps of its own, none to spare"
        )
    for network in pipe.components.values():
        network.requires_grad_(False)
    torch.manual_seed(args.seed)
    if args.steps_sampled != pipe.schedule.steps:
        pipe.plans = {}  # they are for other times
    pipe.schedule = replace(pipe.schedule, steps=args.steps_sampled)
    if not args.costs and max(args.laziness) > (most := reachable(pipe.schedule)) + 1e-6:
        raise ValueError(
            f"--laziness {max(args.laziness):g}: gates let every second step rest, but not where guidance"
            f" begins: at most {most:g} of {args.steps_sampled} steps"
        )
    made = searches(pipe, args) if args.costs else learned(pipe, args)
    if spread.rank():
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name, plan in made.items():
        print(f"--lazy {name}\n{plan.drawn()}\nlaziness along the depth\n{where(plan.skips)}")
        squares = {n: [float(not rests) for rests in row] for n, row in plan.skips.items()}
        told = f"{len(plan.times)} steps, {plan.laziness:.2f} of all calls rest"
        (args.out / f"lazy-{name}.svg").write_text(heat(squares, "step; filled: computed", told))
    pipe.plans |= made
    pipe.save_pretrained(args.out / "pipeline", torch.float16)
