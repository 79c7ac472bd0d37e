"""Who may import whom."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TOP = ("datasets", "eval")
ALLOWED = {
    "objectives": set(),
    "networks": {"objectives"},
    "agents": {"objectives", "networks"},
    "datasets": {"eval"},
    "eval": {"datasets"},
    "training": {"objectives", "networks", "agents", "datasets", "eval"},
    "sharing": {"networks", "agents", "eval", "training"},
    "bench": {"networks", "agents", "datasets", "training"},
    "cli": {"networks", "agents", "datasets", "eval", "training", "sharing", "bench"},
}
"""Package → packages that it may import; what lies in `tql_offline/` itself all but objectives may.

CONTRIBUTING.md has the same table."""


def folder_of(package):
    return ROOT / package if package in TOP else ROOT / "tql_offline" / package


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_of(path):
    """Names of the packages of `tql_offline` that a module imports; a module of its own is none."""
    names = [name.split(".") for name in imported(path) if name.startswith("tql_offline.")]
    return {parts[1] for parts in names} & ALLOWED.keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_layers(package):
    files = sorted(folder_of(package).glob("*.py"))
    assert files
    for path in files:
        assert packages_of(path) <= ALLOWED[package] | {package}, path


def test_every_package_is_in_the_table():
    folders = {path.parent.name for path in ROOT.glob("tql_offline/*/__init__.py")}
    assert ALLOWED.keys() == folders | {*TOP}
    rows = re.findall(r"^\| `([\w/]+)/` .*\| ([^|]*) \|$", CONTRIBUTING, re.MULTILINE)
    table = {folder.rpartition("/")[2]: {*re.findall(r"\w+", cell)} for folder, cell in rows}
    assert table == {name: allowed or {"torch"} for name, allowed in ALLOWED.items()}


@pytest.mark.parametrize("package", ["datasets", "eval", "training"])
def test_a_large_packages_map_names_every_module(package):
    page = ast.get_docstring(ast.parse((folder_of(package) / "__init__.py").read_text()))
    entries = [line.strip().partition("  ") for line in page.splitlines() if line[:4] == "    "]
    arrows = [line.partition("→")[2] for _, _, line in entries]
    named = set(re.findall(r"\w+", " ".join([*(names for names, _, _ in entries), *arrows])))
    missing = {path.stem for path in folder_of(package).glob("*.py")} - named - {"__init__"}
    assert not missing


def test_objectives_are_torch_alone():
    allowed = {"torch", "jaxtyping", "typing", "math", "collections", "dataclasses"}
    for path in folder_of("objectives").glob("*.py"):
        names = {n for n in imported(path) if not n.startswith("tql_offline.objectives")}
        assert {name.split(".")[0] for name in names} <= allowed, path


def test_only_tables_imports_rich():
    for path in [
        *ROOT.glob("tql_offline/**/*.py"),
        *ROOT.glob("datasets/*.py"),
        *ROOT.glob("eval/*.py"),
    ]:
        if path.name != "tables.py":
            assert not any(n.split(".")[0] == "rich" for n in imported(path)), path


def test_nothing_unpickles():
    for path in [
        *ROOT.glob("tql_offline/**/*.py"),
        *ROOT.glob("datasets/*.py"),
        *ROOT.glob("eval/*.py"),
    ]:
        assert "pickle" not in set(imported(path)), path
        text = path.read_text()
        assert "allow_pickle=True" not in text
        assert "torch.load(" not in text
