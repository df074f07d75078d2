"""Low-rank adapters by peft: what trains, what was learned, and the plain network with it.

    y = (W + alpha / rank B A) x         A (rank, in) random, B (out, rank) zero: nothing changes at first

    parameters = attach(network, 64, 128.0, r"blocks\\..*\\.(q|k|v|out|up|down)")
    learned(network)                     name of the layer -> (A, B)
    merge(network)                       plain again, with the learned weights

Source: Hu et al. 2021 (arXiv 2106.09685); rank 64 and alpha 128 are SnapGen++'s for K-DMD.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

NAME = "default"  # peft's, of an adapter


def attach(network: nn.Module, rank: int, alpha: float, pattern: str) -> list[nn.Parameter]:
    """Adapters on every linear layer whose dotted name matches ``pattern``; all else is frozen."""
    import peft

    if rank < 1:
        raise ValueError(f"rank {rank}: expected 1 or more")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern)  # type: ignore[arg-type]
    peft.inject_adapter_in_model(config, network)
    return [p for name, p in network.named_parameters() if ".lora_" in name]


def adapters(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in network.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def learned(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (module.lora_A[NAME].weight.detach().clone(), module.lora_B[NAME].weight.detach().clone())
        for name, module in adapters(network)
    }


def merge(network: nn.Module) -> nn.Module:
    """In place: the learned products are added to the weights, and the adapters are gone."""
    for name, module in list(adapters(network)):
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module.base_layer)
    return network
