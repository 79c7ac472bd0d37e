"""C sources of this package: compiled on first use, in a second, kept in `~/.tql-offline/compiled`.

Whoever uses one has the same in Python, for machines without a compiler.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from tql_offline.files import flush_closed, nearest_existing

FLAGS = ("-O3", "-fopenmp", "-fPIC", "-shared")


class UnavailableError(Exception):
    """What was to be compiled is not available; the message says why."""


@cache
def library(source: Path, *flags: str) -> ctypes.CDLL | UnavailableError:
    """The shared library of a source, or why there is none.

    Args:
        source: a C file.
        flags: of the compiler, besides `FLAGS`.
    """
    try:
        path = compiled(source, *flags)
        try:
            return ctypes.CDLL(str(path))
        except OSError:  # damaged: compile it once more
            path.unlink()
            return ctypes.CDLL(str(compiled(source, *flags)))
    except UnavailableError as why:
        return why
    except OSError as error:  # no home, a full disk
        refused = f"{error.filename} cannot be written ({error.strerror})"
        return UnavailableError(refused if error.filename else str(error))
    except (RuntimeError, ValueError) as error:  # no user, an unclosed quote
        return UnavailableError(str(error))


def compiled(source: Path, *flags: str) -> Path:
    """The file of a source's shared library, built if it does not exist.

    Raises:
        UnavailableError: the system is Windows, or there is no compiler, or it fails.
        OSError: the folder cannot be written.
    """
    if platform.system() == "Windows":
        raise UnavailableError("they are not built on Windows")
    command = [*_compiler(), *FLAGS, *flags]
    sources = [str(source), *_openmp()]
    made_of = "\n".join([source.read_text(), *command, *sources])
    name = f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    target = compiled_folder() / name
    if not target.exists():
        if shutil.which(command[0]) is None:
            raise UnavailableError(f"there is no C compiler ({command[0]})")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder, name)
            _run([*command, *sources, "-o", str(made), "-lm"])
            flush_closed(made)
            made.replace(target)  # atomic, even if another process compiles it too
    return target


def compiled_folder() -> Path:
    """The folder for what gcc or `torch.compile` has compiled on this machine.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return Path.home() / ".tql-offline" / "compiled"


def has_compiler() -> bool:
    """Whether the C compiler's command exists."""
    try:
        return any(map(shutil.which, _compiler()[:1]))
    except ValueError:  # an unclosed quote
        return False


def can_keep() -> bool:
    """Whether what is compiled can be written to its folder, or one that it would be made in."""
    try:
        place = nearest_existing(compiled_folder())
    except (RuntimeError, OSError):  # no home, or one in a folder that may not be searched
        return False
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or "gcc")


def _openmp() -> list[str]:
    """PyTorch's bundled OpenMP, if any: a second one would start a second team of threads."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ["-Wl,--as-needed", *map(str, found)]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"LC_ALL": "C"},
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        first = next((line for line in said if "error" in line), said[0])
        raise UnavailableError(f"{command[0]} failed: {first}")
