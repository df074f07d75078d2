"""fit(): the one training loop; it knows turns, EMA and resume - no method, model or metric.

A run that is killed and started again ends in the same weights, bit for bit (eager, same device and thread
count): every source of chance is a function of (seed, step, rank), and all the rest is in the checkpoint.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..types import Batch, Method
from . import checkpoint, shard, spread
from .ema import Ema
from .log import Log
from .optimisers import Schedule

Data = Callable[[int, int], Batch]  # (seed, step) -> Batch


class Diverged(RuntimeError):
    """A loss or gradient stopped being finite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Run:
    """How to run, independent of what. ``folder`` None: nothing is written."""

    steps: int
    folder: Path | None = None
    seed: int = 0
    clip: float = 1.0  # largest gradient norm; 0 = off
    accumulate: int = 1  # batches per step
    bf16: bool = False  # autocast
    ema: float = 0.0  # decay; 0 = off
    save_every: int = 500
    log_every: int = 20
    keep: int = 2  # checkpoints
    name: str = "train"

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def home(self) -> Path | None:
        """Where checkpoints go."""
        return self.folder / "checkpoints" if self.folder else None


@dataclass
class State:
    """What hooks see."""

    step: int
    run: Run
    method: Method
    networks: Mapping[str, nn.Module]
    ema: Ema | None
    log: Log | None
    seen: Mapping[str, Tensor] = field(default_factory=dict)  # losses and gradient norms of this step

    def averaged(self) -> Any:
        """Context in which the networks hold the EMA weights (or their own without EMA)."""
        return self.ema.applied() if self.ema else nullcontext()


class Hook(Protocol):
    def __call__(self, state: State) -> None: ...


def every(n: int, hook: Hook) -> Hook:
    """Call ``hook`` after every ``n``-th step."""

    def scheduled(state: State) -> None:
        if (state.step + 1) % n == 0:
            hook(state)

    return scheduled


def only(players: Mapping[str, Sequence[nn.Parameter]], who: Sequence[str]) -> None:
    """Gradients for the parameters of ``who`` alone.

    Split parameters keep theirs: FSDP2 fixes at the first call which of them get gradients.
    """
    for parameters in players.values():
        for p in parameters:
            p.requires_grad_(isinstance(p, DTensor))
    for name in who:
        for p in players[name]:
            p.requires_grad_(True)


