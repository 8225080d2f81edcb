"""Imports run downward, and what must start fast or run inside other people's workers imports nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import reczero

ROOT = Path(reczero.__file__).parent
# From the bottom up: a room imports itself and what stands before it. A new one goes into docs/architecture.md too.
ORDER = [
    "errors", "files", "fetch", "machine", "reasoning", "data", "recipes", "evaluation", "models", "rollout",
    "teachers", "serving", "training", "scaleout", "bench", "cli",
]  # fmt: skip
# Evaluation reads predictions, whoever made them.
FORBIDDEN = {"evaluation": {"models", "rollout", "training"}}
HEAVY = {"torch", "transformers", "trl", "datasets", "polars", "pandas", "numpy", "pyarrow"}


def room(module: str) -> str:
    """reczero.data.sources.base -> data; reczero itself -> ''."""
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import of ours in a file, those inside functions too."""
    package = ["reczero", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if room(f"{alias.name}."))
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (start, node.module or "") if part)
            if module == "reczero":
                yield from ((node.lineno, f"reczero.{alias.name}") for alias in node.names if alias.name[:1] != "_")
            else:
                yield node.lineno, module


def violations(path: Path) -> list[str]:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if here == "__init__":
        return []
    wrong = []
    for line, module in imports(path):
        if module.split(".")[0] != "reczero":
            continue
        there = room(module)
        allowed = ORDER[: ORDER.index(here) + 1]
        if there not in allowed or there in FORBIDDEN.get(here, ()):
            wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    return wrong


def test_every_room_has_its_place():
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__pycache__"} <= set(ORDER)


def test_imports_run_downward():
    assert [wrong for path in sorted(ROOT.rglob("*.py")) for wrong in violations(path)] == []


@pytest.mark.parametrize(
    "where,code",
    [
        ("files.py", "from reczero.fetch import download"),
        ("data/base.py", "def f():\n    from reczero.models import load_policy"),
        ("data/base.py", "from ..cli import main"),
        ("data/sources/base.py", "from reczero import training"),
        ("evaluation/report.py", "import reczero.rollout.decoder"),
    ],
)
def test_the_rule_bites(where, code, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert len(violations(path)) == 1


# What only an extra brings, and where its absence is told.
EXTRAS = {"surprise", "cornac", "tensorflow"}


def test_whatever_is_imported_is_asked_for():
    """A dependency of a dependency may go: the demo's environment has what pyproject.toml names, and no more."""
    asked = {canonicalize_name(Requirement(line).name) for line in requires("reczero") or () if "extra ==" not in line}
    sources = packages_distributions()
    missing = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - EXTRAS - {"reczero"}:
                if not {canonicalize_name(name) for name in sources.get(top, [top])} & asked:
                    missing.add(f"{path.relative_to(ROOT)}: {top}")
    assert missing == set()


@pytest.mark.parametrize("module", ["reczero.cli.main", "reczero.reasoning", "reczero.models"])
def test_nothing_heavy_at_import(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in loaded}
