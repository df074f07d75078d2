"""pocket train: run a recipe, by name or from a file.

    pocket train                                  # the recipes
    pocket train scenes_teacher --help            # a recipe's flags are the fields of its Args
    pocket train scenes_teacher --steps 20000
    pocket train my_recipe.py

A run that was stopped goes on where it was: give the same command again.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Set
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..disk import renamed

# what may differ between two parts of one run; a recipe that keeps several runs names more (its MAY_CHANGE)
MAY_CHANGE = {"steps", "lr", "look", "device", "compile", "out", "vae"}
RECIPES = Path(__file__).parent.parent / "recipes"


def recipes() -> dict[str, str]:
    """Name -> first docstring line, without importing anything."""
    found = {}
    for path in sorted(RECIPES.glob("*.py")):
        if path.stem != "__init__":
            found[path.stem] = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
    return found


def load(name: str) -> Any:
    """The module of a shipped recipe or of a user's file; it has ``Args`` and ``main``."""
    if name in recipes():
        return importlib.import_module(f"..recipes.{name}", __package__)
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"no recipe {name!r}: give a .py file or one of {', '.join(recipes())}")
    name = f"recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up while they are built
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not is_dataclass(getattr(module, "Args", None)) or not callable(getattr(module, "main", None)):
        raise ValueError(f"{path}: a recipe has a dataclass Args and a function main(args)")
    return module


def commit() -> str:
    """The git commit of the code if it runs from its own checkout, with + when files differ from it."""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=RECIPES, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not (Path(git("rev-parse", "--show-toplevel")) / "src" / "pocketdiffusion").samefile(
            RECIPES.parent
        ):
            return "unknown"
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def note(name: str, args: Any, may_change: Set[str] = frozenset()) -> None:
    """Add what was asked to ``args.json`` in the run folder; refuse a folder that holds another run."""
    out = getattr(args, "out", None)
    if out is None or int(os.environ.get("RANK", 0)):
        return
    path = Path(out) / "args.json"
    asked = json.loads(json.dumps(asdict(args), default=str))
    before = json.loads(path.read_text()) if path.exists() else []
    for key, value in before[-1]["args"].items() if before else ():
        if key not in MAY_CHANGE | may_change and asked.get(key) != value:
            raise ValueError(
                f"{out}: holds a run with --{key.replace('_', '-')} {value}, not {asked.get(key)}; "
                "name another --out"
            )
    record = {
        "recipe": name,
        "commit": commit(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "args": asked,
    }
    with renamed(path) as temporary:
        temporary.write_text(json.dumps([*before, record], indent=2) + "\n")


def refused(args: Any) -> None:
    """Leave no trace of a run that never began, so that the mended command may have its folder."""
    out = getattr(args, "out", None)
    if out is None or int(os.environ.get("RANK", 0)):
        return
    path = Path(out) / "args.json"
    if [p.name for p in Path(out).iterdir()] == [path.name] and len(json.loads(path.read_text())) == 1:
        path.unlink()


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: pocket train RECIPE [flags]      (pocket train RECIPE --help for the flags)\n")
        for name, line in recipes().items():
            print(f"  {name:22} {line}")
        return
    module = load(argv[0])
    import tyro

    args = tyro.cli(module.Args, args=argv[1:], prog=f"pocket train {argv[0]}", description=module.__doc__)
    note(argv[0], args, getattr(module, "MAY_CHANGE", frozenset()))
    try:
        module.main(args)
    except ValueError:
        refused(args)
        raise
