"""Minari's Arrow storage: a folder per episode, with one or more `.arrow` files.

Each row is a step, and one more row holds the last observation: its action and reward are padding.
Files are read whole, and the sizes their buffers claim are checked before anything is unpacked.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tql_offline.datasets.episodes import Array
from tql_offline.datasets.minari import Leaf, RawEpisode
from tql_offline.datasets.reading import check_size, damage_named, is_there, machine_bytes
from tql_offline.documents import read_bounded
from tql_offline.errors import InputError, import_extra, shown

_MAX_EPISODES = 1_000_000
_MAX_PARTS = 1000
_MAGIC = b"ARROW1\0\0"
_OLDEST = 15
"""Oldest PyArrow version allowed; earlier ones could unpickle content of a file."""


def raw_episodes(data: Path, leaves: Sequence[Leaf], action_dim: int) -> Iterator[RawEpisode]:
    """The episodes of a dataset, one after the other.

    Args:
        data: the dataset's `data` folder.
        leaves: leaves of the observation space.
        action_dim: n_a.

    Raises:
        InputError: PyArrow is not installed, or a file is missing or damaged.
    """
    arrow = _arrow()
    parts = [_parts(folder) for folder in _folders(data)]
    claimed = sum(file.stat().st_size for part in parts for file in part)
    if 2 * claimed > machine_bytes():
        raise InputError(
            f"the episodes of {data} do not fit into memory; use a machine with more memory"
        )
    for number, part in enumerate(parts):
        with damage_named(part[0], "Minari file", "get the dataset again"):
            episode = _episode(arrow, part, leaves, action_dim, number)
        yield episode


def files_of(data: Path) -> list[Path]:
    """The files of a dataset in this storage."""
    files = [file for folder in _folders(data) for file in _parts(folder)]
    return [*files, data / "metadata.json"]


def _arrow() -> Any:
    lacking = "this dataset is in Arrow storage and the package pyarrow"
    arrow = import_extra("pyarrow", "minari", lacking)  # slow to import
    if int(arrow.__version__.split(".")[0]) < _OLDEST:
        raise InputError(f"pyarrow {arrow.__version__} is too old to read files safely; update it")
    return arrow


def _folders(data: Path) -> list[Path]:
    """The episodes' folders, named 0, 1, ..."""
    names = set()
    for entry in data.iterdir():
        if entry.name.isascii() and entry.name.isdecimal() and entry.is_dir():
            names.add(entry.name)
        if len(names) > _MAX_EPISODES:
            raise InputError(f"{data} holds more than {_MAX_EPISODES} episodes; split it")
    for number in range(len(names) or 1):
        if str(number) not in names:
            raise InputError(f"{data} has no episode {number}; get the dataset again")
    return [data / str(number) for number in range(len(names))]


def _parts(folder: Path) -> list[Path]:
    found = sorted(folder.glob("[!._]*.arrow"))
    if not 0 < len(found) <= _MAX_PARTS:
        raise InputError(f"{folder} has no Arrow file, or too many; get the dataset again")
    for file in found:
        if not is_there(file):
            raise InputError(f"{file} is no plain file; get the dataset again")
    return found


def _episode(
    arrow: Any, files: Sequence[Path], leaves: Sequence[Leaf], action_dim: int, number: int
) -> RawEpisode:
    batches = [batch for file in files for batch in _batches(arrow, file)]

    def joined(keys: tuple[str | int, ...], shape: tuple[int, ...] | None) -> Array:
        parts = [_numbers(arrow, _field(batch, keys), shape) for batch in batches]
        return np.concatenate(parts)

    rows = sum(batch.num_rows for batch in batches)
    if rows < 2:
        raise InputError(
            f"episode {number} of {files[0].parent} has {rows} rows where a step and the last "
            "observation need 2; leave it out"
        )
    return RawEpisode(
        observations=[
            joined(("observations", *leaf.keys), leaf.shape if leaf.kind != "Discrete" else None)
            for leaf in leaves
        ],
        actions=joined(("actions",), (action_dim,))[:-1],
        rewards=joined(("rewards",), None)[:-1],
        terminations=joined(("terminations",), None)[:-1],
    )


