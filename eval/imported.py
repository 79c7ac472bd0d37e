"""Scores from elsewhere, read from a user's own files (`report --scores`).

Nothing is known of their protocol, data and seeds, so they stand beside a board's columns and enter
nothing that compares columns.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tql_offline.datasets.names import with_task
from tql_offline.documents import read_bounded
from tql_offline.errors import InputError, did_you_mean, listed, shown
from tql_offline.eval.leaderboard import Board, TaskScore, score_of_seeds
from tql_offline.eval.rows import MAX_NAMED

REQUIRED = ("method", "task", "seed", "score")
COLUMNS = (*REQUIRED, "source")
MAX_BYTES = 2**20
"""Most bytes of a file: some ten thousand scores."""
MAX_METHODS = 50
"""Most methods of all files, each a column of the page."""
_MAX_CHARACTERS = {"method": 60, "task": 200, "source": 200}
_MAX_SOURCES = 3
_MOST = 1e30
"""A greater score cannot be drawn sensibly."""
_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})(e[+-]?\d{1,3})?", re.ASCII | re.I)
_SEED = re.compile(r"\d{1,15}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ImportedScore:
    """One line of a file.

    Attributes:
        task: named as a board's row is, OGBench's default task by its number.
        seed: None for a score that is all there is of a method on a task.
        source: where it is from, by the file; empty if that does not say.
        file: the file as the user named it.
        line: number of its line in the file.
    """

    method: str
    task: str
    seed: int | None
    score: float
    source: str
    file: Path
    line: int

    def __str__(self) -> str:
        """Its place, for messages."""
        return f"{self.file} line {self.line}"


def read_scores(files: Iterable[Path]) -> tuple[ImportedScore, ...]:
    """Read files of scores, each a CSV file with the columns of `REQUIRED` and perhaps `source`.

    Raises:
        InputError: a file cannot be read or used, two lines are of one method, task and seed, or
            there are too many methods; the message names the file and the line.
    """
    scores = tuple(score for file in files for score in _read(file))
    _check_seeds(scores)
    methods = {score.method for score in scores}
    if len(methods) > MAX_METHODS:
        raise InputError(
            f"the files of scores have {len(methods)} methods where a page shows {MAX_METHODS}; "
            "leave some out"
        )
    return scores


def _read(file: Path) -> Iterator[ImportedScore]:
    try:
        text = read_bounded(file, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    number = 0
    try:
        for row in rows:
            fields, place = [field.strip() for field in row], f"{file} line {rows.line_num}"
            if not any(fields):
                continue
            if not header:
                header = _header(fields, place)
                continue
            number += 1
            yield _score(fields, header, file, rows.line_num)
    except csv.Error as error:
        raise InputError(f"{file} line {rows.line_num} is not CSV ({error}); mend it") from error
    if not number:
        raise InputError(
            f"{file} has no scores; write the line {','.join(COLUMNS)} and below it one line for "
            "each score"
        )


def _header(fields: Sequence[str], place: str) -> list[str]:
    names = [name.lower() for name in fields]
    are_known = len(set(names)) == len(names) and set(REQUIRED) <= set(names) <= set(COLUMNS)
    if not are_known:
        raise InputError(
            f"{place} is {shown(','.join(fields))} where the header is {','.join(REQUIRED)}, and "
            "perhaps source; name the columns so"
        )
    return names


def _score(fields: Sequence[str], header: Sequence[str], file: Path, line: int) -> ImportedScore:
    place = f"{file} line {line}"
    if len(fields) != len(header):
        raise InputError(
            f"{place} has {len(fields)} fields where the header has {len(header)}; quote a field "
            "that has a comma"
        )
    row = dict(zip(header, fields, strict=True))
    for name, most in _MAX_CHARACTERS.items():
        _check_text(row.get(name, ""), name, most, place)
    if row["seed"] and not _SEED.fullmatch(row["seed"]):
        raise InputError(
            f"{place} has the seed {shown(row['seed'])}; write a whole number of at most 15 digits"
        )
    if not _NUMBER.fullmatch(row["score"]) or not abs(float(row["score"])) < _MOST:
        raise InputError(
            f"{place} has the score {shown(row['score'])}; write a finite number below {_MOST:g}"
        )
    return ImportedScore(
        method=row["method"],
        task=with_task(row["task"]),
        seed=int(row["seed"]) if row["seed"] else None,
        score=float(row["score"]),
        source=row.get("source", ""),
        file=file,
        line=line,
    )


def _check_text(text: str, name: str, most: int, place: str) -> None:
    if not text and name != "source":
        raise InputError(f"{place} has no {name}; write one")
    if len(text) > most or not text.isprintable():
        raise InputError(
            f"{place} has the {name} {shown(text)}; write at most {most} printable characters"
        )


def _check_seeds(scores: Iterable[ImportedScore]) -> None:
    cells: dict[tuple[str, str], dict[int | None, ImportedScore]] = {}
    for score in scores:
        others = cells.setdefault((score.method, score.task), {})
        if others and None in (score.seed, *others):
            other = others.get(None, next(iter(others.values())))
            raise InputError(
                f"{score} and {other} are both of {score.method} on {score.task}, and not both "
                "have a seed; number all seeds"
            )
        if score.seed in others:
            raise InputError(
                f"{score} repeats seed {score.seed} of {score.method} on {score.task}, which "
                f"{others[score.seed]} has; keep one of them"
            )
        others[score.seed] = score


def beside(board: Board, scores: Iterable[ImportedScore]) -> Board:
    """The board with the scores of its tasks beside its columns, and a note on them."""
    cells: dict[tuple[str, str], list[ImportedScore]] = {}
    for score in scores:
        if score.task in board.tasks:
            cells.setdefault((score.task, score.method), []).append(score)
    if not cells:
        return board
    here = [score for found in cells.values() for score in found]
    return replace(
        board,
        imported={key: _cell(found) for key, found in cells.items()},
        notes=(*board.notes, _note(here)),
    )


def _cell(scores: Sequence[ImportedScore]) -> TaskScore:
    """The cell of a method on a task; of a score without a seed, the number of runs is unknown."""
    ordered = [score.score for score in sorted(scores, key=lambda score: score.seed or 0)]
    cell = score_of_seeds(ordered)
    return replace(cell, runs=(), imported=() if scores[0].seed is None else cell.runs)


def _note(scores: Iterable[ImportedScore]) -> str:
    sources: dict[str, dict[str, None]] = {}
    for score in scores:
        sources.setdefault(score.method, {})[score.source or score.file.name] = None
    told = (f"{name} ({listed(list(each), _MAX_SOURCES)})" for name, each in sources.items())
    return (
        "Imported, by protocols that are not known, so in no average, rank, interval, test or "
        f"choice of bold scores: {'; '.join(told)}."
    )


def without_board(boards: Iterable[Board], scores: Iterable[ImportedScore]) -> Iterator[str]:
    """Yield, for each file, which tasks have scores but no row of a board."""
    rows = list(dict.fromkeys(task for board in boards for task in board.tasks))
    have = f"they have {listed(rows, MAX_NAMED)}" if rows else "there is none"
    missing: dict[Path, dict[str, None]] = {}
    for score in scores:
        if score.task not in rows:
            missing.setdefault(score.file, {})[score.task] = None
    for file, tasks in missing.items():
        yield (
            f"{file}: scores of {listed(list(tasks), MAX_NAMED)} are left out, as no leaderboard "
            f"has such a row ({have}){_nearest(tasks, rows)}"
        )


def _nearest(tasks: Iterable[str], rows: Sequence[str]) -> str:
    """What the first of some tasks that is like a row may have meant."""
    asked = ((task, did_you_mean(task, rows)) for task in tasks)
    return next((f"; for {task}, {near}" for task, near in asked if near), "")
