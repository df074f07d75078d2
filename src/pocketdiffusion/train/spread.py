"""One run over several processes: torchrun starts them, gradients are averaged.

    torchrun --nproc-per-node 2 -m pocketdiffusion train scenes_teacher

Every process draws its own batch (rank is part of the seed) and holds the whole model, or its share of it
(shard.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor


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
    """Mean of the gradients over all processes, as one flat message; split ones are averaged already."""
    if world() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= world()
    for g, part in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(part.view_as(g))


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
