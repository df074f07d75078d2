"""Gates that say whether a branch is computed or its last output used again, and switches.

    k = sigmoid( sum_n z_n . w )     z (B, N, D) the branch's modulated input, w (D,) of one branch and step
    k >= 1/2: the branch is computed; below, its output of the step before stands in

w begins at zero, so that untrained gates compute everything. The sum is over tokens, not a mean, and there is
one decision per row of the batch. Source: LazyDiT (arXiv 2412.12444); k is its official code's keep
probability, one less the paper's s. Gates on maps (B, C, H, W), of convolutions, are ours.

    network, hub = switched(model, names)        a copy with the same weights, whose branches ask hub.rule
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

# name of the branch, its input, compute(rows or None for all) -> the branch's output
Compute = Callable[[Tensor | None], Tensor]
Rule = Callable[[str, Tensor, Compute], Tensor]
SHARED = ("rope", "ctx", "image_rotary_emb")  # arguments that all rows share


def branches(model: nn.Module, patterns: Sequence[str] = ()) -> list[str]:
    """Names of submodules, by default the model's BRANCHES, in the order of its modules."""
    patterns = tuple(patterns) or getattr(model, "BRANCHES", ())
    if not patterns:
        raise ValueError(f"{type(model).__name__} lists no BRANCHES; name its branches")
    found = [
        name
        for name, _ in model.named_modules()
        if any(fnmatch(name, p) and name.count(".") == p.count(".") for p in patterns)
    ]
    if not found:
        raise ValueError(f"{type(model).__name__} has no submodule like {', '.join(patterns)}")
    return found


class Hub:
    """What all switches of a network ask; None: everything is computed."""

    rule: Rule | None = None


class Switch(nn.Module):
    """A branch that asks first."""

    def __init__(self, branch: nn.Module, name: str, hub: Hub):
        super().__init__()
        self.branch, self.name, self.hub = branch, name, hub

    def forward(self, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def compute(rows: Tensor | None) -> Tensor:
            if rows is None:
                return self.branch(z, *args, **kwargs)
            mine = [part(a, rows, len(z)) for a in args]
            named = {k: a if k in SHARED else part(a, rows, len(z)) for k, a in kwargs.items()}
            return self.branch(z[rows], *mine, **named)

        return (
            self.branch(z, *args, **kwargs) if self.hub.rule is None else self.hub.rule(self.name, z, compute)
        )


def part(value: Any, rows: Tensor, batch: int) -> Any:
    """The rows of an argument that has them; tables of positions have none (rope is (2, N, d))."""
    if isinstance(value, Tensor) and len(value) == batch and not (batch == 2 and is_table(value)):
        return value[rows]
    return value


def is_table(value: Tensor) -> bool:
    """Whether this is cosines and sines and not rows of a batch."""
    return value.ndim == 3 and torch.allclose(value.square().sum(0), torch.ones_like(value[0]), atol=1e-3)


def sharing(model: nn.Module) -> Any:
    """A copy of the layers that has the same weights."""
    return deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def switched(model: nn.Module, names: Iterable[str]) -> tuple[Any, Hub]:
    """A copy that shares all weights, with a switch before each of the branches ``names``."""
    network, hub = sharing(model), Hub()
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, Switch(network.get_submodule(name), name, hub))
    return network, hub


def widths(model: nn.Module, inputs: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    """Of every branch's input, found by one call."""
    network, hub = switched(model, names)
    found: dict[str, int] = {}

    def note(name: str, z: Tensor, compute: Compute) -> Tensor:
        found[name] = z.shape[1] if z.ndim == 4 else z.shape[-1]
        return compute(None)

    hub.rule = note
    with torch.no_grad():
        network(*inputs)
    return found


class Gates(nn.Module):
    """w of every branch and step: ``widths`` by branch, ``steps`` of the sampler."""

    def __init__(self, widths: Mapping[str, int], steps: int):
        super().__init__()
        self.steps, self.names = steps, list(widths)
        self.w = nn.ParameterDict({key(n): torch.zeros(steps, d) for n, d in widths.items()})

    def keep(self, name: str, step: int, z: Tensor) -> Tensor:
        """k (B,), in fp32."""
        # the sum over tokens first: no product as large as z; no matrix product, which autocast would round
        total = z.float().sum((2, 3)) if z.ndim == 4 else z.float().flatten(1, -2).sum(1)
        return (total * self.w[key(name)][step].float()).sum(1).sigmoid()


def key(name: str) -> str:
    """A branch's name as a key of a ParameterDict, which takes no dots."""
    return name.replace(".", "/")
