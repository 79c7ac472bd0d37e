"""Temporary files that other packages leave behind."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LEAVES_FILES = "ogbench"
_LOCK = threading.RLock()


@contextmanager
def environment_files_removed() -> Iterator[None]:
    """Close and remove the files in which OGBench passes mazes to MuJoCo, once the block has ended.

    OGBench leaves each of them open, and MuJoCo reads them only while an environment is made. Those
    of other packages and threads stay, since they may be needed.
    """
    thread, made = threading.get_ident(), list[tuple[int, str]]()
    with _LOCK:
        mkstemp = tempfile.mkstemp

        def noting(*arguments: Any, **options: Any) -> tuple[int, str]:
            number, path = mkstemp(*arguments, **options)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if threading.get_ident() == thread and caller.partition(".")[0] == _LEAVES_FILES:
                made.append((number, path))
            return number, path

        tempfile.mkstemp = noting  # type: ignore[assignment]  # it is overloaded
        try:
            yield
        finally:
            tempfile.mkstemp = mkstemp
            for number, path in made:
                with suppress(OSError):  # what is gone need not be removed
                    os.close(number)
                with suppress(OSError):
                    Path(path).unlink()
