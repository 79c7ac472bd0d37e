"""Columns of HDF5 files, contiguous or in chunks; these are unpacked here, not by HDF5."""

import math
import zlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tql_offline.datasets.blocks import TASK_BYTES, in_threads, row_blocks
from tql_offline.datasets.episodes import Array
from tql_offline.datasets.reading import (
    COLUMNS,
    FREE_BYTES,
    HAS_PREADV,
    MAX_COLUMNS,
    Columns,
    Place,
    Wanted,
    check_names,
    check_size,
    known_finite,
    read_in_threads,
)
from tql_offline.errors import InputError, shown

_MAX_CHUNK_BYTES = 2**26
"""Most bytes of one chunk of an HDF5 file, unless its whole column is larger."""
_INDEX_BYTES = 16
"""Least that a chunk takes in the file: its offset and its length."""
_FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
_CHUNKS_PER_TASK = 32
_SCATTER_BYTES = 2**17
"""Block size for rows that span several chunks: a part of what a core's own cache holds."""


def opened_hdf5(path: Path, **options: Any) -> h5py.File:
    """Open a file to read, without a lock.

    HDF5 locks files by default, and a file system without locks refuses that: a good file could not
    be read there.

    Raises:
        OSError: it is not a sound HDF5 file, or cannot be read.
    """
    return h5py.File(path, "r", locking=False, **options)


def read_hdf5(path: Path, wanted: Wanted) -> Columns:
    """Read the columns of a file; a damaged one may raise any error, see `damage_named`.

    Raises:
        InputError: it holds something that is not a plain column, or claims more than it can hold.
    """
    with opened_hdf5(path, rdcc_nbytes=TASK_BYTES) as file:  # each dataset's chunk cache
        names = _names(path, file, wanted)
        items = {name: hdf5_item(path, file, name) for name in names}
        check_size(path, sum(map(claimed_bytes, items.values())))
        for name, item in items.items():
            check_layout(path, item, name)
        return hdf5_columns(items, wanted)


def _names(path: Path, file: h5py.File, wanted: Wanted) -> list[str]:
    """Names of the top-level items in the file itself, not behind a link.

    Raises:
        InputError: they are too many, of no layout, or one that is needed is a link.
    """
    # Only one more than allowed: a file may name millions.
    names = [str(name) for name in islice(file, MAX_COLUMNS + 1)]
    for name in names:
        if "/" in name or not name.isprintable():  # a slash would be read as a path through groups
            raise ValueError(f"{shown(name)} is no name of a column")
    links = [name for name in names if _is_link(file, name)]
    for name in links:
        if name in COLUMNS or wanted.keeps(name):
            raise InputError(
                f"{path} holds {shown(name)}, a link, which is not followed; store the column "
                "itself in its place, or leave it out"
            )
    check_names(path, names, wanted.flat)
    names = [name for name in names if name not in links]
    if wanted.flat:
        return [n for n in names if n in COLUMNS or not isinstance(file[n], h5py.Group)]
    return names


def _is_link(file: h5py.File, name: str) -> bool:
    """Whether a name is one of something elsewhere, in the file or outside."""
    return isinstance(file.get(name, getlink=True), (h5py.SoftLink, h5py.ExternalLink))


