"""Reading flat columns from npz and HDF5 files; every value in them is taken as hostile."""

import hashlib
import math
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from tql_offline.datasets.blocks import TASK_BYTES, empty_vector, first_bad, in_threads, row_blocks
from tql_offline.datasets.episodes import Array
from tql_offline.documents import require_plain
from tql_offline.errors import InputError, shown

Floats = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)

MAX_COLUMNS = 64
MAX_BYTES = 256 * 2**30
"""More than the columns of any file may unpack to."""
HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
_NUMBER_KINDS = "biuf"
_FREE_BYTES = 2**28
_PACKING = 1100
"""Deflate, the packing of npz and HDF5, makes nothing more than 1032 times smaller."""
_PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MAX_DIMS = 32
_MAX_HEADER = 10_000
"""Bytes of an npy header, as NumPy has it."""
_MAX_CHUNK_BYTES = 2**26
"""Of one chunk of an HDF5 file, unless its whole column is larger."""
_INDEX_BYTES = 16
"""A chunk takes at least as much in the file: its place there and its length."""
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
_CHUNKS_PER_TASK = 32
_SCATTER_BYTES = 2**17
"""Of rows whose numbers come from several chunks: a part of what a core's own cache holds."""
_MAX_REASON = 200
"""Characters quoted of a library's error, which may repeat a foreign name at length."""
_FLAT_COLUMNS = ("timeouts", "next_observations")
_HAS_PREADV = hasattr(os, "preadv")  # not on Windows, where the libraries read


def read_columns(
    path: Path,
    mend: str = "write it again as docs/data.md says",
    *,
    only: Collection[str] | None = None,
    floats: Collection[str] = (),
    flat: bool = False,
) -> "Columns":
    """Read the columns of an `.npz` or HDF5 file, each straight into the memory it stays in.

    Beside the columns themselves no more than some blocks of rows are held (and one chunk of an
    HDF5 file whose chunks are larger).

    Args:
        path: the file.
        mend: what the user is told to do about a damaged file.
        only: the columns to keep. Others are read to see that they are whole, and come back with
            no rows: their names are those of the file. None keeps all.
        floats: columns that become float32 while they are read, where they are numbers. One too
            large for float32 becomes infinite.
        flat: the file is in D4RL's layout: groups at the top are left alone.

    Returns:
        Arrays that share no memory with one another, in the file's order.

    Raises:
        InputError: the file is missing, damaged, of another format or layout, too large, or holds
            anything but plain arrays.
    """
    if not _is_there(path):
        raise InputError(f"data file {path} does not exist; check the path")
    wanted = _Wanted(only, floats, flat)
    if path.suffix == ".npz":
        with _damage_named(path, "npz file", mend):
            return _read_npz(path, wanted)
    if path.suffix in HDF5_SUFFIXES:
        with _damage_named(path, "HDF5 file", mend):
            return _read_hdf5(path, wanted)
    raise InputError(f"{path} is neither .npz nor HDF5 ({', '.join(HDF5_SUFFIXES)}); convert it")


def _is_there(path: Path) -> bool:
    try:
        require_plain(path)
        return path.is_file()
    except OSError:  # a name too long, a folder that may not be entered
        return False


