import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def a_python(tmp_path):
    """Make a command that says it is a given version of Python, and lists what it is told."""

    def make(name, version):
        command = tmp_path / name
        command.write_text(
            f'#!/bin/sh\necho "$@" >> "{tmp_path}/{name}.told"\n'
            f'[ "$1" = -c ] && exec "{sys.executable}" -c "import sys\n'
            f'sys.version_info = {version}\nexec(sys.argv[1])" "$2"\nexit 0\n'
        )
        command.chmod(0o755)
        return command

    return make


def told(python):
    """The modules that a command was told to run."""
    said = python.with_name(f"{python.name}.told").read_text()
    return [line for line in said.splitlines() if line.startswith("-m ")]


def install(tmp_path, python):
    """Run `make` for the environment `tmp_path/env`."""
    folder = tmp_path / "env"
    command = ["make", f"PYTHON={python}", f"VENV={folder}", f"{folder}/installed"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("version", [(2, 7), (3, 9), (3, 10), (3, 13)])
def test_another_python_is_refused_with_one_sentence(tmp_path, a_python, version):
    python = a_python("python", version)
    made = install(tmp_path, python)
    assert made.returncode != 0
    sentence, *_ = made.stderr.splitlines()
    assert sentence == (
        f"Python 3.11 or 3.12 is needed, and {python} is not one; run make PYTHON=python3.12"
    )
    assert not told(python)


def test_an_environment_of_another_python_is_made_anew(tmp_path, a_python):
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    inside, python = a_python("env/bin/python", (3, 13)), a_python("python", (3, 12))
    assert install(tmp_path, python).returncode == 0
    assert told(python) == [f"-m venv --clear {tmp_path}/env"]
    (tmp_path / "env" / "installed").unlink()
    a_python("env/bin/python", (3, 11))
    assert install(tmp_path, a_python("wrong", (3, 13))).returncode == 0
    assert told(python) == [f"-m venv --clear {tmp_path}/env"]  # one that fits stays
    assert told(inside)[-1].startswith("-m pip install")


def test_a_folder_that_is_no_environment_is_not_emptied(tmp_path, a_python):
    python = a_python("python", (3, 12))
    (tmp_path / "env").mkdir()
    install(tmp_path, python)
    assert told(python) == [f"-m venv {tmp_path}/env"]