def seeded(seed: int, step: int) -> int:
    """A 63-bit seed for one step of one process."""
    digest = hashlib.blake2b(f"{seed}/{step}/{spread.rank()}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fingerprint(networks: Mapping[str, nn.Module], players: Mapping[str, Sequence[nn.Parameter]]) -> str:
    """A hash over every parameter that no player owns."""
    owned = {id(p) for parameters in players.values() for p in parameters}
    digest = hashlib.blake2b()
    for name, network in sorted(networks.items()):
        for key, p in network.named_parameters():
            if id(p) not in owned:
                digest.update(f"{name}.{key}".encode())
                held = shard.local(p.detach()).cpu().reshape(-1)
                digest.update(held.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def polite() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask the loop to stop after the current step; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.getsignal(s) for s in signals}

    def back() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def ask(*_: object) -> None:
        asked.set()
        back()
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    for s in signals:
        signal.signal(s, ask)
    try:
        yield asked
    finally:
        back()


def snapshot(state: State, optimisers: Mapping[str, Optimizer], data: Data) -> dict[str, Any]:
    return {
        "next": state.step,
        "seed": state.run.seed,
        "networks": {k: dict(n.state_dict()) for k, n in state.networks.items()},
        "ema": state.ema.state_dict() if state.ema else None,
        "optimisers": {k: o.state_dict() for k, o in optimisers.items()},
        "method": state.method.state_dict(),
        "data": data.state_dict() if hasattr(data, "state_dict") else None,
    }


def restore(state: State, optimisers: Mapping[str, Optimizer], data: Data, saved: dict[str, Any]) -> None:
    if saved["seed"] != state.run.seed:
        raise ValueError(f"{state.run.folder} was trained with seed {saved['seed']}, not {state.run.seed}")
    for k, network in state.networks.items():
        try:
            shard.load(network, saved["networks"][k])
        except (RuntimeError, KeyError):
            raise ValueError(
                f"{state.run.folder} holds a run of another {k}; name another folder or remove it"
            ) from None
    if state.ema:
        # a run that had no average begins one here
        state.ema.load_state_dict(saved["ema"] or state.ema.live)
    for k, optimiser in optimisers.items():
        rates = [group["initial_lr"] for group in optimiser.param_groups]
        shard.load_optimiser(optimiser, saved["optimisers"][k])
        # the learning rate is the caller's: it may be changed between two parts of a run
        for group, rate in zip(optimiser.param_groups, rates):
            group["initial_lr"] = rate
    state.method.load_state_dict(saved["method"])
    if saved["data"] is not None:
        data.load_state_dict(saved["data"])  # type: ignore[attr-defined]
    state.step = saved["next"]


def under(context: Callable[[], Any], items: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """``items``, each made within ``context()`` and used outside of it."""
    while True:
        with context():
            item = next(items, None)
        if item is None:
            return
        yield item


def turn(state: State, who: str, data: Data, optimiser: Optimizer, rate: float) -> dict[str, Tensor]:
    """All batches of one player's step, and the step. Returns the summed scalars, still on the device."""
    run, parameters = state.run, state.method.players[who]
    autocast = partial(torch.autocast, parameters[0].device.type, torch.bfloat16, enabled=run.bf16)
    total: dict[str, Tensor] = {}
    for i in range(run.accumulate):
        batch = data(run.seed, (state.step * run.accumulate + i) * spread.world() + spread.rank())
        for losses in under(autocast, iter(state.method.losses(who, batch))):
            (losses["loss"] / run.accumulate).backward()
            for key, value in losses.items():
                total[f"{who}/{key}"] = total.get(f"{who}/{key}", 0.0) + value.detach() / run.accumulate
    spread.average(parameters)
    total[f"{who}/grad"] = shard.clip(parameters, run.clip or float("inf"))
    if bad := [k for k, v in total.items() if not torch.isfinite(v)]:
        raise Diverged(f"{bad[0]} is not finite at step {state.step}; lower the learning rate or the clip")
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * rate
    optimiser.step()
    # of all players: what is split had gradients in another's turn too
    for owned in state.method.players.values():
        for p in owned:
            p.grad = None
    return total


def check(method: Method, optimisers: Mapping[str, Optimizer], networks: Mapping[str, nn.Module]) -> None:
    """Every player has an optimiser, and every parameter a network that is saved."""
    if missing := set(method.players) - set(optimisers):
        raise ValueError(f"no optimiser for player {sorted(missing)[0]!r}")
    saved = {id(p) for network in networks.values() for p in network.parameters()}
    for who, parameters in method.players.items():
        if not {id(p) for p in parameters} <= saved:
            raise ValueError(f"player {who!r} has parameters that are in none of the networks to be saved")


def begin(
    method: Method,
    data: Data,
    optimisers: Mapping[str, Optimizer],
    networks: Mapping[str, nn.Module],
    run: Run,
) -> State:
    """The state to start from: fresh, or the newest whole checkpoint's."""
    check(method, optimisers, networks)
    spread.start(next(p for ps in method.players.values() for p in ps).device)
    only(method.players, tuple(method.players))
    spread.agree([p for n in networks.values() for p in n.parameters()])
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            group.setdefault("initial_lr", group["lr"])
    state = State(0, run, method, networks, Ema(networks, run.ema) if run.ema else None, None)
    if run.home and (last := checkpoint.newest(run.home)):
        restore(state, optimisers, data, last[1])
        print(f"resuming {run.folder} at step {state.step}")
    if run.folder:
        state.log = Log(run.folder, state.step, run.steps, run.name, spread.rank() == 0)
    return state


def fit(
    method: Method,
    data: Data,
    optimisers: Mapping[str, Optimizer],
    networks: Mapping[str, nn.Module],
    run: Run,
    schedule: Schedule = lambda step: 1.0,
    hooks: Sequence[Hook] = (),
) -> State:
    """Train ``method.players`` for ``run.steps`` steps, resuming when ``run.folder`` holds a checkpoint.

    ``networks`` are saved and averaged by name; their parameters that no player owns must not change.
    """
    state = begin(method, data, optimisers, networks, run)
    written = state.step
    frozen = fingerprint(networks, method.players)

    def save() -> None:
        nonlocal written
        if run.home and written != state.step:
            # every process resumes with what the first one saves, and so it goes on with that
            state.method.load_state_dict(spread.agreed(state.method.state_dict()))
            taken = shard.whole(snapshot(state, optimisers, data))
            if spread.rank() == 0:
                checkpoint.save(run.home, state.step, taken, run.keep)
        written = state.step

    try:
        with polite() as asked:
            while state.step < run.steps:
                torch.manual_seed(seeded(run.seed, state.step))
                seen: dict[str, Tensor] = {}
                rate = schedule(state.step)
                for who in method.turn(state.step):
                    only(method.players, (who,))
                    seen |= turn(state, who, data, optimisers[who], rate)
                if state.ema:
                    state.ema.update(state.step)
                state.seen = seen
                for hook in hooks:
                    hook(state)
                state.step += 1
                if state.log:
                    state.log.tick(state.step, run.log_every, seen, rate)
                if state.step % run.save_every == 0:
                    save()
                if spread.any_of(asked.is_set()):
                    save()
                    where = f"saved at step {state.step} in {run.folder}; the same command resumes"
                    raise KeyboardInterrupt(f"stopped; {where if run.home else 'nothing was saved'}")
        save()
    finally:
        if state.log:
            state.log.close()
    only(method.players, tuple(method.players))
    assert fingerprint(networks, method.players) == frozen, "a parameter that no player owns has changed"
    return state
