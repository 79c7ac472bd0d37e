"""Locks by which processes keep out of one another's files, also between machines."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from tql_offline.documents import read_bounded
from tql_offline.errors import InputError, shown
from tql_offline.files import writing

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What NFS without lockd and Lustre mounted without `flock` answer."""
_MAX_LOCK_BYTES = 1024
SOFT_PATIENCE_SECONDS = 60.0


class BusyError(InputError):
    """Another process holds a lock."""


@contextmanager
def locked(
    path: Path,
    busy: str,
    *,
    waits: bool = False,
    advice: str = "choose another folder",
    removed: bool = False,
) -> Iterator[None]:
    """Hold a lock file's lock, creating its folder if needed.

    Args:
        path: the lock file.
        busy: what to say if another process holds it.
        waits: whether to wait for another process to end. For a soft lock, whose holder may have
            died, at most `SOFT_PATIENCE_SECONDS`.
        advice: what to do where the file system has no locks.
        removed: whether to remove the lock file in the end.

    Raises:
        BusyError: another process holds it.
        InputError: it cannot be written, or the file system has no locks.
    """
    lock = FileLock(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _acquire(lock, path, SOFT_PATIENCE_SECONDS if waits else 0, advice)
        except Timeout as error:
            if _is_soft(lock):
                raise BusyError(f"{busy}{_unless_gone(path)}") from error
            if not waits:
                raise BusyError(busy) from error
            _acquire(lock, path, -1, advice)
    try:
        yield
    finally:
        _release(lock, path, removed)


def _is_soft(lock: BaseFileLock) -> bool:
    """Whether a lock does without the system's: only such a one tells its holder's number."""
    return hasattr(lock, "pid")  # filelock < 4.3 also changes its class, newer ones do not


def _release(lock: BaseFileLock, path: Path, removed: bool) -> None:
    # A soft lock's file goes with its release; by then, one at its path may be another process's.
    if removed and not _is_soft(lock):
        with suppress(OSError):  # Windows does not delete an open file; the next holder uses it
            path.unlink()
    lock.release()


def _acquire(lock: BaseFileLock, path: Path, timeout: float, advice: str) -> None:
    """Acquire a lock; one that has to do without the system's becomes a soft one.

    Args:
        lock: the lock.
        path: its file.
        timeout: seconds to wait for another process; a negative number waits without end.
        advice: what to do where the file system has no locks.

    Raises:
        InputError: the file system has no locks.
        OSError: the file cannot be written.
        Timeout: another process holds the lock.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flock not supported", UserWarning)
            lock.acquire(timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise InputError(
            f"the file system of {path.parent} has no locks, by which processes keep out of one "
            f"another's files; {advice}, or mount this one with flock"
        ) from error


def _unless_gone(path: Path) -> str:
    """What to do about a soft lock, which outlives a process that dies on another machine."""
    process = "no other process is at work there"
    with suppress(InputError, ValueError):
        holder, host, *_ = read_bounded(path, _MAX_LOCK_BYTES).decode("ascii").splitlines()
        if holder.isdecimal() and host.isprintable():
            # filelock appends the container's process namespace.
            process = f"process {holder} on host {shown(host.partition('?pidns-')[0])} is gone"
    return f", or delete {path} if {process}"
