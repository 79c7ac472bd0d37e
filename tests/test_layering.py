"""Who may import whom."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "tql_offline.datasets": ROOT / "datasets",
    "tql_offline.eval": ROOT / "eval",
    "tql_offline.objectives": ROOT / "tql_offline" / "objectives",
    "tql_offline.networks": ROOT / "tql_offline" / "networks",
    "tql_offline.agents": ROOT / "tql_offline" / "agents",
    "tql_offline.training": ROOT / "tql_offline" / "training",
    "tql_offline.sharing": ROOT / "tql_offline" / "sharing",
    "tql_offline.bench": ROOT / "tql_offline" / "bench",
}
FORBIDDEN = {
    "tql_offline.datasets": ("tql_offline.agents", "tql_offline.training", "tql_offline.cli"),
    "tql_offline.eval": ("tql_offline.agents", "tql_offline.training", "tql_offline.cli"),
    "tql_offline.objectives": ("tql_offline.",),
    "tql_offline.networks": ("tql_offline.agents", "tql_offline.training", "tql_offline.datasets"),
    "tql_offline.agents": ("tql_offline.training", "tql_offline.datasets", "tql_offline.eval"),
    "tql_offline.training": ("tql_offline.cli", "tql_offline.sharing", "tql_offline.bench"),
    "tql_offline.sharing": ("tql_offline.cli",),
    "tql_offline.bench": ("tql_offline.cli",),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", list(FOLDERS))
def test_layers(package):
    files = sorted(FOLDERS[package].glob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            for forbidden in FORBIDDEN[package]:
                inside = package == "tql_offline.objectives" and name.startswith(package)
                assert inside or not name.startswith(forbidden), f"{path} imports {name}"


@pytest.mark.parametrize("package", [f"tql_offline.{n}" for n in ("datasets", "eval", "training")])
def test_a_large_packages_map_names_every_module(package):
    page = ast.get_docstring(ast.parse((FOLDERS[package] / "__init__.py").read_text()))
    entries = [line.strip().partition("  ") for line in page.splitlines() if line[:4] == "    "]
    arrows = [line.partition("→")[2] for _, _, line in entries]
    named = set(re.findall(r"\w+", " ".join([*(names for names, _, _ in entries), *arrows])))
    missing = {path.stem for path in FOLDERS[package].glob("*.py")} - named - {"__init__"}
    assert not missing


def test_objectives_are_torch_alone():
    allowed = {"torch", "jaxtyping", "typing", "math", "collections", "dataclasses", "tql_offline"}
    for path in FOLDERS["tql_offline.objectives"].glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= allowed, path


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
