"""SHA-256 of files, computed in parallel with other work."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_in_background(path: Path) -> "Future[str]":
    """Start `file_sha256` of a file, which takes longer than reading an unpacked file."""
    return in_background(lambda: file_sha256(path))


def in_background(function: Callable[[], str]) -> "Future[str]":
    """Start a function in a thread, and return its result as a future."""
    digest: Future[str] = Future()

    def compute() -> None:
        try:
            digest.set_result(function())
        except BaseException as error:  # raised to whoever asks for the result
            digest.set_exception(error)

    # A daemon, so that a process that ends without the result does not wait for it.
    threading.Thread(target=compute, name="sha256", daemon=True).start()
    return digest
