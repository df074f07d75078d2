"""pocketdiffusion: big diffusion models made small, few-step and fast, for phones, edge devices and browsers.

    import pocketdiffusion as pd
    pd.Pipeline.from_pretrained("snapgen_scenes")("two green stars")[0].save("stars.png")

Names are loaded when they are first used; docs/tour.md says in which order to read the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Batch": "types",
    "Cond": "types",
    "Instance": "types",
    "Pipeline": "pipeline",
    "Schedule": "pipeline",
    "Scenes": "data.scenes",
    "World": "data.scenes",
    "Run": "train.fit",
    "fit": "train.fit",
    "load": "store",
    "save": "store",
    "tap": "nn.taps",
}
__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from .data.scenes import Scenes as Scenes
    from .data.scenes import World as World
    from .nn.taps import tap as tap
    from .pipeline import Pipeline as Pipeline
    from .pipeline import Schedule as Schedule
    from .store import load as load
    from .store import save as save
    from .train.fit import Run as Run
    from .train.fit import fit as fit
    from .types import Batch as Batch
    from .types import Cond as Cond
    from .types import Instance as Instance


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
