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
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from statistics import fmean
from typing import Any, NamedTuple, Self

import numpy as np
from scipy import stats

from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.names import MINARI_PREFIX, with_task
from tql_offline.errors import listed, shown
from tql_offline.eval.protocol import known_protocol, protocol_label, scores_success
from tql_offline.eval.published import Published
from tql_offline.eval.references import SCALES
from tql_offline.eval.report_scores import CountedScore, setting_of
from tql_offline.eval.rows import (
    DIGEST,
    MAX_NAMED,
    OWN,
    aliases,
    contents,
    own_name,
    row_names,
    with_shared_names,
)
from tql_offline.eval.run_records import (
    Evaluation,
    Run,
    count,
    has_own_episodes,
    lookup,
)
from tql_offline.eval.scores import bold
from tql_offline.eval.statistics import (
    RESAMPLES,
    Estimate,
    Scores,
    agree,
    estimate,
    estimate_mean,
    interquartile_mean,
    mean_std,
    median_of_tasks,
    other_share,
    widened_tail,
)
from tql_offline.eval.variants import (
    Settings,
    choices,
    differing,
    resumed_with_other_code,
    settings_of,
    unlike_sizes,
    variant_names,
)

_REPORTED, _IMPORTED = " (reported)", " (imported)"
"""Ends of the labels of columns that hold no runs."""
SIMULATORS = ("ogbench", "mujoco", "gymnasium")
_DECIMALS = 9
"""Of a run's score: more are rounding, by which runs of as many successes would differ."""
BOLD = 0.95
"""Bold fraction under protocols that this version does not know."""


