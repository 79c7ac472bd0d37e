"""The run folder: the contract between `train`, `eval` and `report`.

    runs/<name>/
      config.toml           everything needed to repeat the run
      provenance.json       versions, device, git commit, dataset name and sha256, success timing
      metrics.jsonl         one line per log step: losses, Q, entropies; no wall clock: it repeats
      timing.jsonl          one line per log step: seconds and updates/s
      warnings.jsonl        one line per thing that went wrong (training/watch.py), if any did
      evaluations.jsonl     one line per evaluation: every episode's return, length, success, seed
      ope.jsonl             one line per estimate from data alone, where `eval --ope` was run
      checkpoints/<step>/   *.safetensors and state.json
      inspect/              attention maps, entropies and Q landscapes, where `inspect` was run
      videos/               best, median and worst episode, where `eval --video` was run
      .lock                 held while a process trains here
      result.json           the finished run in one versioned document (docs/result-schema.md)

Nothing in it is ever unpickled. Files are written aside and renamed, so a reader never sees half.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tql_offline.documents import (
    MAX_DOCUMENT_BYTES,
    MAX_LINE_BYTES,
    parse_json,
    read_bounded,
    require_plain,
)
from tql_offline.errors import InputError

RESULT_SCHEMA = "tql-offline/result/1"
MAX_LINES_BYTES = 2**30
"""A larger JSON-lines file is not ours: a run of a million lines has less than half of it."""


@dataclass(frozen=True)
class RunFolder:
    """Names of the files inside one run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """`config.toml`."""
        return self.path / "config.toml"

    @property
    def provenance(self) -> Path:
        """`provenance.json`."""
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        """`metrics.jsonl`."""
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        """`timing.jsonl`."""
        return self.path / "timing.jsonl"

    @property
    def warnings(self) -> Path:
        """`warnings.jsonl`."""
        return self.path / "warnings.jsonl"

    @property
    def evaluations(self) -> Path:
        """`evaluations.jsonl`."""
        return self.path / "evaluations.jsonl"

    @property
    def off_policy(self) -> Path:
        """`ope.jsonl`."""
        return self.path / "ope.jsonl"

    @property
    def checkpoints(self) -> Path:
        """`checkpoints/`, one folder per step."""
        return self.path / "checkpoints"

    @property
    def result(self) -> Path:
        """`result.json`."""
        return self.path / "result.json"

    @property
    def inspection(self) -> Path:
        """`inspect/`, what `inspect` found."""
        return self.path / "inspect"

    @property
    def videos(self) -> Path:
        """`videos/`, episodes played again."""
        return self.path / "videos"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        names = (p.name for p in self.checkpoints.iterdir() if (p / "state.json").is_file())
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def refuse_links(self) -> None:
        """See that the run's files are its own: through a link a command would write elsewhere.

        Raises:
            InputError: one of them is a symbolic link, a pipe or a device.
        """
        steps = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        for path in (*self.path.iterdir(), *steps):
            if not path.is_dir():
                require_plain(path)
            if path.is_symlink():
                raise InputError(
                    f"{path} is a link, through which other files would be written; put the file "
                    "itself there, or link the whole run folder"
                )


def find_runs(paths: list[Path]) -> list[RunFolder]:
    """Run folders at or below the given paths, sorted by path.

    Raises:
        InputError: a path does not exist, or no run lies below any of them.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give a run folder or a folder of runs")
        below = (p for p in _below(path) if p.is_dir() and not p.name.startswith("."))
        candidates = [path, *below] if path.is_dir() else []
        found.update(p for p in candidates if RunFolder(p).config.is_file())
    if not found:
        names = ", ".join(str(p) for p in paths)
        raise InputError(f"no run folder (one with a config.toml) lies in {names}")
    return [RunFolder(p) for p in sorted(found)]


def find_results(paths: list[Path]) -> list[Path]:
    """Result files given, and at or below given folders those named like `result.json`, sorted.

    A name may say whose they are: `alice-result.json` is found, `provenance.json` is not.

    Raises:
        InputError: a path does not exist, or no result lies below it.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give a result.json or a folder of such files")
        here = [path] if path.is_file() else [*filter(_is_result, _below(path))]
        if not here:
            raise InputError(f"no file named like result.json lies in {path}")
        found.update(here)
    return sorted(found)


def _is_result(path: Path) -> bool:
    # A link in a folder of someone else's may name any file of the reader's.
    return path.name.endswith("result.json") and path.is_file() and not path.is_symlink()


def _below(path: Path) -> Iterator[Path]:
    """Everything below a folder, in no order; no link is entered, nor what may not be read."""
    waiting = [path]
    while waiting:
        with suppress(OSError):
            for entry in waiting.pop().iterdir():
                yield entry
                if entry.is_dir() and not entry.is_symlink():
                    waiting.append(entry)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write a file into a sentence.

    Raises:
        InputError: the block raised OSError: no space, no permission, no folder.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path.name} cannot be written to {path.parent} ({error.strerror or error}); "
            "make room and give permission there, or choose another folder"
        ) from error


def part_of(path: Path) -> Path:
    """Where this process writes a file or folder aside; `remove_parts` finds what a kill left."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_atomic(path: Path, text: str) -> None:
    """Write a text file aside and rename it into place, so that no reader sees a part of it.

    Raises:
        InputError: it cannot be written.
    """
    aside = part_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what a process that was killed had written aside in a folder: `.<name>.part`.

    What it had moved away to make room, `.<name>.<process>.old`, goes back where nothing took its
    place.

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
    """Remove a folder with all that is in it, or a file or a link, if it is there.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_folder(aside: Path, target: Path) -> None:
    """Rename a whole folder to its place; what was there goes once it is there.

    Raises:
        OSError: it cannot be renamed; what was there is there still.
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
    with writing(path), os.fdopen(_open_to_append(path), "a", encoding="utf-8") as file:
        file.write(json.dumps(document) + "\n")


def _open_to_append(path: Path) -> int:
    # A link would have another file grow; Windows needs a privilege to make one.
    no_link = getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | no_link, 0o666)


def rewind_jsonl(path: Path, step: int) -> None:
    """Keep a JSON-lines file's objects up to a step; a last line that was cut off goes, too.

    Raises:
        InputError: it cannot be read or written, or a line within is no object with a step.
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


@contextmanager
def claimed(folder: RunFolder) -> Iterator[None]:
    """Keep other processes from training in a run folder.

    Raises:
        InputError: another one does.
    """
    lock = FileLock(folder.path / ".lock", timeout=0)
    with writing(folder.path / ".lock"):
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(
                f"another process is training run {folder.path}; wait for its end"
            ) from error
    try:
        yield
    finally:
        lock.release()


def read_json(path: Path, most: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most so many bytes.

    Raises:
        InputError: the file is missing, too large, no JSON, or not an object.
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
            # A longer line comes in pieces, which are no JSON.
            while line := file.readline(MAX_LINE_BYTES):
                left -= len(line)
                if left < 0:
                    raise InputError(
                        f"{path} is larger than {MAX_LINES_BYTES} bytes; it is not ours"
                    )
                yield line
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path") from error
