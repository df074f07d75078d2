"""One run over several processes: torchrun starts them, gradients are averaged.

    torchrun --nproc-per-node 2 -m pocketdiffusion train scenes_teacher

Every process draws its own batch (rank is part of the seed) and holds the whole model, or its share of it
(shard.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(device: torch.device | str = "cpu") -> None:
    """Join the group that torchrun announced; nothing in a single process."""
    if world() > 1 and not dist.is_initialized():
        # gloo as well beside nccl: any_of sends a flag that lives on the CPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo")


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Mean of the gradients over all processes, as one flat message; split ones are averaged already.

    A parameter that had no part in this process's step counts as zero where it had one in another's.
    """
    if world() == 1:
        return
    whole = [p for p in parameters if not isinstance(p, DTensor) and not isinstance(p.grad, DTensor)]
    if not whole:
        return
    took_part = torch.tensor([p.grad is not None for p in whole], dtype=torch.uint8, device=whole[0].device)
    dist.all_reduce(took_part, op=dist.ReduceOp.MAX)
    whole = [p for p, anywhere in zip(whole, took_part.tolist()) if anywhere]
    if not whole:
        return
    grads = []
    for p in whole:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        grads.append(p.grad)
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world()
    for g, part in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(part.view_as(g))


def agreed(numbers: dict[str, Any]) -> dict[str, Any]:
    """The floats of a nested dict, averaged over all processes; what else there is, is each one's own."""
    leaves, form = tree_flatten(numbers)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, float)]
    if world() == 1 or not places:
        return numbers
    sums = torch.tensor([leaves[i] for i in places], dtype=torch.float64)
    dist.all_reduce(sums)
    for i, mean in zip(places, (sums / world()).tolist()):
        leaves[i] = mean
    return tree_unflatten(leaves, form)


def agree(tensors: Sequence[Tensor]) -> None:
    """Give every process the first one's values (at the start, and after loading)."""
    if world() > 1:
        for t in tensors:
            if not isinstance(t, DTensor):
                dist.broadcast(t.detach(), 0)


def any_of(flag: bool) -> bool:
    """True when it is True in any process."""
    if world() == 1:
        return flag
    t = torch.tensor(float(flag))
    dist.all_reduce(t, op=dist.ReduceOp.MAX)
    return bool(t)