class Setting(NamedTuple):
    """The facts that must be equal for two runs' scores to be compared."""

    protocol: str
    suite: str = ""
    success_timing: str = ""
    ogbench: str = ""
    mujoco: str = ""
    gymnasium: str = ""

    def __str__(self) -> str:
        """Protocol, suite, timing and versions, as far as they are known."""
        data = f"{self.suite} data" if self.suite else ""
        judged = f"success judged '{self.success_timing}'" if self.success_timing else ""
        versions = (
            f"{name} {version}"
            for name, version in zip(SIMULATORS, self[3:], strict=True)
            if version
        )
        return ", ".join(filter(None, [self.protocol, data, judged, *versions]))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished run's scores.

    Attributes:
        name: the run's name in warnings.
        task: name of the dataset, by which papers name a task; without one, the environment.
        dataset: the dataset as the run was given it, which may be a path on any machine.
        method: name of the method; with its size, one column of a board.
        size: the critic's size; empty if there is no critic.
        parameters: number of the critic's parameters.
        dataset_sha256: digest of the data trained on.
        env_id: the environment played in, as the run names it.
        tql_offline: version that the run was made with; empty if unknown.
        score: mean score of the counted evaluations.
        last: score of the last evaluation.
        last_three: mean score of the last three; NaN if there are fewer.
        best: score of the best evaluation, an oracle: it cannot be chosen without playing.
        updates: number of updates done.
        seconds: time spent in updates; NaN if the run did not record it.
        flops: operations of matrix products in all updates; NaN if they were not counted.
        settings: the settings that the run was trained with; see `variants`.
        counted: number of evaluations that the score is the mean of.
        reference: what the score was normalised by, in words; empty if it was not.
        conditions: what runs of one row have in common, as far as known: data, environment, step
            limit, reference.
        behaviour: score of the policy cloned from the same data, in as many episodes and, as far as
            seeds were recorded, the same ones; NaN if there is none.
        in_same_episodes: whether recorded seeds show that `behaviour` and all evaluations that
            count are of the same episodes.
        in_own_episodes: whether recorded seeds show that all evaluations that count are of the
            protocol's own episodes.
        curve: score by update of every evaluation that the protocol plans.
    """

    name: str
    setting: Setting
    task: str
    dataset: str
    method: str
    size: str
    parameters: int | None
    seed: int
    dataset_sha256: str
    env_id: str
    tql_offline: str
    score: float
    last: float
    last_three: float
    best: float
    updates: int
    seconds: float
    flops: float
    settings: Settings
    counted: int
    reference: str
    conditions: Mapping[str, str]
    behaviour: float = math.nan
    in_same_episodes: bool = False
    in_own_episodes: bool = False
    curve: Mapping[int, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the run's column."""
        return f"{self.method} {self.size}".strip()


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

    @property
    def labels(self) -> tuple[str, ...]:
        """All columns that may be compared."""
        return (*self.reported, *self.measured)

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
        """Whether scores are success rates in percent, as far as is known of their protocol."""
        return scores_success(self.setting.protocol)

    @property
    def is_percent(self) -> bool:
        """Whether scores are of the order of 100: success rates, or normalised like D4RL's."""
        known = known_protocol(self.setting.protocol)
        return self.may_be_rate or (known is not None and SCALES.get(known.references) == 100)

    @property
    def unit(self) -> str:
        """The unit of the scores, in words."""
        known = known_protocol(self.setting.protocol)
        if known is not None and known.score == "return":
            return "return (not normalised)"
        if known is not None and known.score == "normalised":
            return f"normalised return (0 to {SCALES[known.references]:g})"
        return "success in percent"

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
        """Whether a mean over rows is meaningful: plain returns have a different scale per task."""
        known = known_protocol(self.setting.protocol)
        return len(tasks) < 2 or known is None or known.score != "return"

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


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method over all tasks of a board.

    Attributes:
        mean: mean over tasks; NaN if a mean over tasks is meaningless.
        sd: mean of the tasks' standard deviations, as papers print it.
        estimates: that mean and other statistics, with intervals over runs.
        rank: mean over tasks of the rank among all complete columns, 1 being the best.
    """

    label: str
    mean: float
    sd: float
    estimates: dict[str, Estimate]
    rank: Estimate


# From runs to boards.


def measured(run: Run) -> Measured | str:
    """A run's scores, or the reason it is not on a board, as the end of a sentence."""
    result = run.result
    if not result:
        return "is unfinished"
    label = protocol_label(result.get("protocol"))
    known = [e for e in run.evaluations if e.policy == "learned" and e.protocol == label]
    known = [e for e in known if math.isfinite(e.score) and run.plans(e)]
    seed = count(result.get("seed"))
    task = _task(run)
    if not known or seed is None or not task:
        return "has no score of a learned policy with a task and a seed"
    method = _string(result.get("method")) or "unnamed"
    if method.endswith((_REPORTED, _IMPORTED)):
        return f"has a method {shown(method)}, whose name says that it was not measured"
    score = CountedScore.of(known)
    if len(score.evaluations) < score.counted:
        return f"has {len(known)} planned evaluations where its protocol counts {score.counted}"
    if missing := run.lacking(known):
        return f"has no score of update {', '.join(map(str, missing))}, which its protocol counts"
    settings = {setting_played(run, label, evaluation) for evaluation in score.evaluations}
    conditions = [conditions_of(run, evaluation) for evaluation in score.evaluations]
    unlike = [*map(str, sorted(settings))] if len(settings) > 1 else []
    unlike += [f"{key} differs" for key in differing(conditions)]
    if unlike:
        played = "; ".join(unlike)
        return f"has counted evaluations that cannot be compared ({played}); evaluate them again"
    updates = count(result.get("updates")) or known[-1].step
    flops = count(result.get("flops_per_update"))
    behaviour = _behaviour(run, score.last)
    return Measured(
        name=run.name,
        setting=settings.pop(),
        task=task,
        dataset=_string(result.get("dataset")),
        method=method,
        size=_string(result.get("size")),
        parameters=count(result.get("parameters")),
        seed=seed,
        dataset_sha256=_string(result.get("dataset_sha256")),
        env_id=score.last.env_id,
        tql_offline=_string(run.provenance.get("tql_offline")),
        score=_mean([e.score for e in score.evaluations]),
        last=score.last.score,
        last_three=score.last_three,
        best=score.best,
        updates=updates,
        seconds=run.seconds,
        flops=float(flops * updates) if flops else math.nan,
        settings=settings_of(run),
        counted=score.counted,
        reference=score.last.reference,
        conditions={key: value for known in conditions for key, value in known.items()},
        behaviour=behaviour.score if behaviour else math.nan,
        in_same_episodes=behaviour is not None
        and all(_have_same_episodes(behaviour, e) for e in score.evaluations),
        in_own_episodes=all(map(has_own_episodes, score.evaluations)),
        curve={evaluation.step: evaluation.score for evaluation in known},
    )


