"""What the documents say can be run, runs; what they point at exists."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

from pocketdiffusion.cli.main import VERBS, guarded
from pocketdiffusion.cli.train import load, recipes

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """Lines of code blocks that call pocket, without their comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(), re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("pocket ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_name_real_verbs_and_recipes(page):
    for argv in commands(page):
        assert argv[0] in VERBS
        if argv[0] == "train" and len(argv) > 1 and not argv[1].endswith(".py"):
            assert argv[1] in recipes(), argv


def call(line):
    """The words after pocket, also of python -m pocketdiffusion under torchrun; None for another command."""
    words = shlex.split(line)
    if words[:1] == ["pocket"]:
        return words[1:]
    return words[words.index("pocketdiffusion") + 1 :] if "-m pocketdiffusion" in line else None


SOURCES = [*PAGES, *sorted((ROOT / "src" / "pocketdiffusion").glob("*/*.py"))]
LINES = {
    line.split("   #")[0].strip()
    for page in SOURCES
    for line in re.findall(r"^(?:    )?((?:pocket|torchrun) .*)$", page.read_text(), re.M)
}


@pytest.mark.parametrize("line", sorted(LINES))
def test_every_flag_in_documents_and_docstrings_exists(line):
    argv = call(line)
    if not argv or argv[0] not in VERBS or any(w.isupper() for w in argv):
        return
    module = importlib.import_module(f"pocketdiffusion.cli.{VERBS[argv[0]][0]}")
    rest = argv[1:]
    if argv[0] == "train":
        if not rest or rest[0].endswith(".py") or "--help" in rest:
            return
        module, rest = load(rest[0]), rest[1:]
    tyro.cli(module.Args, args=[r.rstrip(";") for r in rest])


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    # those with a bundle, or a model of one's own, need it first: tests/export and tests/recipes have them
    [
        a
        for a in commands(ROOT / "README.md")
        if a[0] in ("generate", "info") and not {"--bundle", "--model"} & {*a}
    ],
)
def test_short_commands_of_the_readme_run(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "prompts.txt").write_text("a red circle\ntwo green stars\n")
    assert guarded(argv) == 0


def test_every_folder_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    folders = [p.name for p in (ROOT / "src" / "pocketdiffusion").iterdir() if (p / "__init__.py").exists()]
    assert not [f for f in folders if f"`{f}/`" not in text and f"{f}/`" not in text]


def test_ascii_only():
    for page in PAGES:
        assert page.read_text().isascii(), page
