"""Writing HDF5 files so that a full disk is an error and no more.

HDF5 ends the process if a file cannot be written on closing it: what it still has to write then has
no place to go. So it writes to a file object here that never refuses, and remembers what the system
refused.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from tql_offline.files import flush


@contextmanager
def created_hdf5(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Write an HDF5 file, replacing one that is there, and flush it to disk.

    Yields:
        The file, and a function to call after each column: it raises OSError as soon as the disk
        has refused a write, so that no more is made for nothing.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("w+b", buffering=0) as raw:
        disk = _Disk(raw)
        try:
            with h5py.File(disk, "w", track_order=True) as file:
                yield file, disk.check
        except Exception:
            disk.check()  # HDF5 complains of what it cannot read back; this is the cause
            raise
        disk.check()
        flush(raw)


class _Disk(io.RawIOBase):
    """A file that takes every write, also those that the system refuses.

    Nothing is written after the first refusal, and what is read of places that were never written
    is zeros.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._refusal: OSError | None = None

    def check(self) -> None:
        """Raise the system's first refusal, if there was one."""
        if self._refusal is not None:
            raise self._refusal

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._raw.seek(offset, whence)

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        have = 0
        while more := self._raw.readinto(buffer[have:]):
            have += more
        buffer[have:] = bytes(len(buffer) - have)
        return len(buffer)

    def write(self, data: memoryview, /) -> int:  # type: ignore[override]
        done = 0
        try:
            while self._refusal is None and done < len(data):  # one call may write a part
                done += self._raw.write(data[done:])
        except OSError as error:
            self._refusal = error
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self._refusal is None:
                self._raw.truncate(size)
        except OSError as error:
            self._refusal = error
        return size or 0
