"""Leaderboards of methods by task, from finished runs and from papers.

A board holds runs that may be compared: one protocol, one suite of datasets, one moment of judging
success, one version of each simulator. Other runs are on boards of their own. A task whose dataset
has two contents, or whose policies were played in two environments, has two rows; a method that was
trained with two settings on one task has two columns (variants.py). The run (seed) is the unit: a
score is the mean over runs, its spread theirs. A paper's printed scores are shown alongside as
reported; they have no runs, so they enter no interval and no test. Scores that a user brings from
elsewhere (imported.py) are apart from both, and nothing compares them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from tql_offline.errors import listed
from tql_offline.eval.ended import Lost, ended_by_setting, ended_notes, lost_by_label, placed
from tql_offline.eval.measured import IMPORTED, NO_SIZE, REPORTED, Measured, Setting
from tql_offline.eval.protocol import known_protocol, namesake
from tql_offline.eval.published import Published
from tql_offline.eval.references import SCALES
from tql_offline.eval.rows import (
    MAX_NAMED,
    OWN,
    aliases,
    contents,
    natural,
    row_names,
    tasks_of,
    with_shared_names,
)
from tql_offline.eval.scores import bold
from tql_offline.eval.statistics import Estimate, estimate_mean, mean_of_runs, mean_std
from tql_offline.eval.variants import (
    choices,
    counted_by_member,
    resumed_with_other_code,
    unlike_sizes,
    unrecorded,
    variant_names,
)

BOLD = 0.95
"""Bold fraction under protocols that this version does not know."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One cell: a method's score on a task.

    Attributes:
        runs: one score per seed, ascending by seed; empty if the score is reported or imported.
        mean: mean over runs, or as reported.
        sd: standard deviation over runs, NaN for a single run, or as reported.
        imported: what `runs` would be of an imported score; empty if its seeds are not known.
    """

    runs: tuple[float, ...]
    mean: float
    sd: float
    imported: tuple[float, ...] = ()

    @property
    def seeds(self) -> tuple[float, ...]:
        """One score per seed, as far as they are known; what is compared is `runs`."""
        return self.runs or self.imported


@dataclass(frozen=True, kw_only=True)
class Board:
    """Comparable scores.

    Attributes:
        setting: setting of the measured runs; for a paper's table, what is known of it.
        tasks: the rows, in order.
        measured: labels of the columns of runs.
        reported: labels of the columns of papers.
        scores: cells by task and label.
        fraction: scores of at least this fraction of the row's best are bold.
        runs: the runs in the `measured` columns; the task of each is its row.
        notes: what a reader must know about the columns' settings, the rows' data, and the reported
            and imported columns.
        imported: cells by task and method of scores from elsewhere. They are in no `labels`, so
            that nothing compares them.
        ended: runs that would be here, but diverged or were stopped by a rule; the task of each is
            the row that it would be in, which may be none of `tasks`.
    """

    setting: Setting
    tasks: tuple[str, ...]
    measured: tuple[str, ...]
    reported: tuple[str, ...]
    scores: dict[tuple[str, str], TaskScore]
    fraction: float
    runs: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()
    imported: Mapping[tuple[str, str], TaskScore] = field(default_factory=dict)
    ended: tuple[Measured, ...] = ()

    @property
    def lost(self) -> dict[str, Lost]:
        """What each column lost by runs that ended without a score, whatever their task."""
        return lost_by_label(self.ended, self.runs)

    @property
    def labels(self) -> tuple[str, ...]:
        """All columns that may be compared, those of runs first: a page shows only some at once."""
        return (*self.measured, *self.reported)

    @property
    def imported_methods(self) -> tuple[str, ...]:
        """The methods of the imported columns."""
        return tuple(dict.fromkeys(method for _, method in self.imported))

    @property
    def is_rate(self) -> bool:
        """Whether scores are known to be success rates in percent."""
        known = known_protocol(self.setting.protocol)
        return known is not None and known.score == "success"

    @property
    def may_be_rate(self) -> bool:
        """Whether scores are success rates in percent, as far as their protocol's name tells."""
        return self.kind == "success"

    @property
    def kind(self) -> str:
        """What scores are, by the protocol's name: success, return or normalised; "" if unknown."""
        known = namesake(self.setting.protocol)
        return known.score if known else ""

    @property
    def is_percent(self) -> bool:
        """Whether scores are of the order of 100: success rates, or normalised like D4RL's."""
        known = namesake(self.setting.protocol)
        return self.may_be_rate or (known is not None and SCALES.get(known.references) == 100)

    @property
    def decimals(self) -> int | None:
        """Decimals that papers print such scores to; None if they have no usual number."""
        if self.is_percent:
            return 0 if self.may_be_rate else 1
        return None

    @property
    def unit(self) -> str:
        """The unit of the scores, in words."""
        known = namesake(self.setting.protocol)
        if known is not None and known.score == "normalised":
            return f"normalised return (0 to {SCALES[known.references]:g})"
        units = {"success": "success in percent", "return": "return (not normalised)"}
        return units.get(self.kind, "score as recorded")

    def row(self, task: str) -> list[float]:
        """Means of a task in the order of `labels`; NaN if there is none."""
        cells = [self.scores.get((task, label)) for label in self.labels]
        return [math.nan if cell is None else cell.mean for cell in cells]

    def bold(self, task: str) -> list[bool]:
        """Whether each of a row's scores is near its best."""
        return bold(self.row(task), self.fraction)

    def interval(self, score: TaskScore) -> Estimate:
        """Student's t interval of a cell's mean; none for a single run or a reported score."""
        if not score.runs:
            return Estimate(value=score.mean)
        return estimate_mean([score.runs], is_rate=self.is_rate)

    def averages(self, tasks: Sequence[str]) -> bool:
        """Whether a mean over rows is meaningful: plain returns have a different scale per task.

        So may the scores of a protocol that is not known here.
        """
        return len(tasks) < 2 or self.kind in ("success", "normalised")

    def complete(self) -> tuple[str, ...]:
        """Labels that have a score on every task."""
        return tuple(
            label
            for label in self.labels
            if all((task, label) in self.scores for task in self.tasks)
        )

    def core(self) -> Self:
        """The tasks and columns to compare as a whole: each of these columns has each task.

        All tasks are kept if two columns of runs have them all; otherwise the block with the most
        cells of runs, so that one more method or task ends no other comparison.
        """
        kept = self.tasks
        if len(set(self.complete()) & set(self.measured)) < 2:
            have = {
                task: frozenset(label for label in self.measured if (task, label) in self.scores)
                for task in self.tasks
            }
            cells = {rows: len(rows) * len(columns) for rows, columns in blocks(have)}
            kept = max(cells, key=cells.__getitem__, default=self.tasks)
        whole = replace(self, tasks=kept)
        complete = whole.complete()
        return replace(
            whole,
            measured=tuple(label for label in complete if label in self.measured),
            reported=tuple(label for label in complete if label in self.reported),
        )


