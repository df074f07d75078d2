"""A network whose weights are split over processes: FSDP2, and whole tensors outside it.

    shard(student)      # before the optimisers are made; then as ever, under torchrun (spread.py)

Checkpoints hold whole tensors whatever wrote them, so a run may be resumed by another number of processes.
What the first process must hold for it, weights, averages and two moments, is 6 GB for a student of 0.4 B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils import _pytree

from . import spread


def shard(network: nn.Module) -> None:
    """Split ``network`` over all processes, one part per block of its module lists, the rest as another.

    Call it after moving the network to its device and before making optimisers. A forward call gathers a
    block at a time; gradients arrive averaged. Nothing in a single process.
    """
    if spread.world() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device
    spread.start(device)
    spread.agree([*network.parameters(), *network.buffers()])
    mesh = init_device_mesh(device.type, (spread.world(),))
    # FSDP2 takes no parameter without dimensions; those stay whole
    whole = {p for p in network.parameters() if p.ndim == 0}
    for unit in [*blocks(network), network]:
        fully_shard(unit, mesh=mesh, ignored_params=whole)


def blocks(network: nn.Module) -> list[nn.Module]:
    """What the outermost module lists hold."""
    found: list[nn.Module] = []
    for child in network.children():
        inner = list(child) if isinstance(child, nn.ModuleList) else blocks(child)
        found += [m for m in inner if any(True for _ in m.parameters())]
    return found


def local(x: Tensor) -> Tensor:
    """What this process holds of ``x``."""
    return x.to_local() if isinstance(x, DTensor) else x


def split(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as ``like`` is: this process's share of it, or itself."""
    if not isinstance(like, DTensor):
        return x
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(state: Any) -> Any:
    """A nested state with its split tensors put together, in the memory of the first process alone.

    All processes must call it.
    """

    def join(x: Any) -> Any:
        if not isinstance(x, DTensor):
            return x
        full = x.full_tensor().detach()
        return full.cpu() if spread.rank() == 0 else None

    return _pytree.tree_map(join, state)


def load(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors into a network that may be split."""
    there = network.state_dict()
    network.load_state_dict({k: split(v, there[k]) if k in there else v for k, v in tensors.items()})


def load_optimiser(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """The same for an optimiser, whose moments are split as their parameters are."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]

    def fitting(p: nn.Parameter, value: Any) -> Any:
        return split(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value

    moments = {
        i: {k: fitting(parameters[i], v) for k, v in found.items()} for i, found in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": moments})


def clip(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``limit``; the norm before."""
    held = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in held if isinstance(p.grad, DTensor) is parted] for parted in (False, True)]
    kinds = [kind for kind in kinds if kind]
    totals: Any = [torch.nn.utils.get_total_norm([p.grad for p in k if p.grad is not None]) for k in kinds]
    norms = [n.full_tensor() if isinstance(n, DTensor) else n for n in totals]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm
