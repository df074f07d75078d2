"""Peak memory of one forward call: the allocator's on a GPU, a fresh process's on the CPU.

GPU   weights, plus what torch's allocator held at the most during the call beyond what it held before;
      neither the driver's context nor fragmentation is in it.
CPU   how far the resident memory of a new process rises, from "torch is imported and has warmed up" to the
      end of the first call: weights (read from a mapped file, so once), activations, and the kernels' scratch
      space and code. It needs a model that pickles, and is good to ten megabytes or so.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .latency import device_of
from .peak import alone, high_water


@dataclass(frozen=True)
class Memory:
    weights: int  # bytes of parameters and buffers
    peak: int  # bytes, weights included
    device: str


def _on_gpu(model: nn.Module, inputs: Sequence[Any], weights: int, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.no_grad():
        model(*inputs)
    torch.cuda.synchronize(device)
    return weights + torch.cuda.max_memory_allocated(device) - before


def _on_cpu(model: nn.Module, inputs: Sequence[Any]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.pt"
        try:
            torch.save((model, tuple(inputs)), job)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise ValueError(
                f"{type(model).__name__} does not pickle, which measuring needs: {error}"
            ) from None
        threads = str(torch.get_num_threads())
        return alone(type(model).__name__, __name__, str(job), threads)


def peak(model: nn.Module, inputs: Sequence[Any]) -> Memory:
    """Of ``model(*inputs)`` without gradients."""
    device = device_of(inputs)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"peak memory is measured on cpu and cuda, not on {device.type}")
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    most = _on_cpu(model, inputs) if device.type == "cpu" else _on_gpu(model, inputs, weights, device)
    return Memory(weights, most, str(device))


@torch.no_grad()
def child(job: Path, threads: int) -> int:
    """What ``_on_cpu`` runs in its own process: the rise of the high-water mark."""
    torch.set_num_threads(threads)
    # the file was written by our parent a moment ago, so unpickling it is safe
    model, inputs = torch.load(job, weights_only=False, mmap=True)
    # the kernels' libraries are loaded at their first use; that is not the model's memory
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Linear(14, 8))(torch.zeros(1, 3, 16, 16))
    before = high_water()
    model(*inputs)
    return high_water() - before


if __name__ == "__main__":
    print(child(Path(sys.argv[1]), int(sys.argv[2])))
