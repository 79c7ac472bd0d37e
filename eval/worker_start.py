"""The first code of a worker process, run before NumPy is imported.

It is a separate file that imports no library, because what it sets must be set before the libraries
that read it are loaded, and only in the worker: the calling process has threads that may read its
environment variables meanwhile.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")
# Not fork: a forked child would share CUDA, thread pools and random state with its parent.


def start(
    target: Callable[..., None], *arguments: Any
) -> tuple[BaseProcess, "Connection[Any, Any]"]:
    """Start a process on `run` or `draw`; return it with this process's end of its pipe."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    # With our copy closed, a dead process's pipe reads as ended instead of silent.
    theirs.close()
    return process, ours


def end(process: BaseProcess, connection: "Connection[Any, Any]") -> None:
    """Kill a process: it holds nothing worth saving, and may hang."""
    connection.close()
    process.kill()
    process.join()
    process.close()


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
