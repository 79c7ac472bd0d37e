"""What an installed copy contains, and what it must never put at the top of site-packages."""

import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tql_offline.version import __version__

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_package_list_is_the_folders():
    inside = {
        ".".join(p.parent.relative_to(ROOT).parts) for p in ROOT.glob("tql_offline/**/__init__.py")
    }
    assert set(SETTINGS["packages"]) == inside | {"tql_offline.datasets", "tql_offline.eval"}
    for folder in ("datasets", "eval"):
        assert not [p for p in (ROOT / folder).glob("*/*.py") if p.parent.name != "__pycache__"]


@pytest.mark.parametrize("name", ["datasets", "eval"])
def test_bare_names_refuse_to_import(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=f"tql_offline.{name}"):
        importlib.import_module(name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the sources, so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "tql_offline", "datasets", "eval"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(source)], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_at_the_top(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"tql_offline"}
    for needed in (
        "datasets/load.py",
        "datasets/catalogue.toml",
        "eval/protocols.toml",
        "eval/report.html.jinja",
        "eval/published/sources.toml",
        "eval/published/tql_paper_ogbench.csv",
        "networks/cpu_kernels.c",
        "presets.toml",
        "py.typed",
    ):
        assert f"tql_offline/{needed}" in names


def test_installed_beside_hugging_face_datasets_both_import(wheel, tmp_path):
    """The installed copy and a package named `datasets` import side by side."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    other = tmp_path / "datasets"
    other.mkdir()
    (other / "__init__.py").write_text("NAME = 'hugging face'\n")
    code = (
        "import datasets, tql_offline.datasets.load as ours, tql_offline.eval.protocol as p;"
        "print(datasets.NAME, ours.__file__, p.get('quick').episodes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"hugging face {tmp_path}/tql_offline/datasets/load.py 50")


def test_a_plain_checkout_works_uninstalled(tmp_path):
    code = "import tql_offline.datasets.names, tql_offline.eval.scores; print('ok')"
    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]}; {code}",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ok\n"


@pytest.mark.parametrize("command", [[str(ROOT / "cli.py")], ["-m", "tql_offline"]])
def test_the_command_line_runs_from_a_checkout(command, tmp_path):
    done = subprocess.run(
        [sys.executable, *command, "--version"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == __version__
