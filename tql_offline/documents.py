"""Small untrusted documents: JSON and TOML of bounded size, depth and parsing time.

A file may be a pipe that never ends, a link to a device, a table nested until the interpreter's
stack is full, or a key with so many parts that the parser takes hours. Anything that passes can be
printed, compared and traversed.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from tql_offline.errors import InputError

MAX_DOCUMENT_BYTES = 8 * 2**20
"""A larger document is not ours; JSON takes up to thirty times its length in memory."""

MAX_LINE_BYTES = 4 * 2**20
"""A longer line of a JSON-lines file is not ours."""

MAX_CONFIG_BYTES = 2**18

MAX_DEPTH = 32
"""A document nested deeper is not ours: `repr` and `json` follow it until the stack is full."""

MAX_KEYS, MAX_KEY = 2000, 200
"""Most keys of a flattened table, and characters of a key: joined, short keys become long ones."""

MAX_BITS = 64

MAX_DOTS = 256
"""Most dots in one line of TOML: `tomllib`'s time grows with the square of a key's parts."""


def require_plain(path: Path) -> None:
    """Check that a path, if it exists, is a plain file that can be read to its end.

    Raises:
        InputError: it is a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a folder, a pipe or a device; put a plain file there")


def read_bounded(path: Path, most: int) -> bytes:
    """Read the bytes of a plain file of bounded size.

    Raises:
        InputError: it is missing, a folder, a pipe or a device, cannot be read, or is larger than
            `most`.
    """
    try:
        require_plain(path)
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); check the path") from error
    if len(data) > most:
        raise InputError(f"{path} is larger than {most} bytes; it is not ours")
    return data


def is_whole(value: Any, low: float = -math.inf, high: float = math.inf) -> TypeGuard[int]:
    """Whether a value is a whole number from `low` to `high`.

    Python counts `true` as 1, but no document of ours means a number by it.

    >>> is_whole(3, 0, 9), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def parse_json(data: bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it is not JSON in UTF-8, or nested deeper than `MAX_DEPTH`.
    """
    try:
        document = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        _check_depth(document)
    return document


def parse_toml(data: bytes) -> dict[str, Any]:
    """Parse a TOML text.

    Raises:
        ValueError: it is not TOML in UTF-8, is nested deeper than `MAX_DEPTH`, or has an integer
            beyond TOML's 64 bits: `tomllib` accepts any size in hexadecimal, and Python cannot
            print some of them.
    """
    text = data.decode("utf-8-sig")  # some editors put a byte order mark in front
    _check_lines(text)
    try:
        document = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH}") from error
    _check_depth(document)
    _check_integers(document)
    return document


def _check_lines(text: str) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > MAX_DOTS:
            raise ValueError(f"line {number} has more than {MAX_DOTS} dots")


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH}")


def _check_integers(value: Any) -> None:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(f"has an integer of more than {MAX_BITS} bits")
    for child in _children(value):
        _check_integers(child)


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a document's nested tables, keys joined by dots; cut off after `MAX_KEYS`.

    >>> flatten({"critic": {"kind": "transformer", "size": "xl"}, "seed": 0})
    {'critic.kind': 'transformer', 'critic.size': 'xl', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"[:MAX_KEY]
        if len(flat) >= MAX_KEYS:
            break
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