_MOST_SETS = 64
"""Most sets of columns that are considered; foreign results may have any number."""

Block = tuple[tuple[str, ...], frozenset[str]]
"""Rows and columns of a table with holes that together have no hole."""


def blocks(have: Mapping[str, frozenset[str]]) -> list[Block]:
    """Blocks of two or more columns, each with every row that has cells in all of them.

    Args:
        have: for each row, the columns in which it has cells.

    >>> found = blocks({"1": frozenset("ab"), "2": frozenset("abc"), "3": frozenset("c")})
    >>> [(rows, sorted(columns)) for rows, columns in found]
    [(('2',), ['a', 'b', 'c']), (('1', '2'), ['a', 'b'])]
    """
    sets = sorted(set(have.values()), key=lambda one: (-len(one), sorted(one)))[:_MOST_SETS]
    shared = {one & other for one in sets for other in sets}
    return [
        (tuple(row for row, its in have.items() if columns <= its), columns)
        for columns in sorted(shared, key=lambda one: (-len(one), sorted(one)))
        if len(columns) > 1
    ]


def make_boards(
    runs: Iterable[Measured],
    published: Sequence[Published] = (),
    ended: Sequence[Measured] = (),
) -> tuple[list[Board], list[str]]:
    """Sort runs into boards, alongside the scores that papers print for their tasks.

    Args:
        runs: runs of any settings.
        published: printed scores; shown on boards of the protocol that they followed.
        ended: runs without a score, of any settings.

    Returns:
        The boards, those with more runs first, and a sentence for every run that was left out.
    """
    by_setting: dict[Setting, list[Measured]] = {}
    for run in runs:
        by_setting.setdefault(run.setting, []).append(run)
    ordered = sorted(by_setting.items(), key=lambda item: (-len(item[1]), item[0]))
    warnings: list[str] = []
    lacking = ended_by_setting(ended, by_setting)
    return [_board(s, found, published, lacking[s], warnings) for s, found in ordered], warnings


