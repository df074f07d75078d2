"""The house keeps its shape: imports point down, tables are complete, files stay small."""

import ast
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "pocketdiffusion"
# Design, section 2, from the top. Neighbours in a row do not see each other.
ROWS = [
    "cli serve recipes",
    "export",
    "pipeline",
    "store",
    "train eval bench",
    "methods compress rewards teachers",
    "models autoencoders text diffusion data",
    "nn",
    "types noise disk device runtime",
]
RANK = {name: rank for rank, row in enumerate(reversed(ROWS)) for name in row.split()}
JOIN_EVERYTHING = {"cli", "recipes", "__init__", "__main__"}
EXCEPTIONS = {("runtime", "noise")}
BANNED = r"utils?|common|helpers?|base|managers?|misc"
# Reads what its own parent process wrote a moment ago, in a folder that only the two know.
OWN_PICKLES = {"bench/memory.py"}

FILES = sorted(p for p in SRC.rglob("*.py") if "__pycache__" not in p.parts)
FOLDERS = sorted({p.parent for p in FILES if p.parent != SRC})
TREES = {p: ast.parse(p.read_text()) for p in FILES}


def name(path: Path) -> str:
    return str(path.relative_to(SRC))


def part(path: Path) -> str:
    """The part of the house that a file belongs to: a folder, or a module at the top."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, inside functions too."""
    package = ("pocketdiffusion", *path.relative_to(SRC).parent.parts)
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*stem, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path) -> set[str]:
    """The parts of the house that a file imports from."""
    ours = {m.split(".")[1] for m in imports(path) if m.startswith("pocketdiffusion.")}
    return ours & set(RANK)


def first_line(path: Path) -> str:
    text = ast.get_docstring(TREES[path])
    assert text, f"{name(path)} has no docstring"
    return text.splitlines()[0]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    here = part(path)
    assert here in RANK or here in JOIN_EVERYTHING, f"{here} has no place in the design"
    if here in JOIN_EVERYTHING:
        return
    for other in uses(path) - {here}:
        assert RANK[other] < RANK[here] or (here, other) in EXCEPTIONS, f"{name(path)} imports {other}"


def test_the_parser_of_imports_sees_what_it_should():
    assert {"types", "nn"} <= uses(SRC / "models" / "dit.py")
    assert "pocketdiffusion.nn.norm" in imports(SRC / "nn" / "attention" / "full.py")


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in ("noise", "runtime")], ids=name)
def test_noise_and_runtime_know_no_torch(path):
    assert not {m for m in imports(path) if m.split(".")[0] == "torch"}


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_folder_lists_its_files(folder):
    init = folder / "__init__.py"
    assert init.exists(), "every folder has an __init__.py with a table of its files"
    assert len(TREES[init].body) == 1, "and nothing but that docstring"
    docstring = ast.get_docstring(TREES[init])
    listed = re.findall(r"^    (\S+(?:\.py|/))  +(.*)$", docstring, re.MULTILINE)
    there = {p.name: first_line(p) for p in FILES if p.parent == folder and p != init}
    there |= {f"{p.name}/": first_line(p / "__init__.py") for p in FOLDERS if p.parent == folder}
    assert len(listed) == len(dict(listed)), "a file is listed twice"
    assert dict(listed) == there


def test_no_third_level():
    assert [name(p) for p in FOLDERS if len(p.relative_to(SRC).parts) > 1] in ([], ["nn/attention"])


def test_size_of_modules():
    lines = {name(p): len(p.read_text().splitlines()) for p in FILES}
    assert not {k: n for k, n in lines.items() if n > 400}
    assert statistics.median(lines.values()) < 200


def test_types_is_short():
    assert len((SRC / "types.py").read_text().splitlines()) < 120


@pytest.mark.parametrize("path", FILES, ids=name)
def test_ascii(path):
    assert path.read_text(encoding="utf-8").isascii()


def test_files_are_named_for_an_idea():
    names = [w for p in FILES for w in re.split(r"[/_.]", name(p))]
    assert not [w for w in names if re.fullmatch(BANNED, w)]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_pickle_is_never_read(path):
    top = {m.split(".")[0] for m in imports(path)}
    assert not top & {"dill", "cloudpickle", "joblib", "shelve"}
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), (
            f"{name(path)}:{node.lineno}"
        )
        if called == "torch.load" and name(path) not in OWN_PICKLES:
            assert given.get("weights_only") == "True", f"{name(path)}:{node.lineno}"
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", f"{name(path)}:{node.lineno}"


def python(code: str) -> str:
    env = os.environ | {"PYTHONPATH": str(SRC.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout


def test_import_is_light():
    """CPU time, because a busy machine makes any wall clock lie."""
    code = "import sys, time; t = time.process_time(); import pocketdiffusion; t = time.process_time() - t"
    torch, seconds = python(code + "; print('torch' in sys.modules, t)").split()
    assert torch == "False"
    assert float(seconds) < 0.5


def test_public_names():
    import pocketdiffusion

    public = [n for n in pocketdiffusion.__all__ if not n.startswith("_")]
    assert 0 < len(public) <= 20
    for n in public:
        assert hasattr(pocketdiffusion, n)
