"""Supernet: several widths of one ElasticDiT in one set of weights.

    net(x, t, cond) -> v                  the full width
    net.at("small")(x, t, cond) -> v      the leading rows and columns, with that width's own parameters
    net.extract("small")                  the same as a plain ElasticDiT, bit-equal

Shared: every projection, whose leading part a smaller width takes (heads whole, both halves of a fusion). Of
its own each width has the norms of q and k and all that the time enters by, and LoRA where few steps were
taught (y = (W + alpha / rank B A) x). The full network is a plain model, and at() computes with slices of it,
so that gradients of all widths meet in the same weights.

Source: SnapGen++ (arXiv 2601.08303), section 3.2. Which parts are an own width's is told there for norms and
modulation; that the leading part is taken, that heads stay whole and one LoRA per width are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..nn.axes import chosen, find
from ..types import Cond
from . import elastic_dit
from .dit import per_block
from .elastic_dit import ElasticDiT, sized

LORA = ("q", "k", "v", "out", "up", "down")  # the layers of a block that LoRA changes


@dataclass(frozen=True)
class Config(elastic_dit.Config):
    names: tuple[str, ...] = ("tiny", "small", "full")  # of the widths, the full one last
    shares: tuple[float, ...] = (0.375, 0.5, 1.0)
    rank: int = 0  # of the LoRA that every width has; 0: none
    alpha: float = 128.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.names) != len(self.shares) or not self.names or self.shares[-1] != 1:
            raise ValueError(f"widths {self.names} of {self.shares}: expected a share each, the last 1.0")
        if not all(0 < a < b for a, b in zip(self.shares, self.shares[1:])):
            raise ValueError(
                f"widths {self.names} of {self.shares}: expected shares that rise from above 0 to 1"
            )
        if len(set(self.names)) < len(self.names) or any({"/", "."} & set(n) or not n for n in self.names):
            raise ValueError(f"widths {self.names}: expected different names without / and .")

    def plain(self, name: str | None = None) -> elastic_dit.Config:
        """The config of one width; None: the full one."""
        own = {f.name: getattr(self, f.name) for f in fields(elastic_dit.Config)}
        if name is not None and name not in self.names:
            raise ValueError(f"no width {name!r}; there are {', '.join(self.names)}")
        share = 1.0 if name is None else self.shares[self.names.index(name)]
        return sized(elastic_dit.Config(**own), share)


def elastic(base: elastic_dit.Config, **more: Any) -> Config:
    return Config(**{f.name: getattr(base, f.name) for f in fields(base)}, **more)


FULL = elastic_dit.PRESETS["full"]
PRESETS: dict[str, Config] = {
    "smoke": elastic(elastic_dit.PRESETS["smoke"], names=("half", "full"), shares=(0.5, 1.0)),
    "smoke_lora": elastic(
        elastic_dit.PRESETS["smoke"], names=("half", "full"), shares=(0.5, 1.0), rank=2, alpha=4.0
    ),
    "scenes": elastic(elastic_dit.PRESETS["scenes"]),
    "snapgen_pp": elastic(FULL),
}


def cuts(small: nn.Module, full: nn.Module) -> Iterator[tuple[str, list[int | Tensor]]]:
    """For every parameter, what a smaller width takes of each dimension: the first n, or those at indices."""
    wanted, config, axes = small.state_dict(), full.config, full.AXES
    names = ("dim", "heads", "kv_heads", "cross_heads", "mlp")
    for name, weight in full.state_dict().items():
        words, block = find(axes, name)  # type: ignore[arg-type]
        keep = {axis: range(per_block(getattr(small.config, axis), block or 0)) for axis in names}
        found: list[int | Tensor] = []
        for word, size, left in zip(words, weight.shape, wanted[name].shape):
            with torch.device("cpu"):  # whatever the network is built on
                index, first = chosen(word, config, block, keep, size), torch.arange(left)
            assert len(index) == left, f"{name}: {len(index)} of {word}, expected {left}"
            found.append(left if torch.equal(index, first) else index)
        yield name, found


def cut(weight: Tensor, places: list[int | Tensor]) -> Tensor:
    for d, place in enumerate(places):
        if isinstance(place, Tensor):
            weight = weight.index_select(d, place.to(weight.device))
        elif place < weight.shape[d]:
            weight = weight.narrow(d, 0, place)
    # laid out as in a plain model, which therefore computes the same bits
    return weight.contiguous()


def key(width: str, name: str) -> str:
    """Of a width's parameter in a ParameterDict, which takes no dots."""
    return f"{width}/{name.replace('.', '/')}"


class Width(nn.Module):
    """One width as a Denoiser. ``net`` has its layers, for taps and hooks, and no weights."""

    def __init__(self, supernet: Supernet, name: str):
        super().__init__()
        self.name, self.net = name, supernet.shapes[name]
        # not a submodule: parameters belong to the supernet
        self.whole = (supernet,)

    @property
    def config(self) -> elastic_dit.Config:
        return self.net.config  # type: ignore[return-value]

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return functional_call(self.net, self.whole[0].weights(self.name), (x, t, cond))


