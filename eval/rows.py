"""Names of a board's rows: a task, and what differs between the runs of one.

A user's own data have the name of their file, wherever it lies: the same content is one task,
whatever its file is called, and two contents of one name are two rows.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tql_offline.errors import listed
from tql_offline.eval.variants import differing

if TYPE_CHECKING:
    from tql_offline.eval.measured import Measured

OWN = "own"
"""Suite of data that are in no catalogue."""
MAX_NAMED = 6
"""Most names that a sentence lists."""
DIGEST = 8
"""Characters of a SHA-256 that rows show."""


def file_name(path: str) -> str:
    r"""The last part of a path of any machine.

    >>> file_name("moved/../og.npz"), file_name("C:\\data\\og.hdf5"), file_name("og/")
    ('og.npz', 'og.hdf5', 'og')
    """
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def own_name(path: str) -> str:
    """The name of one's own data by their file.

    >>> own_name("moved/../og.npz")
    'og'
    """
    return PurePosixPath(file_name(path)).stem or path


def with_shared_names(
    runs: Sequence["Measured"], others: Sequence["Measured"] = ()
) -> list["Measured"]:
    """The runs; those on one's own data of one content are of one task, as most of them call it.

    Args:
        runs: runs whose `task` is their data's name.
        others: runs that name the tasks instead, if there are some.
    """
    called: dict[str, Counter[str]] = {}
    for run in others or runs:
        if run.setting.suite == OWN and run.dataset_sha256:
            called.setdefault(run.dataset_sha256, Counter())[run.task] += 1
    shared = {digest: _commonest(names) for digest, names in called.items()}
    return [
        replace(run, task=shared.get(run.dataset_sha256, run.task))
        if run.setting.suite == OWN
        else run
        for run in runs
    ]


def _commonest(names: Counter[str]) -> str:
    return min(names, key=lambda name: (-names[name], name))


def row_names(runs: Sequence["Measured"]) -> list[str]:
    """Each run's task, with the conditions that differ between the runs of that task."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for run in runs:
        found.setdefault(run.task, []).append(run.conditions)
    keys = {task: differing(conditions) for task, conditions in found.items()}
    return [
        ", ".join([run.task, *(f"{k} {run.conditions.get(k, 'unknown')}" for k in keys[run.task])])
        for run in runs
    ]


def contents(runs: Sequence["Measured"]) -> Iterator[str]:
    """Yield which tasks have data of several contents, with the files that hold them.

    Args:
        runs: runs whose `task` is not yet a row's name.
    """
    files: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        if run.dataset_sha256:
            held = files.setdefault(run.task, {}).setdefault(run.dataset_sha256, set())
            held |= {file_name(run.dataset)} - {run.task, ""}
    for task, held_in in sorted(files.items()):
        if len(held_in) > 1:
            told = listed([_content(*each) for each in sorted(held_in.items())], MAX_NAMED)
            yield (
                f"Data of {len(held_in)} contents are called {task}, and each has a row of its "
                f"own, by the first digits of its SHA-256: {told}."
            )


def _content(digest: str, files: set[str]) -> str:
    return f"{digest[:DIGEST]} ({listed(sorted(files), 2)})" if files else digest[:DIGEST]


def aliases(runs: Sequence["Measured"]) -> Iterator[str]:
    """Yield which files of one's own have the same content under different names.

    Args:
        runs: as `with_shared_names` returns them.
    """
    files: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        if run.dataset_sha256:
            files.setdefault((run.task, run.dataset_sha256), set()).add(file_name(run.dataset))
    for (task, _), names in sorted(files.items()):
        if len({own_name(name) for name in names}) > 1:
            told = listed(sorted(names), MAX_NAMED)
            yield f"Files of one content ({told}) are one task, here called {task}."


def tasks_of(rows: Iterable[str]) -> set[str]:
    """The tasks of rows; one task may have several."""
    return set(map(task_of, rows))


def task_of(row: str) -> str:
    """The task of a row, without what tells it from the task's other rows."""
    return row.partition(", ")[0]


def natural(name: str) -> tuple[Any, ...]:
    """Sort key that puts `task10` after `task9`."""
    # Digits are compared by length first, not as numbers, which foreign names may make huge.
    parts = re.split(r"([0-9]+)", name)
    words, digits = parts[::2], [part.lstrip("0") for part in parts[1::2]]
    numbers = [(len(part), part) for part in digits]
    return tuple(zip_longest(words, numbers, fillvalue=(0, ""))), name
