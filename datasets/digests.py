"""SHA-256 of files, computed beside other work."""

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
    """`file_sha256` of a file, begun now: it takes longer than reading an unpacked file does."""
    return in_background(lambda: file_sha256(path))


def in_background(function: Callable[[], str]) -> "Future[str]":
    """What a function gives, begun now."""
    digest: Future[str] = Future()

    def compute() -> None:
        try:
            digest.set_result(function())
        except BaseException as error:  # whoever asks for the result gets it
            digest.set_exception(error)

    # A daemon: a process that ends without asking does not wait for it.
    threading.Thread(target=compute, name="sha256", daemon=True).start()
    return digest