def _batches(arrow: Any, file: Path) -> list[Any]:
    data = read_bounded(file, max(file.stat().st_size, 1))
    if not data.startswith(_MAGIC) or not data.endswith(_MAGIC.rstrip(b"\0")):
        raise ValueError("it is cut off, or no Arrow file")
    # The stream that every Arrow file holds: what is counted here is what is read below.
    stream = arrow.py_buffer(data)[len(_MAGIC) :]
    claimed = sum(_claimed(message) for message in arrow.ipc.MessageReader.open_stream(stream))
    check_size(file, claimed)
    batches = list(arrow.ipc.open_stream(stream))
    for batch in batches:
        batch.validate(full=True)
    return batches


def _claimed(message: Any) -> int:
    """Bytes that a message's buffers unpack to: packed buffers begin with that number."""
    if message.type == "schema":
        return 0
    if message.type != "record batch":
        raise ValueError(f"it holds a {message.type}")
    body, batch = message.body, _Table.root(message.metadata.to_pybytes()).table(2)
    if batch.place(3) is None:
        return int(body.size)
    total = 0
    for offset, length in batch.pairs(2):
        if length:
            unpacked = struct.unpack("<q", body[offset : offset + 8].to_pybytes())[0]
            total += length if unpacked == -1 else unpacked
            if unpacked < -1:
                raise ValueError("a buffer claims a negative length")
    return total


@dataclass(frozen=True)
class _Table:
    """A table of a FlatBuffers document, such as one of Arrow's messages.

    Message: header is field 2. RecordBatch: buffers are field 2, compression is field 3
    (format/Message.fbs of Arrow). No number is read from outside the document.
    """

    data: bytes
    start: int

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def place(self, field: int) -> int | None:
        """Position of a field, or None if it is absent."""
        fields = self.start - self._number("<i", self.start)
        if fields < 0 or 4 + 2 * field >= self._number("<H", fields):
            return None
        offset = self._number("<H", fields + 4 + 2 * field)
        return self.start + offset if offset else None

    def table(self, field: int) -> "_Table":
        """The table that a field points at."""
        return _Table(self.data, self._pointed(field))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yield the pairs of 64-bit numbers that a field points at."""
        start = self._pointed(field)
        for index in range(self._number("<I", start)):
            place = start + 4 + 16 * index
            yield self._number("<q", place), self._number("<q", place + 8)

    def _pointed(self, field: int) -> int:
        place = self.place(field)
        if place is None:
            raise ValueError("a message lacks its header")
        return place + self._number("<I", place)

    def _number(self, kind: str, place: int) -> int:
        return int(struct.unpack_from(kind, self.data, place)[0])


def _field(batch: Any, keys: tuple[str | int, ...]) -> Any:
    """A column, or a field within a column of structures."""
    name, *inner = map(str, keys)
    if batch.schema.names.count(name) != 1:
        raise ValueError(f"it has not one column {shown(name)}")
    column = batch.column(name)
    for key in inner:
        kinds = [column.type.field(i).name for i in range(column.type.num_fields)]
        if kinds.count(key) != 1 or not hasattr(column, "flatten") or column.null_count:
            raise ValueError(f"it has not one {shown(key)} in {shown(name)}")
        column = column.flatten()[kinds.index(key)]
    return column


def _numbers(arrow: Any, column: Any, shape: tuple[int, ...] | None) -> Array:
    """A column of numbers `(rows,)`, or of lists of one length `(rows, *shape)`."""
    types = arrow.types
    if column.null_count:
        raise ValueError("numbers are missing in it")
    count = len(column)
    if shape is not None:
        fits = types.is_fixed_size_list(column.type)
        if not fits or column.type.list_size != math.prod(shape):
            raise ValueError(
                f"it holds {shown(str(column.type))} where lists of {math.prod(shape)} numbers are "
                "needed"
            )
        column = column.flatten()
        if column.null_count:
            raise ValueError("numbers are missing in it")
    kind = column.type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise ValueError(f"it holds {shown(str(kind))} where numbers are needed")
    numbers: Array = column.to_numpy(zero_copy_only=False)
    return numbers if shape is None else numbers.reshape(count, *shape)
