"""A device and a compute precision by name, as flags give them."""

from __future__ import annotations

import os
from typing import Any


def choose(name: str) -> Any:
    """A torch device from auto | cpu | cuda | mps (or cuda:1); under torchrun one GPU per process."""
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind = name.split(":")[0]
    if kind not in available:
        raise ValueError(f"device {name}: expected auto, cpu, cuda or mps")
    if not available[kind]:
        raise ValueError(f"device {name}: not available on this machine")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch.device(name)


def precision(name: str) -> Any:
    """A torch dtype from fp32 | bf16 | fp16."""
    import torch

    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in names:
        raise ValueError(f"dtype {name}: expected {', '.join(names)}")
    return names[name]


def bf16(device: Any, wanted: bool | None = None) -> bool:
    """``wanted``, or whether ``device`` has bf16 in hardware; an AVX2 CPU takes 60 times longer in it."""
    import torch

    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(device.type == "cuda" and torch.cuda.is_bf16_supported())