class Supernet(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.full = ElasticDiT(config.plain())
        self.shapes: dict[str, ElasticDiT] = {}
        self.cuts: dict[str, dict[str, list[int | Tensor]]] = {}
        own: dict[str, Tensor] = {}
        down: dict[str, Tensor] = {}
        up: dict[str, Tensor] = {}
        for name in config.names:
            with torch.device("meta"):
                shape = self.shapes[name] = ElasticDiT(config.plain(name))
            if name != config.names[-1]:
                self.cuts[name] = dict(cuts(shape, self.full))
                own |= {key(name, n): self.taken(name, n).clone() for n in self.cuts[name] if private(n)}
            if config.rank:
                for n, layer in adapted(shape):
                    rows = torch.randn(config.rank, layer.in_features) / layer.in_features**0.5
                    down[key(name, n)] = rows
                    up[key(name, n)] = torch.zeros(layer.out_features, config.rank)
        self.own, self.lora_a, self.lora_b = map(nn.ParameterDict, (own, down, up))

    def taken(self, width: str, name: str) -> Tensor:
        """A parameter of the full network as a smaller width has it at first."""
        return cut(self.full.get_parameter(name).detach(), self.cuts[width][name])

    def weights(self, width: str) -> dict[str, Tensor]:
        """All parameters of one width, by name; gradients reach the shared ones, its own and its LoRA."""
        found: dict[str, Tensor] = dict(self.full.named_parameters())
        for name, places in self.cuts.get(width, {}).items():
            own = key(width, name)
            found[name] = self.own[own] if own in self.own else cut(found[name], places)
        if self.config.rank:
            scale = self.config.alpha / self.config.rank
            for name, _ in adapted(self.shapes[width]):
                a, b = self.lora_a[key(width, name)], self.lora_b[key(width, name)]
                found[f"{name}.weight"] = found[f"{name}.weight"] + scale * (b @ a)
        return found

    def at(self, width: str) -> Width:
        self.config.plain(width)  # whether there is one
        return Width(self, width)

    @torch.no_grad()
    def extract(self, width: str) -> ElasticDiT:
        """A plain model with weights of its own."""
        made = ElasticDiT(self.config.plain(width))
        weights = {name: value.detach().clone() for name, value in self.weights(width).items()}
        made.load_state_dict(weights)
        return made.to(next(self.parameters()).device).train(self.training)

    def shared_grads(self, width: str) -> list[Tensor]:
        """Copies of the gradients that reached what ``width`` shares with the full network."""
        parts = self.cuts.get(width) or {n: [] for n, _ in self.full.named_parameters()}
        found = {n: self.full.get_parameter(n).grad for n in parts if not private(n)}
        shapes = {n: self.shapes[width].get_parameter(n) for n in found}
        return [
            torch.zeros(shapes[n].shape, device=self.full.get_parameter(n).device)
            if grad is None
            else cut(grad, parts[n]).clone()
            for n, grad in found.items()
        ]

    def extras(self, width: str) -> dict[str, nn.Parameter]:
        """What one width has for itself: norms, modulation, LoRA. Of the full one: LoRA alone."""
        groups = {"own": self.own, "lora_a": self.lora_a, "lora_b": self.lora_b}
        return {
            f"{group}.{name}": value
            for group, found in groups.items()
            for name, value in found.items()
            if name.startswith(f"{width}/")
        }

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.at(self.config.names[-1])(x, t, cond)

    def example(self, batch: int = 2, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Cond]:
        """Inputs that tests, bench and exporters use."""
        return self.full.example(batch, device)


def private(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in ElasticDiT.PRIVATE)


def adapted(model: ElasticDiT) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that LoRA changes."""
    for name, module in model.named_modules():
        if name.startswith("blocks.") and isinstance(module, nn.Linear) and name.rpartition(".")[2] in LORA:
            yield name, module


def with_lora(net: Supernet, rank: int, alpha: float) -> Supernet:
    """The same network with a LoRA per width that changes nothing yet."""
    made = Supernet(replace(net.config, rank=rank, alpha=alpha))
    made.load_state_dict(made.state_dict() | net.state_dict())
    return made.to(next(net.parameters()).device)


def count(c: Config) -> int:
    """Number of parameters, from the config alone."""
    total = elastic_dit.count(c.plain())
    for name in c.names:
        small = c.plain(name)
        d, h, blocks = small.dim, small.head_dim, sum(small.stages)
        if name != c.names[-1]:
            total += c.features * d + 2 * d + d * d + 6 * d * d + 6 * d + 2 * d + blocks * (6 * d + 4 * h)
        for i in range(blocks):
            widths = (small.heads, small.kv_heads, small.cross_heads, small.mlp)
            heads, kv, cross, mlp = (per_block(w, i) for w in widths)
            sides = 4 * d + 2 * (heads + kv) * h  # q, k, v and out
            sides += 2 * d + 2 * small.text + 2 * (cross + small.cross_kv_heads) * h
            total += c.rank * (sides + 2 * (d + mlp))
    return total
