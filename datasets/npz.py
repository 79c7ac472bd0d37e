"""Columns of `.npz` files, read directly from the file or unpacked a block at a time."""

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from tql_offline.datasets.blocks import TASK_BYTES, row_blocks
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.reading import (
    HAS_PREADV,
    Columns,
    Place,
    Wanted,
    check_names,
    check_size,
    known_finite,
    read_at,
    read_in_threads,
)
from tql_offline.errors import InputError, shown

_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_DIMS = 32
_MAX_HEADER = 10_000
"""Most bytes of an npy header, as in NumPy."""


def read_npz(path: Path, wanted: Wanted) -> Columns:
    """Read the columns of a file; a damaged one may raise any error, see `damage_named`.

    Raises:
        InputError: it has too many columns, unusable names, or claims more than it can hold.
    """
    with zipfile.ZipFile(path) as archive:
        members = npz_members(path, archive.infolist(), wanted.flat)
        check_size(path, sum(member.file_size for member in members.values()))
        columns = Columns()
        for name, member in members.items():
            columns.add(name, *_column(archive, member, name, wanted))
        return columns


def npz_members(
    path: Path, members: list[zipfile.ZipInfo], flat: bool = False
) -> dict[str, zipfile.ZipInfo]:
    """Members by the names of their columns.

    Raises:
        InputError: there are too many, names of another layout, or two with the same name.
        ValueError: one is packed or named in a way that NumPy never uses.
    """
    names = [member.filename.removesuffix(".npy") for member in members]
    check_names(path, names, flat)
    for name, member in zip(names, members, strict=True):
        if names.count(name) > 1:
            # Another program may read the other one.
            raise InputError(f"{path} holds {shown(name)} twice; write it again with one of each")
        if member.compress_type not in _PLAIN_METHODS:
            raise ValueError(f"{shown(name)} is packed by a method that npz files do not use")
        outside = name.startswith("/") or "\\" in name or ".." in name.split("/")
        if outside or not name.isprintable():
            raise ValueError(f"{shown(name)} is no name of a column")
    return dict(zip(names, members, strict=True))


def _column(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, wanted: Wanted
) -> tuple[Array, bool]:
    """Read one array, and tell whether it is known to be finite.

    Raises:
        ValueError: its header does not describe the bytes that follow.
    """
    with archive.open(member) as file:
        shape, fortran_order, stored = npy_header(file)
        if stored.hasobject or stored.subdtype:
            raise ValueError(f"{member.filename!r} holds objects or arrays of arrays")
        # NumPy would allocate what the header claims before any of it is read.
        if file.tell() + math.prod(shape) * stored.itemsize != member.file_size:
            raise ValueError(f"{member.filename!r} claims shape {shape} of {stored}, but is not it")
        if not wanted.keeps(name):
            _read_through(file)
            return np.empty(0, stored), False
        dtype = wanted.dtype(name, stored)
        flat = wanted.room(name, math.prod(shape), dtype)  # numbers in the file's order
        column = flat.reshape(shape, order="F" if fortran_order else "C")
        if dtype == stored and _is_plain(member):
            return column, _fill_stored(archive, member, file.tell(), flat)
        return column, _fill(file, stored, flat)


def _is_plain(member: zipfile.ZipInfo) -> bool:
    """Whether an array's bytes are stored unpacked and can be read directly."""
    unpacked = member.compress_type == zipfile.ZIP_STORED
    return HAS_PREADV and unpacked and member.compress_size == member.file_size


def _read_through(file: IO[bytes]) -> None:
    """Read to the end, where zipfile verifies the checksum."""
    while file.read(TASK_BYTES):
        pass


def _fill(file: IO[bytes], stored: np.dtype[Any], flat: Array) -> bool:
    """Fill a vector with numbers from a file's current position.

    Returns:
        Whether all are known to be finite.
    """
    if not stored.itemsize:
        return False
    is_finite = True
    for rows in row_blocks(len(flat), stored.itemsize):
        block = flat[rows]
        with np.errstate(over="ignore"):  # becomes infinite
            block[:] = np.frombuffer(_read_exactly(file, len(block) * stored.itemsize), stored)
        is_finite &= known_finite(block)
    return is_finite


def _read_exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError("an array ends too soon")
    return data


def _fill_stored(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: int, flat: Array
) -> bool:
    """Read an unpacked member's numbers directly, without an intermediate copy.

    Args:
        archive: the open file.
        member: directory entry of a member that `archive.open` accepted.
        header: number of bytes before the numbers.
        flat: vector to fill.

    Returns:
        Whether all are known to be finite.
    """
    assert archive.fp is not None
    file = archive.fp.fileno()
    start = _data_offset(file, member)
    checksum = zlib.crc32(_bytes_at(file, start, header))
    all_finite = True
    place = Place(member.filename, start + header, flat)
    for _, block, is_finite in read_in_threads(file, [place]):
        checksum = zlib.crc32(block.data, checksum)
        all_finite &= is_finite
    if checksum != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
    return all_finite


def _data_offset(file: int, member: zipfile.ZipInfo) -> int:
    """Offset of a member's bytes: after its local header, a name and extra fields."""
    local = _bytes_at(file, member.header_offset, 30)
    name, extra = struct.unpack("<HH", local[26:30])
    return member.header_offset + len(local) + int(name) + int(extra)


def _bytes_at(file: int, offset: int, count: int) -> bytes:
    data = np.empty(count, np.uint8)
    read_at(file, offset, data)
    return data.tobytes()


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of an array, read from a file's current position.

    Raises:
        ValueError: there is no header, or one of unknown version or with an impossible shape.
    """
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"npy format version {version} is unknown")
    try:
        shape, fortran_order, dtype = read[version](file, max_header_size=_MAX_HEADER)
    except (MemoryError, RecursionError) as error:  # from the parser: nested too deep
        raise ValueError("its header cannot be parsed") from error
    if len(shape) > _MAX_DIMS or any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError("its header claims a shape that no array has")
    return shape, fortran_order, dtype