def hdf5_item(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of numbers stored in the file itself.

    Raises:
        InputError: it is a group, virtual, stored outside the file, or not of numbers.
    """
    item = file[name]
    if isinstance(item, h5py.Group):
        raise InputError(
            f"{path} holds {shown(name)}, a group{_inside(item)}, where each column must be one "
            "dataset at the top of the file; write it again with the columns there"
        )
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


def _inside(group: h5py.Group) -> str:
    names = [shown(str(name)) for name in islice(group, 4)]
    return f" of {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""


def claimed_bytes(item: h5py.Dataset) -> int:
    """Bytes that a dataset unpacks to, by its shape and type."""
    # Not `nbytes`, whose product overflows.
    return math.prod(map(int, item.shape)) * int(item.dtype.itemsize)


def check_layout(path: Path, item: h5py.Dataset, name: str) -> None:
    """Check that a dataset's chunks take no more memory or time than its rows justify.

    Raises:
        InputError: its chunks are too large or too many, or packed by an unsupported filter.
    """
    if not item.chunks:
        return
    foreign = [number for number, _ in _filters(item) if number not in _FILTERS]
    if foreign:
        # HDF5 would look for a library to load for it; and with filters other than these it trusts
        # the lengths that the file gives.
        raise InputError(
            f"{path} holds {shown(name)} packed by filter {foreign[0]}; write it again with "
            "compression='gzip', or run `h5repack -f GZIP=4`"
        )
    size = math.prod(item.chunks) * item.dtype.itemsize
    count = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
    if size > max(_MAX_CHUNK_BYTES, claimed_bytes(item)):
        raise InputError(
            f"{path} holds {shown(name)} in chunks of {size} bytes; write it again in smaller ones"
        )
    if count * _INDEX_BYTES > max(FREE_BYTES // 2**8, path.stat().st_size):
        raise InputError(
            f"{path} claims {count} chunks of {shown(name)}, more than its bytes can hold; "
            "write it again in larger ones"
        )


def _filters(item: h5py.Dataset) -> list[tuple[int, tuple[int, ...]]]:
    """Number and settings of each filter that packed a dataset's chunks, in order of use."""
    made = item.id.get_create_plist()
    found = (made.get_filter(index) for index in range(made.get_nfilters()))
    return [(number, settings) for number, _flags, settings, _name in found]


def hdf5_columns(items: dict[str, h5py.Dataset], wanted: Wanted) -> Columns:
    """Read the arrays of one file, those that are stored contiguously all at once.

    Args:
        items: the arrays by name; emptied, because a released dataset frees its chunk cache.
        wanted: which to keep, and how.

    Raises:
        ValueError: one is packed, and its type is not one of NumPy's.
    """
    file = next((item.file.id.get_vfd_handle() for item in items.values()), -1)
    columns, places = Columns(), []
    for name in list(items):
        item = items.pop(name)
        if not wanted.keeps(name):
            if item.chunks:  # which can be damaged; HDF5 itself refuses a file that is cut off
                _read_chunks(item, None)
            columns[name] = np.empty(0, item.dtype)
            continue
        dtype = wanted.dtype(name, item.dtype)
        shape = item.shape + dtype.shape  # an element has a shape if HDF5 holds arrays of arrays
        column = wanted.room(name, math.prod(shape), dtype.base).reshape(shape)
        offset = _plain_offset(item) if column.dtype == item.dtype and _is_as_stored(item) else None
        if offset is None:
            columns.add(name, column, _unpack(item, column))
        else:
            columns.add(name, column, is_finite=True)  # until a block is not
            places.append(Place(name, offset, column.reshape(-1)))
    for place, _block, is_finite in read_in_threads(file, places):
        if not is_finite:
            columns.finite.discard(place.name)
    return columns


def _is_as_stored(item: h5py.Dataset) -> bool:
    """Whether NumPy's type of a dataset is the type of its bytes in the file."""
    return bool(item.id.get_type() == h5py.h5t.py_create(item.dtype))


def _plain_offset(item: h5py.Dataset) -> int | None:
    """Offset in the file of a dataset that is stored contiguously, or None if it is not.

    It can then be read directly, as HDF5's own reading holds a lock over all threads.
    """
    whole = item.id.get_storage_size() == claimed_bytes(item)
    offset: int | None = item.id.get_offset()  # None for chunks and for rows never written
    return offset if HAS_PREADV and whole else None


def _unpack(item: h5py.Dataset, column: Array) -> bool:
    """Fill a column, and tell whether all of it is known to be finite.

    Raises:
        ValueError: it is packed, and its type is not one of NumPy's.
    """
    if item.chunks and _is_as_stored(item):
        return _read_chunks(item, column)
    if item.chunks and _filters(item):
        raise ValueError(f"{shown(item.name)} is packed and of a type of its own")
    return _read_by_hdf5(item, column)


def _read_by_hdf5(item: h5py.Dataset, column: Array) -> bool:
    """Fill a column by HDF5's own reading, and tell whether all of it is known to be finite."""
    straight = column.dtype == item.dtype and column.ndim > 0
    all_finite = True
    for rows in _blocks(item):
        if straight:
            item.read_direct(column, rows, rows)
        else:
            with np.errstate(over="ignore"):  # becomes infinite
                column[rows] = item[rows]
        all_finite &= known_finite(column[rows])
    return all_finite


def _blocks(item: h5py.Dataset) -> Sequence[Any]:
    """Selections that cover a dataset, no two of which unpack the same chunk."""
    if not item.shape:
        return [()]
    per_row = math.prod(item.shape[1:]) * item.dtype.itemsize
    chunk = item.chunks[0] if item.chunks else 1
    return row_blocks(len(item), per_row, multiple=chunk, block_bytes=TASK_BYTES)


def _read_chunks(item: h5py.Dataset, column: Array | None) -> bool:
    """Unpack a dataset's chunks, into a column if one is given.

    HDF5's own reading is not used: it allocates any size that a chunk unpacks to, and if a chunk
    unpacks to too little, it takes the memory behind it for numbers.

    Returns:
        Whether all numbers are known to be finite.

    Raises:
        ValueError: a chunk does not unpack to a chunk's size, or lies outside the dataset.
    """
    chunks: list[Any] = []
    item.id.chunk_iter(chunks.append)
    count = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
    is_finite = True
    if column is not None and len(chunks) < count:
        column[...] = item.fillvalue
        is_finite = known_finite(np.asarray(item.fillvalue, column.dtype))
    reader = _ChunkReader(item)
    # Threads speed up unpacking; mere copies would only wait for one another.
    at_once = in_threads if reader.filters else map
    for part in at_once(lambda task: reader.read(task, column), _bands(chunks, reader.size)):
        is_finite &= part
    return is_finite


def _bands(chunks: list[Any], size: int) -> list[list[Any]]:
    """Group adjacent chunks that cover the same rows, into lists of a few chunks each."""
    most = max(min(_CHUNKS_PER_TASK, TASK_BYTES // max(size, 1)), 1)
    tasks: list[list[Any]] = []
    for chunk in chunks:
        together = tasks and tasks[-1][0].chunk_offset[:1] == chunk.chunk_offset[:1]
        if not together or len(tasks[-1]) == most:
            tasks.append([])
        tasks[-1].append(chunk)
    return tasks


class _ChunkReader:
    """Reader of one dataset's chunks, each into its place."""

    def __init__(self, item: h5py.Dataset) -> None:
        self.item, self.shape, self.chunk = item, item.shape, item.chunks
        self.dtype, self.filters = item.dtype, _filters(item)
        self.size = math.prod(self.chunk) * self.dtype.itemsize

    def read(self, chunks: list[Any], column: Array | None) -> bool:
        """Read chunks (`h5py.h5d.StoreInfo`), and tell whether they are known to be finite.

        If a row spans several chunks, these are copied together, some rows at a time: otherwise
        each number of a chunk would take a cache line of its own.
        """
        parts = [self._part(chunk, column) for chunk in chunks]
        if column is None:
            return False
        rows = max(len(part) for part, _ in parts)
        with np.errstate(over="ignore"):  # becomes infinite
            for some in row_blocks(rows, column[:1].nbytes, block_bytes=_SCATTER_BYTES):
                for part, numbers in parts:
                    part[some] = numbers[some]
        # A chunk is contiguous; its part of the column may not be.
        return all(known_finite(n if n.dtype == p.dtype else p) for p, n in parts)

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
        """Undo the filters, last first, except those that the chunk's mask marks as skipped."""
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
    """Undo a shuffle: bytes of numbers from all first bytes, all second bytes, ..."""
    if not 1 < width <= len(data):
        return data
    whole = len(data) // width * width
    planes = np.frombuffer(data, np.uint8, whole).reshape(width, -1)
    return planes.T.tobytes() + data[whole:]


def _checked(data: bytes) -> bytes:
    """Bytes without the Fletcher-32 checksum behind them, which is verified.

    For 16-bit words w_1 ... w_n it is Σ w_i and Σ (n + 1 - i) w_i, both modulo 65535.
    """
    data, checksum = data[:-4], data[-4:]
    words = np.frombuffer(data + bytes(len(data) % 2), ">u2").astype(np.int64)
    weights = np.arange(len(words), 0, -1) % 65535
    sums = int(words.sum()) % 65535, int((words * weights % 65535).sum()) % 65535
    stored = int.from_bytes(checksum, "little")
    if (stored % 2**16 % 65535, stored // 2**16 % 65535) != sums:
        raise ValueError("a chunk's checksum is wrong")
    return data
