"""diffusers' First Block Cache on transformers, theirs and ours: gates' baseline.

    cached = FirstBlock(model, threshold=0.1)
    denoiser = cached.start(calls)                 for one trajectory, as of compress.lazy.Lazy

The hooks are diffusers' own: the first block is always computed, and where what it adds has moved by less
than ``threshold`` (a relative L1 distance) since the last full step, what the others added then stands in.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ..models.dit import Block, DiT
from ..nn.gate import branches, sharing
from ..types import Cond, Denoiser


class FirstBlock:
    """Weights are shared with ``model``. ``names``: the branches that ``calls`` counts, default its BRANCHES.

    ValueError where the network is no chain of blocks that diffusers knows how to cache.
    """

    def __init__(self, model: nn.Module, threshold: float, names: list[str] | None = None):
        from diffusers.hooks import HookRegistry

        names = branches(model) if names is None else names
        self.network: Any = sharing(model)
        try:
            self.hooked = hooked(*chain(self.network), threshold)
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{type(model).__name__} has no blocks that diffusers can cache: {error}"
            ) from None
        self.registry = HookRegistry.check_if_exists_or_initialize(self.hooked)
        self.count: Any = SimpleNamespace(asked=0, computed=0)
        self.branches = len(names)
        for name in names:
            self.network.get_submodule(name).register_forward_hook(self.computed)

    def computed(self, branch: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        self.count.computed += len(first)

    def start(self, calls: Any = None) -> Denoiser:
        """``calls``: whose ``asked`` and ``computed`` count rows of branches (compress.lazy.Calls)."""
        count, rows = calls if calls is not None else SimpleNamespace(asked=0, computed=0), 0

        def denoiser(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            nonlocal rows
            # another trajectory, or rows that have nothing kept when guidance begins
            if len(x) != rows:
                self.registry.reset_stateful_hooks()
            rows, self.count = len(x), count
            count.asked += len(x) * self.branches
            with self.hooked.cache_context("all"):
                return self.network(x, t, cond)

        return denoiser


def chain(network: nn.Module) -> tuple[nn.Module, str]:
    """Whoever holds the blocks, and under which name."""
    if isinstance(network, DiT):
        return network, DiT.BLOCKS
    for holder in network.children():
        if isinstance(getattr(holder, "transformer_blocks", None), nn.ModuleList):
            return holder, "transformer_blocks"
    raise ValueError("expected one chain, a DiT or a transformer of diffusers")


def hooked(holder: nn.Module, key: str, threshold: float) -> Any:
    """Whom diffusers asks for its blocks, with its hooks on them."""
    from diffusers import CacheMixin, FirstBlockCacheConfig

    class Hooked(nn.Module, CacheMixin):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, key, getattr(holder, key))

    if isinstance(holder, DiT):
        told()
    made: Any = Hooked()
    made.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    return made


def told() -> None:
    """Tell diffusers of our block: x in, x out."""
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    class Metadata(TransformerBlockMetadata):
        def _get_parameter_from_args_kwargs(self, identifier: str, args: Any = (), kwargs: Any = None) -> Any:
            return args[0]

    TransformerBlockRegistry.register(Block, Metadata(return_hidden_states_index=0))