class Columns(dict[str, Array]):
    """What a file holds, by name.

    Attributes:
        finite: names of the columns that were seen to be finite while they were read, when every
            block of them was in the cache anyway; of others it is not known. Whoever changes a
            column takes its name out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.finite: set[str] = set()

    def add(self, name: str, column: Array, is_finite: bool) -> None:
        """Put a column in."""
        self[name] = column
        if is_finite:
            self.finite.add(name)


@dataclass
class _Wanted:
    """What is to become of a file's columns: the arguments of `read_columns`."""

    only: Collection[str] | None
    floats: Collection[str]
    flat: bool = False
    held: int = 0

    def room(self, name: str, count: int, dtype: np.dtype[Any]) -> Array:  # noqa: ARG002
        """Memory for so many numbers of a column that is kept; `name` is for what overrides it.

        Raises:
            MemoryError: with the columns before it, it is more than the machine has. To try would
                not fail: the system ends the process once the memory is filled.
        """
        self.held += count * dtype.itemsize
        if self.held > _machine_bytes():
            raise MemoryError
        return empty_vector(count, dtype)

    def keeps(self, name: str) -> bool:
        return self.only is None or name in self.only

    def dtype(self, name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
        """What a column of a stored type is kept as; bytes, which may be pictures, stay bytes."""
        convert = name in self.floats and stored.kind in _NUMBER_KINDS and stored != np.uint8
        return np.dtype(np.float32) if convert else stored


def _machine_bytes() -> int:
    """The machine's memory, where the system says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return MAX_BYTES


@contextmanager
def _damage_named(path: Path, kind: str, mend: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one sentence."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"the columns of {path} do not fit into memory; split the file, or use a machine with "
            "more memory"
        ) from error
    # What zipfile, its packers, NumPy and HDF5 raise on hostile bytes is in no document.
    except Exception as error:
        raise InputError(
            f"{path} is not a whole {kind} of plain arrays ({_first_line(error)}); {mend}"
        ) from error


def _read_npz(path: Path, wanted: _Wanted) -> Columns:
    with zipfile.ZipFile(path) as archive:
        members = _npz_members(path, archive.infolist(), wanted.flat)
        _check_size(path, sum(member.file_size for member in members.values()))
        columns = Columns()
        for name, member in members.items():
            columns.add(name, *_npz_column(archive, member, name, wanted))
        return columns


def _npz_members(
    path: Path, members: list[zipfile.ZipInfo], flat: bool = False
) -> dict[str, zipfile.ZipInfo]:
    """Members by the names of their columns.

    Raises:
        InputError: there are too many, or two of one name.
        ValueError: one is packed or named as NumPy does not.
    """
    names = [member.filename.removesuffix(".npy") for member in members]
    _check_names(path, names, flat)
    for name, member in zip(names, members, strict=True):
        if names.count(name) > 1:
            # Whichever is read, another program reads the other.
            raise InputError(f"{path} holds {shown(name)} twice; write it again with one of each")
        if member.compress_type not in _PLAIN_METHODS:
            raise ValueError(f"{shown(name)} is packed by a method that npz files do not use")
        outside = name.startswith("/") or "\\" in name or ".." in name.split("/")
        if outside or not name.isprintable():
            raise ValueError(f"{shown(name)} is no name of a column")
    return dict(zip(names, members, strict=True))


def _npz_column(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, wanted: _Wanted
) -> tuple[Array, bool]:
    """One array, and whether it was seen to be finite.

    Raises:
        ValueError: its header does not describe the bytes that follow.
    """
    with archive.open(member) as file:
        shape, fortran_order, stored = _npy_header(file)
        if stored.hasobject or stored.subdtype:
            raise ValueError(f"{member.filename!r} holds objects or arrays of arrays")
        # NumPy makes room for what the header claims before any of it is read.
        if file.tell() + math.prod(shape) * stored.itemsize != member.file_size:
            raise ValueError(f"{member.filename!r} claims shape {shape} of {stored}, but is not it")
        if not wanted.keeps(name):
            _read_through(file)
            return np.empty(0, stored), False
        dtype = wanted.dtype(name, stored)
        flat = wanted.room(name, math.prod(shape), dtype)  # one number after another as in the file
        column = flat.reshape(shape, order="F" if fortran_order else "C")
        if dtype == stored and _is_plain(member):
            return column, _fill_stored(archive, member, file.tell(), flat)
        return column, _fill(file, stored, flat)


def _is_plain(member: zipfile.ZipInfo) -> bool:
    """Whether an array's bytes lie in the file as they are."""
    unpacked = member.compress_type == zipfile.ZIP_STORED
    return _HAS_PREADV and unpacked and member.compress_size == member.file_size


def _read_through(file: IO[bytes]) -> None:
    """Read to the end, where zipfile compares the checksum."""
    while file.read(TASK_BYTES):
        pass


def _fill(file: IO[bytes], stored: np.dtype[Any], flat: Array) -> bool:
    """Read as many numbers as a vector has, from where a file stands to its end.

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
        is_finite &= _is_finite(block)
    return is_finite


def _is_finite(block: Array) -> bool:
    """Whether some numbers are known to be finite, found without room for a boolean of each."""
    if block.dtype.kind != "f" or not block.size:
        return False
    numbers = cast(Floats, block)
    return bool(np.isfinite(numbers.min()) and np.isfinite(numbers.max()))  # of NaN both are NaN


def _read_exactly(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise EOFError("an array ends too soon")
    return data


def _fill_stored(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: int, flat: Array
) -> bool:
    """Read an unpacked member's numbers where they lie, without a copy between.

    Args:
        archive: the open file.
        member: its directory entry, of a member that `archive.open` took.
        header: bytes before the numbers.
        flat: where they go.

    Returns:
        Whether all are known to be finite.
    """
    assert archive.fp is not None
    file = archive.fp.fileno()
    start = _data_offset(file, member)
    checksum = zlib.crc32(_bytes_at(file, start, header))
    all_finite = True
    for block, is_finite in _read_in_threads(file, start + header, flat):
        checksum = zlib.crc32(block.data, checksum)
        all_finite &= is_finite
    if checksum != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")
    return all_finite


def _data_offset(file: int, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, a name and extra fields."""
    local = _bytes_at(file, member.header_offset, 30)
    name, extra = struct.unpack("<HH", local[26:30])
    return member.header_offset + len(local) + int(name) + int(extra)


def _bytes_at(file: int, offset: int, count: int) -> bytes:
    data = np.empty(count, np.uint8)
    _read_at(file, offset, data)
    return data.tobytes()


def _read_in_threads(
    file: int, offset: int, flat: Array
) -> Iterator[tuple[NDArray[np.uint8], bool]]:
    """Fill a vector from one place in a file.

    Returns:
        Of each block, in order: its bytes, and whether its numbers are known to be finite.
    """
    size = flat.itemsize

    def read(task: slice) -> tuple[NDArray[np.uint8], bool]:
        part, is_finite = flat[task], True
        data = part.view(np.uint8)
        for rows in row_blocks(len(part), size):
            place = slice(rows.start * size, rows.stop * size)
            _read_at(file, offset + task.start * size + place.start, data[place])
            is_finite &= _is_finite(part[rows])
        return data, is_finite

    tasks = row_blocks(len(flat), size, block_bytes=TASK_BYTES) if size else []
    yield from in_threads(read, tasks)


def _read_at(file: int, offset: int, data: NDArray[np.uint8]) -> None:
    done = 0
    while done < len(data):
        # Unlike seek and read it may be called by several threads.
        count = os.preadv(file, [data[done:].data], offset + done)
        if not count:
            raise EOFError("an array ends too soon")
        done += count


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in read:
        raise ValueError(f"npy format version {version} is unknown")
    try:
        shape, fortran_order, dtype = read[version](file, max_header_size=_MAX_HEADER)
    except (MemoryError, RecursionError) as error:  # of the parser: it is nested too deep
        raise ValueError("its header cannot be parsed") from error
    if len(shape) > _MAX_DIMS or any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError("its header claims a shape that no array has")
    return shape, fortran_order, dtype


def _read_hdf5(path: Path, wanted: _Wanted) -> Columns:
    with h5py.File(path, "r", rdcc_nbytes=TASK_BYTES) as file:  # each dataset's chunk cache
        names = _hdf5_names(path, file, wanted.flat)
        items = {name: _hdf5_item(path, file, name) for name in names}
        _check_size(path, sum(map(_claimed, items.values())))
        for name, item in items.items():
            _check_layout(path, item, name)
        columns = Columns()
        for name in names:  # a dataset that nobody has any more has no chunk cache
            columns.add(name, *_hdf5_column(items.pop(name), name, wanted))
        return columns


def _hdf5_names(path: Path, file: h5py.File, flat: bool) -> list[str]:
    """Names of what lies at the top of a file itself, not behind a link."""
    # One more than are taken: a file may name millions.
    names = [str(name) for name in islice(file, MAX_COLUMNS + 1)]
    for name in names:
        if "/" in name or not name.isprintable():  # would be taken for a way through other groups
            raise ValueError(f"{shown(name)} is no name of a column")
    links = (h5py.SoftLink, h5py.ExternalLink)
    names = [name for name in names if not isinstance(file.get(name, getlink=True), links)]
    _check_names(path, names, flat)
    if flat:
        return [name for name in names if not isinstance(file[name], h5py.Group)]
    return names


def _claimed(item: h5py.Dataset) -> int:
    # Not `nbytes`, whose product overflows.
    return math.prod(map(int, item.shape)) * int(item.dtype.itemsize)


def _check_layout(path: Path, item: h5py.Dataset, name: str) -> None:
    """See that a dataset's chunks take no more memory or time than its rows are worth.

    Raises:
        InputError: its chunks are too large or too many, or packed by a filter that is not ours.
    """
    if not item.chunks:
        return
    foreign = [number for number, _ in _filters(item) if number not in _FILTERS]
    if foreign:
        # HDF5 would look for it as a library to load; and of others than these it believes the
        # lengths that the file gives.
        raise InputError(
            f"{path} holds {shown(name)} packed by filter {foreign[0]}; write it again with "
            "compression='gzip', or run `h5repack -f GZIP=4`"
        )
    size = math.prod(item.chunks) * item.dtype.itemsize
    count = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
    if size > max(_MAX_CHUNK_BYTES, _claimed(item)):
        raise InputError(
            f"{path} holds {shown(name)} in chunks of {size} bytes; write it again in smaller ones"
        )
    if count * _INDEX_BYTES > max(_FREE_BYTES // 2**8, path.stat().st_size):
        raise InputError(
            f"{path} claims {count} chunks of {shown(name)}, more than its bytes can hold; "
            "write it again in larger ones"
        )


def _filters(item: h5py.Dataset) -> list[tuple[int, tuple[int, ...]]]:
    """Number and settings of each filter that packed a dataset's chunks, in that order."""
    made = item.id.get_create_plist()
    found = (made.get_filter(index) for index in range(made.get_nfilters()))
    return [(number, settings) for number, _flags, settings, _name in found]


def _hdf5_column(item: h5py.Dataset, name: str, wanted: _Wanted) -> tuple[Array, bool]:
    """One array, and whether it was seen to be finite.

    Raises:
        ValueError: it is packed, and of a type that NumPy's numbers are not.
    """
    as_stored = item.id.get_type() == h5py.h5t.py_create(item.dtype)
    if not wanted.keeps(name):
        if item.chunks:
            _read_chunks(item, None)
        else:
            for rows in _hdf5_blocks(item):
                item[rows]
        return np.empty(0, item.dtype), False
    dtype = wanted.dtype(name, item.dtype)
    shape = item.shape + dtype.shape  # a number's own shape, where HDF5 holds arrays of arrays
    column = wanted.room(name, math.prod(shape), dtype.base).reshape(shape)
    if item.chunks and (as_stored or _filters(item)):
        if not as_stored:
            raise ValueError(f"{name!r} is packed and of a type of its own")
        return column, _read_chunks(item, column)
    offset = _plain_offset(item) if as_stored and column.dtype == item.dtype else None
    if offset is None:
        return column, _unpack(item, column)
    blocks = _read_in_threads(item.file.id.get_vfd_handle(), offset, column.reshape(-1))
    all_finite = True
    for _block, is_finite in blocks:
        all_finite &= is_finite
    return column, all_finite


def _read_chunks(item: h5py.Dataset, column: Array | None) -> bool:
    """Unpack a dataset's chunks, into a column if it is given.

    Not by HDF5's own reading: it makes room for whatever a chunk unpacks to, and of a chunk that
    unpacks to too little it takes the memory behind it for numbers.

    Returns:
        Whether all numbers are known to be finite.

    Raises:
        ValueError: a chunk does not unpack to what a chunk is, or lies outside the dataset.
    """
    chunks: list[Any] = []
    item.id.chunk_iter(chunks.append)
    count = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
    is_finite = True
    if column is not None and len(chunks) < count:
        column[...] = item.fillvalue
        is_finite = _is_finite(np.asarray(item.fillvalue, column.dtype))
    reader = _ChunkReader(item)
    # What threads share is unpacking; copies alone would only wait for one another.
    at_once = in_threads if reader.filters else map
    for part in at_once(lambda task: reader.read(task, column), _bands(chunks, reader.size)):
        is_finite &= part
    return is_finite


def _bands(chunks: list[Any], size: int) -> list[list[Any]]:
    """Chunks by the rows they have, which HDF5 names one after another; few in each list."""
    most = max(min(_CHUNKS_PER_TASK, TASK_BYTES // max(size, 1)), 1)
    tasks: list[list[Any]] = []
    for chunk in chunks:
        together = tasks and tasks[-1][0].chunk_offset[:1] == chunk.chunk_offset[:1]
        if not together or len(tasks[-1]) == most:
            tasks.append([])
        tasks[-1].append(chunk)
    return tasks


class _ChunkReader:
    """Reads one dataset's chunks, each into its place."""

    def __init__(self, item: h5py.Dataset) -> None:
        self.item, self.shape, self.chunk = item, item.shape, item.chunks
        self.dtype, self.filters = item.dtype, _filters(item)
        self.size = math.prod(self.chunk) * self.dtype.itemsize

    def read(self, chunks: list[Any], column: Array | None) -> bool:
        """Read chunks (`h5py.h5d.StoreInfo`); whether their numbers are known to be finite.

        Where a row's numbers lie in several chunks they go to its place together, some rows at a
        time: else each number of a chunk would take a line of the cache for itself.
        """
        parts = [self._part(chunk, column) for chunk in chunks]
        if column is None:
            return False
        rows = max(len(part) for part, _ in parts)
        with np.errstate(over="ignore"):  # becomes infinite
            for some in row_blocks(rows, column[:1].nbytes, block_bytes=_SCATTER_BYTES):
                for part, numbers in parts:
                    part[some] = numbers[some]
        # A chunk lies together, its part of the column perhaps not.
        return all(_is_finite(n if n.dtype == p.dtype else p) for p, n in parts)

    def _part(self, chunk: Any, column: Array | None) -> tuple[Array, Array]:
        """A chunk's place in a column, and its numbers."""
        begins = list(zip(chunk.chunk_offset, self.shape, self.chunk, strict=True))
        if chunk.size > 2 * self.size + 2**10 or any(b % c or b >= n for b, n, c in begins):
            raise ValueError("a chunk is too large or out of place")
        skipped, packed = self.item.id.read_direct_chunk(chunk.chunk_offset)
        data = self.unpacked(packed, skipped)
        if len(data) != self.size:
            raise ValueError(f"a chunk unpacks to {len(data)} bytes instead of {self.size}")
        whole = np.frombuffer(data, self.dtype.base).reshape(*self.chunk, *self.dtype.shape)
        inside = whole[tuple(slice(min(c, n - b)) for b, n, c in begins)]
        if column is None:
            return inside, inside
        return column[tuple(slice(b, b + c) for b, _, c in begins)], inside

    def unpacked(self, data: bytes, skipped: int) -> bytes:
        """Undo the filters, last first, but for those that the chunk's mask says were skipped."""
        for index, (number, settings) in reversed(list(enumerate(self.filters))):
            if skipped >> index & 1:
                continue
            if number == h5py.h5z.FILTER_DEFLATE:
                data = _inflated(data, self.size + 4)  # with a checksum
            elif number == h5py.h5z.FILTER_SHUFFLE:
                data = _unshuffled(data, settings[0])
            else:
                data = _checked(data)
        return data


def _inflated(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(data, most)
    if not stream.eof:
        raise ValueError("a chunk is cut off, or unpacks to more than a chunk is")
    return inflated


def _unshuffled(data: bytes, width: int) -> bytes:
    """Bytes of numbers from all first bytes, all second bytes, ..."""
    if not 1 < width <= len(data):
        return data
    whole = len(data) // width * width
    planes = np.frombuffer(data, np.uint8, whole).reshape(width, -1)
    return planes.T.tobytes() + data[whole:]


def _checked(data: bytes) -> bytes:
    """Bytes without the Fletcher-32 behind them, which is compared.

    Of 16-bit words w_1 ... w_n: Σ w_i and Σ (n + 1 - i) w_i, both modulo 65535.
    """
    data, checksum = data[:-4], data[-4:]
    words = np.frombuffer(data + bytes(len(data) % 2), ">u2").astype(np.int64)
    weights = np.arange(len(words), 0, -1) % 65535
    sums = int(words.sum()) % 65535, int((words * weights % 65535).sum()) % 65535
    stored = int.from_bytes(checksum, "little")
    if (stored % 2**16 % 65535, stored // 2**16 % 65535) != sums:
        raise ValueError("a chunk's checksum is wrong")
    return data


def _unpack(item: h5py.Dataset, column: Array) -> bool:
    """Fill a column by HDF5's own reading; whether all of it is known to be finite."""
    straight = column.dtype == item.dtype and column.ndim > 0
    all_finite = True
    for rows in _hdf5_blocks(item):
        if straight:
            item.read_direct(column, rows, rows)
        else:
            with np.errstate(over="ignore"):  # becomes infinite
                column[rows] = item[rows]
        all_finite &= _is_finite(column[rows])
    return all_finite


def _hdf5_blocks(item: h5py.Dataset) -> Sequence[Any]:
    """Selections that cover a dataset, none of which unpacks a chunk that another does."""
    if not item.shape:
        return [()]
    per_row = math.prod(item.shape[1:]) * item.dtype.itemsize
    chunk = item.chunks[0] if item.chunks else 1
    return row_blocks(len(item), per_row, multiple=chunk, block_bytes=TASK_BYTES)


def _plain_offset(item: h5py.Dataset) -> int | None:
    """Where a dataset of numbers like NumPy's lies in the file one by one, if it does.

    HDF5's own reading holds a lock over all threads.
    """
    whole = item.id.get_storage_size() == _claimed(item)
    offset: int | None = item.id.get_offset()  # None of chunks and of rows never written
    return offset if _HAS_PREADV and whole else None


def _hdf5_item(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        raise InputError(
            f"{path} holds {shown(name)}, which is not a plain array of its own; "
            "store each column as one dataset at the top of the file"
        )
    if item.shape is None or item.dtype.hasobject:
        raise InputError(
            f"{path} holds {shown(name)}, which is not an array of numbers; leave that column out"
        )
    return item


def is_flat(path: Path) -> bool:
    """Whether a file is of D4RL's layout, by the names of its columns; not if it has no names."""
    try:
        if not _is_there(path):
            return False
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return any(f"{name}.npy" in archive.NameToInfo for name in _FLAT_COLUMNS)
        with h5py.File(path, "r") as file:
            return any(name in file for name in _FLAT_COLUMNS)
    except Exception:  # whatever it is, reading names it
        return False


def _check_names(path: Path, names: list[str], flat: bool) -> None:
    if len(names) > MAX_COLUMNS:
        raise InputError(f"{path} holds more than {MAX_COLUMNS} columns; split it")
    for foreign in () if flat else _FLAT_COLUMNS:
        if foreign in names:
            raise InputError(
                f"{path} has a column {foreign!r}, which is D4RL's layout; write it in the layout "
                "of docs/data.md, where 'terminals' marks each episode's last row, which holds the "
                "last observation"
            )


def _check_size(path: Path, claimed: int) -> None:
    size = path.stat().st_size
    if claimed > MAX_BYTES:
        raise InputError(
            f"{path} claims {claimed} bytes of columns, more than {MAX_BYTES}; split it"
        )
    if claimed > max(_FREE_BYTES, _PACKING * size):
        raise InputError(
            f"{path} claims {claimed} bytes of columns, more than its {size} bytes can hold; "
            "write it again with every row of every column"
        )


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."


def require_matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Floats:
    """A column as float32 `(rows, width)`.

    Raises:
        InputError: it is missing, not numeric, not finite, not two-dimensional, or of other length.
    """
    column = _matrix(columns, name, rows, path)
    return _finite(_as_float32(column), name, columns, path)


def require_states(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Array:
    """A column `(rows, width)` in the type it was stored in, which its meaning depends on.

    Raises:
        InputError: as `require_matrix`.
    """
    return _finite(_matrix(columns, name, rows, path), name, columns, path)


def _matrix(columns: Mapping[str, Array], name: str, rows: int | None, path: Path) -> Array:
    column = _require(columns, name, path)
    if column.ndim != 2 or column.shape[1] == 0:
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where (rows, dims) is needed; "
            "write one row per step"
        )
    _check_rows(column, name, rows, path)
    return column


def require_vector(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Floats:
    """A column as float32 `(rows,)`.

    Raises:
        InputError: it is missing, not numeric, not one number a row, or of other length.
    """
    column = _vector(columns, name, rows, path)
    return _finite(_as_float32(column), name, columns, path)


def _vector(columns: Mapping[str, Array], name: str, rows: int, path: Path) -> Array:
    column = _require(columns, name, path)
    if column.size != len(column):
        raise InputError(
            f"column {name!r} of {path} has shape {column.shape} where one number per row is "
            "needed; write one number per step"
        )
    _check_rows(column, name, rows, path)
    return column.reshape(-1)


def require_marks(
    columns: Mapping[str, Array], name: str, rows: int, path: Path
) -> NDArray[np.bool_]:
    """Where a column, as float32, is not 0, `(rows,)`.

    Raises:
        InputError: as `require_vector`.
    """
    column = _vector(columns, name, rows, path)
    if column.dtype.kind == "f":
        column = require_vector(columns, name, rows, path)
    return cast(NDArray[np.bool_], column != 0)


def _require(columns: Mapping[str, Array], name: str, path: Path) -> Array:
    if name not in columns:
        raise InputError(
            f"{path} has no column {name!r} (it has: {', '.join(columns) or 'none'}); "
            "name the columns as docs/data.md does"
        )
    column = columns[name]
    if column.dtype.kind not in _NUMBER_KINDS or column.ndim == 0:
        raise InputError(
            f"column {name!r} of {path} holds {column.dtype} of shape {column.shape} where rows of "
            "numbers are needed; write one row per step"
        )
    return column


def _check_rows(column: Array, name: str, rows: int | None, path: Path) -> None:
    if rows is not None and len(column) != rows:
        raise InputError(
            f"column {name!r} of {path} has {len(column)} rows where 'observations' has {rows}; "
            "write every column with one row per step"
        )


def _as_float32(column: Array) -> Floats:
    # A number that float32 cannot hold becomes infinite, which `_finite` names.
    with np.errstate(over="ignore"):
        return column.astype(np.float32, copy=False)


def _finite(
    column: NDArray[Number], name: str, columns: Mapping[str, Array], path: Path
) -> NDArray[Number]:
    was_seen = isinstance(columns, Columns) and name in columns.finite
    if was_seen and column.dtype == columns[name].dtype:
        return column
    bad = first_bad(column, lambda block: ~np.isfinite(block))
    if bad is not None:
        raise InputError(
            f"column {name!r} of {path} is not finite at row {bad[0]}; remove that episode"
        )
    return column


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