def _board(
    setting: Setting,
    runs: list[Measured],
    published: Sequence[Published],
    ended: Sequence[Measured],
    warnings: list[str],
) -> Board:
    is_own = setting.suite == OWN
    runs = with_shared_names(runs)
    rows = [replace(run, task=row) for run, row in zip(runs, row_names(runs), strict=True)]
    names = variant_names(rows)
    named = _with_own_labels(
        [replace(run, method=name) for run, name in zip(rows, names, strict=True)]
    )
    distinct = _distinct(named, warnings)
    cells = by_cell(distinct)
    tasks = tuple(sorted({task for task, _ in cells}, key=natural))
    followed = [p for p in published if setting.protocol.startswith(f"{p.protocol} v")]
    beside = [p for p in followed if p.task in tasks and not is_own]
    split = {p.task for p in followed if not is_own} & tasks_of(tasks) - set(tasks)
    scores = {key: score_of(found) for key, found in cells.items()}
    known = known_protocol(setting.protocol)
    lacking = placed(ended, runs, rows)
    return Board(
        setting=setting,
        tasks=tasks,
        measured=tuple(dict.fromkeys(run.label for run in sorted(distinct, key=_column_order))),
        reported=tuple(dict.fromkeys(reported_label(p) for p in beside)),
        scores=scores | reported_scores(beside),
        fraction=known.bold if known else BOLD,
        runs=tuple(distinct),
        ended=lacking,
        notes=(
            *ended_notes(lacking),
            *choices(rows, names),
            *resumed_with_other_code(rows),
            *unrecorded(distinct),
            *unlike_sizes(distinct),
            *counted_by_member(distinct),
            *contents(runs),
            *(aliases(runs) if is_own else ()),
            *_notes(beside),
            *([_without_reported(split)] if split else []),
        ),
    )


def _with_own_labels(runs: Sequence[Measured]) -> list[Measured]:
    """Runs of which no two methods share a label: one without a size may be called "FQL tiny"."""
    sizes: dict[str, set[str]] = {}
    for run in runs:
        sizes.setdefault(run.label, set()).add(run.size)
    return [
        run
        if run.size or len(sizes[run.label]) == 1
        else replace(run, method=f"{run.method} {NO_SIZE}")
        for run in runs
    ]


def reported_label(row: Published) -> str:
    """Label of the column of a printed score."""
    return f"{row.method} {REPORTED}"


def imported_label(method: str) -> str:
    """Label of the column of a method's imported scores."""
    return f"{method} {IMPORTED}"


def reported_scores(rows: Iterable[Published]) -> dict[tuple[str, str], TaskScore]:
    """Printed scores as cells."""
    return {(p.task, reported_label(p)): TaskScore(runs=(), mean=p.mean, sd=p.sd) for p in rows}


def _notes(rows: Iterable[Published]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"Reported: {p.source}. {p.note}" for p in rows))


def _without_reported(tasks: Iterable[str]) -> str:
    """A sentence on tasks whose printed scores no row shows."""
    named = listed(sorted(tasks, key=natural), MAX_NAMED)
    return f"Reported scores of {named} are left out, since its runs are in rows that differ."


def by_cell(runs: Iterable[Measured]) -> dict[tuple[str, str], list[Measured]]:
    """Runs by task and label."""
    cells: dict[tuple[str, str], list[Measured]] = {}
    for run in runs:
        cells.setdefault((run.task, run.label), []).append(run)
    return cells


def score_of(runs: Sequence[Measured]) -> TaskScore:
    """The cell made from runs of one method on one task."""
    return score_of_seeds([run.score for run in sorted(runs, key=lambda run: run.seed)])


def score_of_seeds(scores: Sequence[float]) -> TaskScore:
    """The cell made from one score per seed, ascending by seed."""
    sd = mean_std(scores)[1] if len(scores) > 1 else math.nan
    return TaskScore(runs=tuple(scores), mean=mean_of_runs(scores), sd=sd)


def _distinct(runs: Sequence[Measured], warnings: list[str]) -> list[Measured]:
    """Runs in the order of their seeds; of two with one seed, only the first by name."""
    kept: dict[tuple[str, str, str], Measured] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.name)):
        key = (run.task, run.label, str(run.seed))
        first = kept.setdefault(key, run)
        if first is not run:
            warnings.append(
                f"{run.name}: {run.label} has another run of seed {run.seed}, {first.name}, which "
                f"is the one that counts on {run.task}"
            )
    return list(kept.values())


def _column_order(run: Measured) -> tuple[Any, ...]:
    return run.method, run.parameters or 0, run.size
