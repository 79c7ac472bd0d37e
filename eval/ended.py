"""Runs that their own numbers ended: they have no score, and a comparison must not forget them.

Large critics are the likeliest to diverge, so that without these runs a comparison of sizes would
be one of survivors. An ended run is sorted to a board, a row and a column as one with a score is;
a version that it did not come to record speaks against no board, and where a task has rows by what
it did not record, it has one of its own.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tql_offline.errors import listed, numbered
from tql_offline.eval.measured import Measured, Setting, measured, unscored
from tql_offline.eval.protocol import namesake
from tql_offline.eval.rows import MAX_NAMED, natural, row_names, task_of, with_shared_names
from tql_offline.eval.run_records import Run
from tql_offline.eval.selection import Pool
from tql_offline.eval.variants import Settings, differing, variant_names

WITHOUT_SCORE = "ended without a score, by diverging or by a rule of watch"


@dataclass(frozen=True)
class Lost:
    """How many runs of one column ended without a score, and how many it would have had."""

    ended: int
    runs: int


def ended_runs(runs: Iterable[Run]) -> list[Measured]:
    """Those of some runs that their own numbers ended; all their scores are NaN.

    A run whose settings cannot be read, so that its method is not known, is not among them.
    """
    return [unscored(run) for run in runs if run.ended and run.method]


def ended_by_setting(
    ended: Iterable[Measured], settings: Iterable[Setting]
) -> dict[Setting, list[Measured]]:
    """Ended runs by the boards that they would be on, of boards with these settings.

    If no board has a run's success timing and versions, as where the others were all evaluated
    again elsewhere, the run is on every board of its protocol and suite rather than forgotten.
    """
    found: dict[Setting, list[Measured]] = {setting: [] for setting in settings}
    for run in ended:
        like = [setting for setting in found if _may_be_on(run.setting, setting)]
        for setting in [one for one in like if _agree(run.setting, one)] or like:
            found[setting].append(run)
    return found


def _may_be_on(of_run: Setting, of_board: Setting) -> bool:
    """Whether protocol, of which settings tell no version, and suite are the same."""
    protocol = namesake(of_board.protocol)
    return of_run.suite == of_board.suite and namesake(of_run.protocol) == protocol is not None


def _agree(of_run: Setting, of_board: Setting) -> bool:
    """Whether no known success timing or version differs."""
    known = zip(of_run[2:], of_board[2:], strict=True)
    return all(one == other or "" in (one, other) for one, other in known)


def placed(
    ended: Sequence[Measured], runs: Sequence[Measured], rows: Sequence[Measured]
) -> tuple[Measured, ...]:
    """Ended runs with the rows and columns that they would have on a board.

    Args:
        ended: ended runs of the board's setting.
        runs: the board's runs, as `with_shared_names` returns them.
        rows: the same, the task of each being its row.

    Returns:
        The runs, their `task` and `method` as the board calls it, or as it would call what none of
        its runs has. Of two of one seed there, as of a copied folder, only one.
    """
    tasks = _names_beside(runs, with_shared_names(ended, runs), row_names)
    of_rows = [replace(run, task=task) for run, task in zip(ended, tasks, strict=True)]
    methods = _names_beside(rows, of_rows, variant_names)
    columns = _Columns(rows)
    found = [
        replace(run, method=columns.of(run) or name)
        for run, name in zip(of_rows, methods, strict=True)
    ]
    return tuple({(run.task, run.label, run.seed): run for run in found}.values())


def _names_beside(
    runs: Sequence[Measured],
    ended: Sequence[Measured],
    names_of: Callable[[Sequence[Measured]], Sequence[str]],
) -> list[str]:
    """Names of ended runs among others, whose names they do not change.

    Beside the ended runs, the others' names may tell more than they do alone.
    """
    beside = names_of([*runs, *ended])
    alone: dict[str, set[str]] = {}
    for name, own in zip(beside, names_of(runs), strict=False):  # of `runs`, which come first
        alone.setdefault(name, set()).add(own)
    names = (alone.get(name, {name}) for name in beside[len(runs) :])
    return [min(each) for each in names]


class _Columns:
    """The columns of a board's runs, by the settings that they have on a task at a size."""

    def __init__(self, rows: Sequence[Measured]) -> None:
        self._found: dict[tuple[str, str, str], dict[str, Settings]] = {}
        for run, name in zip(rows, variant_names(rows), strict=True):
            cell = self._found.setdefault((run.method, run.task, run.size), {})
            cell.setdefault(name, run.settings)

    def of(self, run: Measured) -> str:
        """The column of the runs beside an ended one that have its settings; empty if none has."""
        cell = self._found.get((run.method, run.task, run.size), {})
        like = (name for name, have in cell.items() if not differing((have, run.settings)))
        return next(like, "")


def ended_of_pools(runs: Sequence[Run], pools: Iterable[Pool]) -> list[Measured]:
    """Those runs that would be of some pools, whatever protocol was to judge them."""
    if not (ended := ended_runs(runs)):
        return []
    known = {(pool.method, pool.size, task_of(pool.task)) for pool in pools}
    scored = [found for found in map(measured, runs) if isinstance(found, Measured)]
    named = with_shared_names(ended, scored)
    return [run for run in named if (run.method, run.size, run.task) in known]


# In sentences.


def lost_by_label(ended: Iterable[Measured], runs: Iterable[Measured]) -> dict[str, Lost]:
    """What each column lost; nothing of columns that lost no run.

    Args:
        ended: ended runs as `placed` returns them.
        runs: runs with a score on the same board.
    """
    gone, scored = (Counter(run.label for run in each) for each in (ended, runs))
    return {
        label: Lost(gone[label], gone[label] + scored[label]) for label in sorted(gone, key=natural)
    }


def ended_notes(ended: Iterable[Measured]) -> Iterator[str]:
    """Yield a sentence on runs that a board lacks."""
    if columns := lost_by_label(ended, ()):
        number = sum(lost.ended for lost in columns.values())
        told = [f"{lost.ended} of {label}" for label, lost in columns.items()]
        yield (
            f"{numbered(number, 'run', 'runs')} ({listed(told, MAX_NAMED)}) {WITHOUT_SCORE}; "
            "all numbers here are of the others"
        )


def survivors(lost: Mapping[str, Lost]) -> str:
    """What to add to the answer of a comparison; empty if it lost no run.

    >>> survivors({"small": Lost(2, 5)})
    " These are survivors: 2 of small's 5 runs ended without a score, by diverging or by a rule of \
watch."
    """
    told = [f"{each.ended} of {name}'s {each.runs}" for name, each in lost.items()]
    return f" These are survivors: {listed(told, MAX_NAMED)} runs {WITHOUT_SCORE}." if told else ""


def without_survivors(lost: Mapping[str, Lost]) -> Iterator[str]:
    """Yield which columns lost all their runs, so that no comparison has them."""
    none = [
        f"{label} ({numbered(each.runs, 'run', 'runs')})"
        for label, each in lost.items()
        if each.ended == each.runs
    ]
    if none:
        yield f"{listed(none, MAX_NAMED)}: all {WITHOUT_SCORE}, so no comparison has them."
