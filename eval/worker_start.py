"""The first code of a worker process, run before NumPy is imported.

It is a separate file that imports no library, because what it sets must be set before the libraries
that read it are loaded, and only in the worker: the calling process has threads that may read its
environment variables meanwhile.
"""

import os
import signal
from multiprocessing.connection import Connection
from typing import Any


def run(connection: "Connection[Any, Any]", task: str, *arguments: Any) -> None:
    """Do a task of `stepping`, which takes the connection and these arguments."""
    _settle()
    from tql_offline.eval import stepping

    getattr(stepping, task)(connection, *arguments)


def draw(connection: "Connection[Any, Any]", renderer: str, *arguments: Any) -> None:
    """Serve frames drawn by a renderer, a value of MUJOCO_GL; empty leaves it unchanged."""
    _settle()
    if renderer:
        os.environ["MUJOCO_GL"] = renderer
    # A library that cannot draw here reports it at length, even when it is unloaded.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from tql_offline.eval import drawing

    drawing.serve(connection, *arguments)


def _settle() -> None:
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread each: there are as many workers as usable cores.
    os.environ["OMP_NUM_THREADS"] = "1"
