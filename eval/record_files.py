"""Tolerant reading of a run folder's files, whose contents are not trusted.

Anything unreadable is left out and named among the warnings; nothing here raises because of it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tql_offline.documents import MAX_DOCUMENT_BYTES, MAX_LINE_BYTES, is_whole, parse_json
from tql_offline.errors import InputError
from tql_offline.files import read_json

MAX_NUMBERS = 5 * 10**6
"""Most numbers kept of a run's curves, and of its evaluations' episodes."""

MAX_WARNINGS = 1000
MAX_SENTENCE = 500
"""Most characters kept of a warning from training."""


@dataclass
class Reading:
    """Warnings gathered while one run is read.

    Attributes:
        warnings: the sentences.
        has_left_out: whether an evaluation was left out for its episodes or its score.
        fault: why the result cannot be used, as the end of a sentence about it.
    """

    warnings: list[str] = field(default_factory=list)
    has_left_out: bool = False
    fault: str = ""

    def warn(self, text: str) -> None:
        """Add a sentence, unless there are too many."""
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(text)


def refuse_link(path: Path) -> None:
    """Refuse a link: in someone else's run it could expose any of the reader's files.

    Raises:
        InputError: the path is a link.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link; put the file itself there")


def read_document(path: Path, reading: Reading) -> dict[str, Any] | None:
    """A JSON object; None, and a warning, if there is none."""
    try:
        refuse_link(path)
        return read_json(path)
    except InputError:
        reading.warn(f"{path.name} {fault_of(path)} and was left out")
        return None


def fault_of(path: Path) -> str:
    """The reason a document could not be read, as the middle of a sentence."""
    if path.is_symlink():
        return "is a link"
    if not path.exists():
        return "is missing"
    if path.is_file() and path.stat().st_size > MAX_DOCUMENT_BYTES:
        return f"is larger than {MAX_DOCUMENT_BYTES // 2**20} MiB"
    return "is not a valid JSON object"


def read_lines(path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the readable objects of a JSON-lines file with their line numbers."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        reading.warn(f"{path.name} is not a plain file and was left out")
        return
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            yield from _parse_lines(file, path.name, reading)
    except OSError as error:
        reading.warn(f"{path.name} cannot be read ({error.strerror}) and was left out")


def _parse_lines(
    file: BinaryIO, name: str, reading: Reading
) -> Iterator[tuple[int, dict[str, Any]]]:
    line_number = 0
    while line := file.readline(MAX_LINE_BYTES):
        line_number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            reading.warn(f"{name} line {line_number} is too long; it and the rest were left out")
            return
        document = _parse_line(line)
        if document is None:
            reading.warn(f"{name} line {line_number} is not a JSON object and was left out")
        else:
            yield line_number, document


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        document = parse_json(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def number(value: Any) -> float:
    """A JSON value as a float; NaN if it is not a number or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    # Beyond 1e30 an axis is useless and matplotlib overflows; an int may exceed any float.
    return float(value) if abs(value) < 1e30 else math.nan


def count(value: Any) -> int | None:
    """A JSON value as a count; None if it is not one (floats stop being exact at 2**53)."""
    return value if is_whole(value, 0, 2**53 - 1) else None