def _mean(scores: Sequence[float]) -> float:
    """Mean of scores, the same for equal sums: 100 · k / n in another order rounds otherwise."""
    return round(fmean(scores), _DECIMALS)


def _behaviour(run: Run, learned: Evaluation) -> Evaluation | None:
    """The last evaluation of the behaviour policy that may be of another one's episodes."""
    behaviour = [e for e in run.evaluations if e.policy == "behaviour"]
    like = [e for e in behaviour if _have_same_episodes(e, learned) is not False]
    return like[-1] if like else None


def _have_same_episodes(one: Evaluation, other: Evaluation) -> bool | None:
    """Whether two evaluations played the same episodes; None if their seeds do not tell."""
    if setting_of(one) != setting_of(other) or one.episodes != other.episodes:
        return False
    pairs = [(a.seed, b.seed) for a, b in zip(one.details, other.details, strict=False)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if any(a != b for a, b in known):
        return False
    return True if len(known) == one.episodes else None


def _task(run: Run) -> str:
    """Name of a run's dataset with its task, or of the environment if there is no dataset."""
    name, recorded = _dataset(run), _string(run.provenance.get("dataset.name"))
    if name and suite_of(name) == OWN:
        return recorded or (name if name.startswith(MINARI_PREFIX) else own_name(name))
    return with_task(name or _string(run.result.get("task")))


def _dataset(run: Run) -> str:
    """Name of a run's dataset, or the path of its file; empty if neither is known."""
    name, env_id = _string(run.result.get("dataset")), _string(run.result.get("task"))
    if name.startswith(MINARI_PREFIX) or env_id.startswith(MINARI_PREFIX):
        # The name may be a folder, which differs between machines.
        return _string(run.provenance.get("dataset.name")) or name
    return with_task(name)


def setting_played(run: Run, protocol: str, evaluation: Evaluation) -> Setting:
    """The setting an evaluation was played with; if not recorded, what the run began with."""
    facts, played = run.provenance, dict(evaluation.versions)
    timing = evaluation.success_timing or _string(lookup(facts, "success_timing"))
    versions = (played.get(name) or _string(lookup(facts, name)) for name in SIMULATORS)
    # A file of one's own is of no suite, whatever it is called.
    return Setting(protocol, suite_of(_dataset(run) or _task(run)), timing, *versions)


def conditions_of(run: Run, evaluation: Evaluation) -> dict[str, str]:
    """The conditions that distinguish a task's rows, without those that were not recorded."""
    # Of the environment's own package.
    others = {name: version for name, version in evaluation.versions if name not in SIMULATORS}
    began = run.provenance
    limit = evaluation.max_episode_steps or count(began.get("environment.max_episode_steps"))
    found = {
        **others,  # first, as its names are the file's
        "data": _string(run.result.get("dataset_sha256"))[:DIGEST],
        "environment": _environment(evaluation.env_id or _string(began.get("environment.env_id"))),
        "step limit": str(limit or ""),
        # Without its source, which may name a folder on one machine.
        "reference": evaluation.reference.partition(", from ")[0],
    }
    return {key: value for key, value in found.items() if value}


def _environment(env_id: str) -> str:
    """An environment's id without what differs between machines that have the same environment."""
    # A Minari dataset names its environment, and may be named by the folder it lies in.
    return "of the dataset" if env_id.startswith(MINARI_PREFIX) else with_task(env_id)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def make_boards(
    runs: Iterable[Measured], published: Sequence[Published] = ()
) -> tuple[list[Board], list[str]]:
    """Sort runs into boards, alongside the scores that papers print for their tasks.

    Args:
        runs: runs of any settings.
        published: printed scores; shown on boards of the protocol that they followed.

    Returns:
        The boards, those with more runs first, and a sentence for every run that was left out.
    """
    by_setting: dict[Setting, list[Measured]] = {}
    for run in runs:
        by_setting.setdefault(run.setting, []).append(run)
    ordered = sorted(by_setting.items(), key=lambda item: (-len(item[1]), item[0]))
    warnings: list[str] = []
    return [_board(s, found, published, warnings) for s, found in ordered], warnings


def _board(
    setting: Setting, runs: list[Measured], published: Sequence[Published], warnings: list[str]
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
    return Board(
        setting=setting,
        tasks=tasks,
        measured=tuple(dict.fromkeys(run.label for run in sorted(distinct, key=_column_order))),
        reported=tuple(dict.fromkeys(reported_label(p) for p in beside)),
        scores=scores | reported_scores(beside),
        fraction=known.bold if known else BOLD,
        runs=tuple(distinct),
        notes=(
            *choices(rows, names),
            *resumed_with_other_code(rows),
            *unlike_sizes(distinct),
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
        else replace(run, method=f"{run.method} (no size)")
        for run in runs
    ]


def reported_label(row: Published) -> str:
    """Label of the column of a printed score."""
    return f"{row.method}{_REPORTED}"


def imported_label(method: str) -> str:
    """Label of the column of a method's imported scores."""
    return f"{method}{_IMPORTED}"


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
    mean, sd = mean_std(scores)
    sd = sd if len(scores) > 1 else math.nan
    return TaskScore(runs=tuple(scores), mean=mean, sd=sd)


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


def natural(name: str) -> tuple[Any, ...]:
    """Sort key that puts `task10` after `task9`."""
    # Digits are compared by length first, not as numbers, which foreign names may make huge.
    parts = re.split(r"([0-9]+)", name)
    words, digits = parts[::2], [part.lstrip("0") for part in parts[1::2]]
    numbers = [(len(part), part) for part in digits]
    return tuple(zip_longest(words, numbers, fillvalue=(0, ""))), name


# Averages and ranks.


def domain(task: str) -> str:
    """The family that a task's average belongs to.

    >>> domain("cube-double-play-singletask-task1-v0")
    'cube-double-play'
    """
    return re.sub(r"-singletask.*|-v\d+.*", "", task)


def domains(board: Board) -> dict[str, tuple[str, ...]]:
    """Domain → its tasks, in the board's order."""
    found: dict[str, list[str]] = {}
    for task in board.tasks:
        found.setdefault(domain(task), []).append(task)
    return {name: tuple(tasks) for name, tasks in found.items()}


def domain_title(name: str, rows: Sequence[str]) -> str:
    """A domain's name, with the number of tasks if they are fewer than OGBench's five."""
    tasks = len(tasks_of(rows))
    return f"{name} ({tasks} of 5 tasks)" if "-singletask" in rows[0] and tasks < 5 else name


def tasks_of(rows: Iterable[str]) -> set[str]:
    """The tasks of rows; one task may have several."""
    return set(map(task_of, rows))


def task_of(row: str) -> str:
    """The task of a row, without what tells it from the task's other rows."""
    return row.partition(", ")[0]


def average(board: Board, label: str, tasks: Sequence[str]) -> tuple[float, float] | None:
    """Mean over tasks of a method's means and of its standard deviations, as papers print averages.

    Rows of one task, which differ in data or environment, count together as much as another task.

    Returns:
        The two means; None if the method lacks a task or a mean over them is meaningless.
    """
    if not board.averages(tasks):
        return None
    rows: dict[str, list[TaskScore]] = {}
    for row in tasks:
        cell = board.scores.get((row, label))
        if cell is None:
            return None
        rows.setdefault(task_of(row), []).append(cell)
    means, deviations = (
        [fmean([getattr(cell, name) for cell in cells]) for cells in rows.values()]
        for name in ("mean", "sd")
    )
    return fmean(means), fmean(deviations)


def mean_ranks(board: Board) -> dict[str, float]:
    """Mean over tasks of each complete column's rank, 1 being the best; ties share theirs."""
    labels = board.complete()
    means = np.array([[board.scores[t, name].mean for name in labels] for t in board.tasks])
    return dict(zip(labels, ranks(means).mean(axis=0).tolist(), strict=True))


def ranks(means: Scores) -> Scores:
    """Ranks along the last axis, 1 for the highest; ties get their mean rank."""
    return np.asarray(stats.rankdata(-means, axis=-1, method="average"))


def summaries(
    board: Board, generator: np.random.Generator, resamples: int = RESAMPLES
) -> list[Summary]:
    """Summarise every complete column over all tasks, best mean first; without means, best rank."""
    rank = _rank_estimates(board, generator, resamples)
    found = [_summary(board, label, rank[label], generator, resamples) for label in rank]
    return sorted(found, key=lambda s: s.rank.value if math.isnan(s.mean) else -s.mean)


def _summary(
    board: Board, label: str, rank: Estimate, generator: np.random.Generator, resamples: int
) -> Summary:
    table = [board.scores[task, label].runs for task in board.tasks]
    estimates = {}
    if all(table) and board.averages(board.tasks):
        mean = estimate_mean(table, is_rate=board.is_rate)
        drawn = partial(
            estimate, table=table, generator=generator, resamples=resamples, is_rate=board.is_rate
        )
        estimates = {
            "mean": mean,
            "IQM": drawn(interquartile_mean),
            "median": drawn(median_of_tasks),
        }
        if board.is_rate:
            estimates["optimality gap"] = Estimate(
                value=100 - mean.value, low=100 - mean.high, high=100 - mean.low
            )
    printed, sd = average(board, label, board.tasks) or (math.nan, math.nan)
    return Summary(label=label, mean=printed, sd=sd, estimates=estimates, rank=rank)


def _rank_estimates(
    board: Board, generator: np.random.Generator, resamples: int
) -> dict[str, Estimate]:
    """Mean ranks with intervals over the runs of all columns; reported scores are held fixed.

    All bounds use the outermost quantile that any column's number of runs requires. Success rates
    of runs that all agree leave room for other runs, as in `statistics.with_room`.
    """
    labels = board.complete()
    if not labels:
        return {}
    found = {label: Estimate(value=value) for label, value in mean_ranks(board).items()}
    own = [label for label in labels if label in board.measured]
    tables = [[np.array(board.scores[t, label].runs) for t in board.tasks] for label in own]
    varied = [table for table in tables if not (board.is_rate and all(map(agree, table)))]
    tails = list(map(widened_tail, varied))
    if not own or np.isnan(tails).any():
        return found
    spread = _drawn_ranks(board, labels, generator, resamples)
    tail = min(tails, default=0.5)
    bounds = np.quantile(spread, [tail, 1 - tail], axis=0)
    fall, rise = _room_of_ranks(board, labels) if board.is_rate else (0.0, 0.0)
    centre = np.array([found[label].value for label in labels])
    low = centre - np.sqrt((centre - bounds[0]).clip(min=0) ** 2 + fall)
    high = centre + np.sqrt((bounds[1] - centre).clip(min=0) ** 2 + rise)
    for label, least, most in zip(labels, low.tolist(), high.tolist(), strict=True):
        if label in board.measured:
            found[label] = replace(
                found[label], low=max(least, 1.0), high=min(most, float(len(labels)))
            )
    return found


def _room_of_ranks(board: Board, labels: Sequence[str]) -> tuple[Scores, Scores]:
    """Squares of how far mean ranks may fall and rise, `(labels,)` each, by runs that agree."""
    fall, rise = np.zeros(len(labels)), np.zeros(len(labels))
    for shift in _shifts_of_ranks(board, labels):
        fall += np.minimum(shift, 0) ** 2
        rise += np.maximum(shift, 0) ** 2
    return fall, rise


def _shifts_of_ranks(board: Board, labels: Sequence[str]) -> Iterator[Scores]:
    """Yield mean ranks less those measured, `(labels,)`, for each cell and kind of unseen run."""
    for task in board.tasks:
        cells = [board.scores[task, label] for label in labels]
        means = np.array([cell.mean for cell in cells])
        measured = ranks(means)
        for i, cell in enumerate(cells):
            for other in (0.0, 100.0) if agree(np.array(cell.runs)) else ():
                moved = means.copy()
                moved[i] += other_share(len(cell.runs)) * (other - means[i])
                yield (ranks(moved) - measured) / len(board.tasks)


def _drawn_ranks(
    board: Board, labels: Sequence[str], generator: np.random.Generator, resamples: int
) -> Scores:
    """Mean ranks of resampled runs, `(resamples, labels)`."""
    drawn = [
        np.stack([_drawn_means(board.scores[t, n], generator, resamples) for n in labels], axis=-1)
        for t in board.tasks
    ]
    return np.asarray(ranks(np.stack(drawn, axis=1)).mean(axis=1))


def _drawn_means(score: TaskScore, generator: np.random.Generator, resamples: int) -> Scores:
    """Means of resampled runs, `(resamples,)`."""
    if len(score.runs) < 2:
        return np.full(resamples, score.mean)
    picks = generator.integers(len(score.runs), size=(resamples, len(score.runs)))
    return np.asarray(np.array(score.runs)[picks].mean(axis=1))
