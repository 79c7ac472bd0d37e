"""Writing files so that no reader ever sees half of one, and reading JSON that may be hostile.

A file is written under another name and renamed into place; what a killed process left behind is
recognised by its name (`remove_parts`; conversions and videos have names of their own).
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tql_offline.documents import (
    MAX_DOCUMENT_BYTES,
    MAX_LINE_BYTES,
    parse_json,
    read_bounded,
    require_plain,
)
from tql_offline.errors import InputError

MAX_LINES_BYTES = 2**30
"""A larger JSON-lines file is not ours: a run of a million lines takes less than half of it."""

_TEXT: Any = {"encoding": "utf-8", "newline": "\n"}
"""How text is written: to the same bytes on every system."""


@contextmanager
def writing(path: Path, what: str = "") -> Iterator[None]:
    """Turn the system's refusal to write a file into a one-sentence error.

    Args:
        path: the file.
        what: what to call it, instead of its name.

    Raises:
        InputError: the block raised OSError: no space, no permission, no folder.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{what or path.name} cannot be written to {path.parent} ({error.strerror or error}); "
            "make room and give permission there, or choose another folder"
        ) from error


def require_writable(folder: Path) -> None:
    """Check that files can be written to a folder, before work whose result would be lost.

    Raises:
        InputError: they cannot.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"nothing can be written to {folder}, where the result would go; give permission "
            "there, or copy the folder to another place"
        )


def nearest_existing(path: Path) -> Path:
    """A path if it exists, or else the nearest folder above it that does."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def part_of(path: Path) -> Path:
    """The temporary path of a file or folder; `remove_parts` finds what a killed process left."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_atomic(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so no reader sees a part of it.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside, aside.open("w", **_TEXT) as file:
            file.write(text)
            flush(file)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A temporary path to write to; if the block succeeds, the file is renamed into place.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = part_of(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def flush(file: IO[Any]) -> None:
    """Flush a file's contents to disk.

    Raises:
        OSError: it cannot.
    """
    file.flush()
    os.fsync(file.fileno())


def flush_closed(path: Path) -> None:
    """Flush the contents of a file that a library wrote to disk.

    Raises:
        OSError: it cannot.
    """
    with path.open("r+b") as file:  # Windows refuses it of a file open for reading alone
        flush(file)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder: `.<name>.part`.

    What it had moved away to make room, `.<name>.<process>.old`, is moved back unless something
    took its place.

    Raises:
        InputError: it cannot be removed.
    """
    with writing(folder):
        for part in sorted(folder.glob(".*.part")):
            remove(part)
        for old in sorted(folder.glob(".*.old")):
            target = folder / old.name[1:].rsplit(".", 2)[0]
            if target.exists():
                remove(old)
            else:
                old.rename(target)


def remove(path: Path) -> None:
    """Remove a folder with its contents, or a file or link, if it exists.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard_folder(path: Path) -> None:
    """Remove a folder, renaming it first: half a folder would be mistaken for another one.

    Raises:
        OSError: it cannot be removed.
    """
    aside = part_of(path)
    path.rename(aside)
    remove(aside)


def put_folder(aside: Path, target: Path) -> None:
    """Rename a complete folder into place, and only then delete what was there before.

    Raises:
        OSError: it cannot be renamed; what was there before is kept.
    """
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        if target.exists():
            target.rename(old)
        aside.rename(target)
    finally:
        if old.exists() and target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():  # stopped between the two
            old.rename(target)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON document atomically.

    Raises:
        InputError: it cannot be written, or holds what JSON cannot, such as NaN.
    """
    try:
        text = json.dumps(document, indent=2, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} would hold what JSON cannot ({error}); restore the files it is made of"
        ) from error
    write_atomic(path, text + "\n")


def append_jsonl(path: Path, document: dict[str, Any]) -> None:
    """Append one line to a JSON-lines file.

    Raises:
        InputError: it cannot be written.
    """
    with writing(path), os.fdopen(_open_to_append(path), "a", **_TEXT) as file:
        file.write(json.dumps(document) + "\n")


def _open_to_append(path: Path) -> int:
    # Through a link, another file would grow; on Windows, making links needs a privilege.
    no_link = getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | no_link, 0o666)


def rewind_jsonl(path: Path, step: int) -> None:
    """Keep a JSON-lines file's objects up to a step; a truncated last line is dropped.

    Raises:
        InputError: it cannot be read or written, or a line is not an object with a step.
    """
    if not path.is_file():
        return
    *lines, cut = read_bounded(path, MAX_LINES_BYTES).split(b"\n")
    del cut  # empty, or what a kill left of a line
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if int(parse_json(line)["step"]) <= step:
                kept.append(line.decode("utf-8") + "\n")
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{path} line {number} has no step; remove it") from error
    write_atomic(path, "".join(kept))


def read_json(path: Path, most: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `most` bytes.

    Raises:
        InputError: the file is missing, too large, not JSON, or not an object.
    """
    data = read_bounded(path, most)
    try:
        document = parse_json(data)
    except ValueError as error:
        raise InputError(
            f"{path} is not valid JSON; restore it from the run that wrote it"
        ) from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object; restore it from the run that wrote it")
    return document


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a JSON-lines file's objects; a missing file has none.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object (named by its number).
    """
    for number, line in enumerate(_lines(path), start=1):
        try:
            document = parse_json(line)
        except ValueError as error:
            raise InputError(f"{path} line {number} is not valid JSON; remove it") from error
        if not isinstance(document, dict):
            raise InputError(f"{path} line {number} is not a JSON object; remove it")
        yield document


def _lines(path: Path) -> Iterator[bytes]:
    left = MAX_LINES_BYTES
    try:
        require_plain(path)
        if not path.exists():
            return
        with path.open("rb") as file:
            # A longer line comes in pieces, which are not JSON.
            while line := file.readline(MAX_LINE_BYTES):
                left -= len(line)
                if left < 0:
                    raise InputError(
                        f"{path} is larger than {MAX_LINES_BYTES} bytes; it is not ours"
                    )
                yield line
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error
