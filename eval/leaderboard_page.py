"""Boards as tables, sentences and plots on the report's page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tql_offline.eval.averages import (
    Summary,
    average,
    domain_title,
    domains,
    number_of_tasks,
    summaries,
)
from tql_offline.eval.claim import claim_sentences
from tql_offline.eval.differences import Comparisons, compare_methods
from tql_offline.eval.differences_page import difference_answers, difference_notes, difference_table
from tql_offline.eval.ended import without_survivors
from tql_offline.eval.leaderboard import Board, TaskScore, imported_label
from tql_offline.eval.leaderboard_notes import (
    below_behaviour,
    formulas,
    left_out,
    shortfall,
    unlike_devices,
    unlike_updates,
    without_average,
    without_scaling,
)
from tql_offline.eval.learning_curves import learning_plots
from tql_offline.eval.line_styles import LineStyle, keys_of, line_styles
from tql_offline.eval.plots import MAX_COLOUR, Line, Panel
from tql_offline.eval.published import PublishedSize
from tql_offline.eval.report_plots import PlotGroup, draw
from tql_offline.eval.report_tables import (
    NONE,
    Cell,
    Table,
    between,
    cell,
    decimals_of,
    digits_of,
    make_table,
    number_cell,
    plain,
    spread,
)
from tql_offline.eval.scaling import Scaling, scaling_of
from tql_offline.eval.scaling_page import (
    printed_table,
    scaling_plots,
    scaling_table,
    trend_sentences,
)
from tql_offline.eval.statistics import (
    checked_table,
    estimate_improvement,
    estimate_profile,
    mean_of_tasks,
)

MAX_COMPARED = 8
"""Most columns of runs for which every pair is compared."""


@dataclass(frozen=True, kw_only=True)
class BoardPart:
    """A part of a board's section, with a heading of its own.

    Attributes:
        title: the heading.
        tables: sortable tables, in order; those without rows are left out.
        plots: plots before the tables; their own title is not shown.
    """

    title: str
    tables: tuple[Table, ...] = ()
    plots: PlotGroup | None = None


@dataclass(frozen=True, kw_only=True)
class BoardSection:
    """The page's section on one board.

    Attributes:
        title: the board's setting.
        parts: what has anything to show of: scores by size, by task, over all tasks, differences
            between methods of equal size, learning curves.
        answers: whether a bigger critic helped, or why that is not known, one short sentence per
            method; then whether methods differ, one per size.
        evidence: the same with the tests that it rests on.
        notes: further sentences on what the scores say.
        board: the board that the section was made from.
        summaries: summaries of its complete columns.
        scalings: scalings of its methods with several sizes.
        comparisons: differences between its methods of equal size.
    """

    title: str
    parts: tuple[BoardPart, ...]
    answers: tuple[str, ...]
    evidence: tuple[str, ...]
    notes: tuple[str, ...]
    board: Board
    summaries: tuple[Summary, ...]
    scalings: tuple[Scaling, ...]
    comparisons: Comparisons

    @property
    def sentences(self) -> tuple[str, ...]:
        """The evidence, then the notes."""
        return (*self.evidence, *self.notes)

    @property
    def is_alone(self) -> bool:
        """Whether its one run has nothing to be compared with."""
        board = self.board
        return len(board.runs) == 1 and not board.reported and not board.imported


def board_section(
    board: Board, anchor: str, printed: Sequence[PublishedSize] = (), baseline: str = ""
) -> BoardSection:
    """Everything about one board; the same board gives the same section.

    Args:
        board: comparable scores.
        anchor: prefix of the ids in its plots.
        printed: a paper's scores by size, shown alongside.
        baseline: the method that others are compared with; empty to compare each with each.
    """
    generator = np.random.default_rng(0)
    core = board.core()
    overall = summaries(core, generator)
    scalings = scaling_of(board, generator)
    comparisons = compare_methods(board, generator, baseline)
    methods = len({run.method for run in board.runs})
    digits = digits_of(board.is_percent)
    unknown = (*without_scaling(board, scalings), *without_survivors(board.lost))
    differences = tuple(difference_answers(comparisons, methods, digits))
    parts = (
        _by_size(scalings, core, anchor, printed),
        BoardPart(title="Score by task", tables=(score_table(board), average_table(board))),
        _over_all(core, overall, anchor, is_whole=core.tasks == board.tasks),
        BoardPart(
            title="Methods of equal size",
            tables=(difference_table(comparisons, board.unit, digits),),
        ),
        BoardPart(
            title="Learning curves", plots=learning_plots(core, anchor, board.unit, _limits(core))
        ),
    )
    return BoardSection(
        title=str(board.setting),
        parts=tuple(filter(None, map(_with_content, parts))),
        answers=(*trend_sentences(scalings, digits, brief=True), *unknown, *differences),
        evidence=(*trend_sentences(scalings, digits), *unknown, *differences),
        notes=(
            *difference_notes(comparisons, methods),
            *without_average(board, scalings),
            *unlike_updates(board),
            *unlike_devices(scalings, board),
            *below_behaviour(board),
            *claim_sentences(board, printed),
            *left_out(board, core),
            *shortfall(board),
            *formulas(board),
            *board.notes,
        ),
        board=board,
        summaries=tuple(overall),
        scalings=tuple(scalings),
        comparisons=comparisons,
    )


def _by_size(
    scalings: Sequence[Scaling], board: Board, anchor: str, printed: Sequence[PublishedSize]
) -> BoardPart:
    tables = [scaling_table(scaling, board.is_percent, board.is_rate) for scaling in scalings]
    if scalings and printed:
        tables.append(printed_table(printed))
    return BoardPart(
        title="Score by size",
        tables=tuple(tables),
        plots=scaling_plots(scalings, anchor, board),
    )


def _over_all(
    board: Board, overall: Sequence[Summary], anchor: str, *, is_whole: bool
) -> BoardPart:
    """The part on a board without holes."""
    return BoardPart(
        title="Methods over all tasks",
        tables=(summary_table(board, overall, is_whole), improvement_table(board, is_whole)),
        plots=profile_plots(board, anchor) if board.averages(board.tasks) else None,
    )


def _with_content(part: BoardPart) -> BoardPart | None:
    """A part without tables that have no rows and plots that have no panels, if any are left."""
    plots = part.plots if part.plots and part.plots.plots else None
    tables = tuple(table for table in part.tables if table.rows)
    return replace(part, tables=tables, plots=plots) if tables or plots else None


def _limits(board: Board) -> tuple[float, float] | None:
    return (0.0, 100.0) if board.may_be_rate else None


# Numbers.


def score_cell(score: TaskScore | None, bold: bool, decimals: int | None) -> Cell:
    """A cell with mean ± standard deviation over runs and, if known, the number of runs."""
    if score is None:
        return Cell(text=NONE)
    text = spread(score.mean, score.sd, decimals)
    if score.seeds:
        text += f" ({len(score.seeds)})"
    return Cell(text=text, sort=score.mean, bold=bold)


# Tables.


def score_table(board: Board) -> Table:
    """Table of scores, tasks by methods."""
    rows = []
    for task in board.tasks:
        marks = zip(board.labels, board.bold(task), strict=True)
        decimals = row_decimals(board, task)
        cells = (score_cell(board.scores.get((task, n)), mark, decimals) for n, mark in marks)
        beside = (
            score_cell(board.imported.get((task, method)), False, decimals)
            for method in board.imported_methods
        )
        rows.append((cell(task), *cells, *beside))
    aside = ", imported scores aside" if board.imported else ""
    return make_table(
        f"Score by task, {board.unit}: mean ± standard deviation over runs (number of "
        f"runs); bold: at least {_bold_limit(board)}, unless the row's are all equal{aside}",
        ("task", *board.labels, *map(imported_label, board.imported_methods)),
        rows,
    )


def row_decimals(board: Board, task: str) -> int | None:
    """Decimals of a row's scores, the imported ones' too."""
    own = (board.scores.get((task, label)) for label in board.labels)
    beside = (board.imported.get((task, method)) for method in board.imported_methods)
    return pair_decimals(board, [(s.mean, s.sd) for s in (*own, *beside) if s])


def pair_decimals(board: Board, pairs: Iterable[tuple[float, float] | None]) -> int | None:
    """Decimals of means and standard deviations printed side by side; None is an empty cell."""
    return decimals_of((n for pair in pairs if pair for n in pair), board.decimals)


def _bold_limit(board: Board) -> str:
    """The least bold score: by its distance from the best where that may be negative."""
    if board.is_rate:
        return f"{100 * board.fraction:.0f} % of the row's best"
    return f"the row's best less {100 * (1 - board.fraction):.0f} % of its size"


def average_table(board: Board) -> Table:
    """Table of means over the tasks of each domain and over all, if these are meaningful."""
    found_in = domains(board) if board.averages(board.tasks) else {}
    groups = {domain_title(name, tasks): tasks for name, tasks in found_in.items()}
    if len(groups) > 1:
        groups[f"all {number_of_tasks(board.tasks)}"] = board.tasks
    rows = []
    for name, tasks in groups.items():
        found = [average(board, label, tasks) for label in board.labels]
        decimals = pair_decimals(board, found)
        cells = (
            Cell(text=NONE) if pair is None else Cell(text=spread(*pair, decimals), sort=pair[0])
            for pair in found
        )
        rows.append((cell(name), *cells))
    caption = "Averages over tasks, of means and of standard deviations (±), as papers print them"
    return make_table(caption, ("domain", *board.labels), rows)


AGGREGATES = ("mean", "IQM", "median", "optimality gap")


def summary_table(board: Board, overall: Sequence[Summary], is_whole: bool) -> Table:
    """Table of the columns with a score on every task: ranks and, if meaningful, aggregates.

    Args:
        board: scores without holes.
        overall: summaries of its columns.
        is_whole: whether the board has all tasks.
    """
    averages = board.averages(board.tasks)
    decimals = decimals_of((n for s in overall for n in (s.mean, s.sd)), board.decimals)
    rows = (
        (
            cell(summary.label),
            between(summary.rank, 2),
            *(_aggregates(summary, board.is_percent, decimals) if averages else ()),
        )
        for summary in overall
    )
    over, how = _over(board, is_whole), "a stratified bootstrap"
    ranked = "; ranks are of methods with runs" if board.reported else ""
    if averages:
        how = f"Student's t for the mean, {how} for the others"
    return make_table(
        f"{over[0].upper()}{over[1:]}, 95 % intervals over training runs{_states(board)}: {how}; "
        f"none where runs are too few{ranked}",
        ("method", "mean rank", *(("as printed", *AGGREGATES) if averages else ())),
        rows,
    )


def _states(board: Board) -> str:
    """Where all runs began their episodes, if recorded seeds show that."""
    runs = [r for r in board.runs if r.label in board.measured and r.task in board.tasks]
    are_own = bool(runs) and all(run.in_own_episodes for run in runs)
    return ", all played from the protocol's own initial states" if are_own else ""


def _over(board: Board, is_whole: bool) -> str:
    """Which tasks a comparison of methods is over."""
    if len(board.tasks) == 1:
        return f"on {board.tasks[0]}"
    tasks = number_of_tasks(board.tasks)
    return f"over all {tasks}" if is_whole else f"over {tasks}"


def _aggregates(summary: Summary, percent: bool, decimals: int | None) -> tuple[Cell, ...]:
    found, digits = summary.estimates, digits_of(percent)
    return (
        Cell(text=spread(summary.mean, summary.sd, decimals), sort=summary.mean),
        *(between(found[n], digits) if n in found else cell("") for n in AGGREGATES),
    )


def improvement_table(board: Board, is_whole: bool) -> Table:
    """Table of the chance that a run of the row's method beats one of the column's.

    It has no rows if too few or too many columns have runs.

    Args:
        board: scores without holes.
        is_whole: whether the board has all tasks.
    """
    labels = [label for label in board.complete() if label in board.measured]
    if not 2 <= len(labels) <= MAX_COMPARED:
        labels = []
    runs = {label: [board.scores[task, label].runs for task in board.tasks] for label in labels}
    rows = []
    for label in labels:
        others = (
            cell("")
            if label == other
            else between(estimate_improvement(runs[label], runs[other]), 2)
            for other in labels
        )
        rows.append((cell(label), *others))
    averaged = "averaged " if len(board.tasks) > 1 else ""
    caption = (
        "Probability that a run of the row outscores one of the column, "
        f"{averaged}{_over(board, is_whole)}, with its 95 % score interval"
    )
    return make_table(caption, ("method", *labels), rows)


def alone_table(boards: Sequence[Board]) -> Table:
    """Table of the runs that are alone on their boards, with what sets each apart."""
    has_ended = any(board.ended for board in boards)
    rows = (
        (
            cell(run.name),
            cell(run.task),
            cell(run.label),
            Cell(text=plain(run.score, board.decimals), sort=run.score),
            cell(board.unit),
            cell(str(board.setting)),
            *([number_cell(len(board.ended))] if has_ended else []),
        )
        for board in boards
        for run in board.runs
    )
    caption = "Scores of one run each"
    columns = ("run", "task", "method", "score", "unit", "protocol, data and versions")
    ended = ("others that ended without a score",) if has_ended else ()
    return make_table(caption, (*columns, *ended), rows)


# Performance profiles.


def profile_plots(board: Board, anchor: str) -> PlotGroup:
    """Plot the fraction of runs above each score, for the best columns with runs on every task."""
    labels = [label for label in board.complete() if label in board.measured]
    found = {label: [board.scores[task, label].runs for task in board.tasks] for label in labels}
    # One run per column gives only a step or two, which the table of scores shows better.
    several = [label for label in labels if sum(map(len, found[label])) > 1]
    best = sorted(several, key=lambda label: -mean_of_tasks(checked_table(found[label])))
    shown = best[:MAX_COLOUR]
    styles = line_styles(board, shown)
    lines = tuple(
        _profile_line(label, found[label], thresholds_of(board, labels), style)
        for label, style in styles.items()
    )
    unit = f"{board.unit}, τ"
    panel = Panel(title="Fraction of runs", lines=lines, y_limits=(0, 1), x_label=unit)
    left_out = len(several) - len(shown)
    rest = f" {left_out} lower-scoring methods are not drawn." if left_out else ""
    return PlotGroup(
        title="Performance profiles",
        note="Fraction of runs that score more than τ, averaged over tasks: a line everywhere "
        "above another is better at every level (Agarwal et al., 2021). Bands: 95 % pointwise "
        f"Wilson intervals over runs.{rest}",
        keys=keys_of(styles),
        plots=draw([("Fraction of runs with a score above τ", panel)], f"{anchor}-profile"),
    )


PROFILE_POINTS = 101


def thresholds_of(board: Board, labels: Sequence[str]) -> list[float]:
    """Scores at which profiles are drawn: 0 to 100 for success, otherwise over the runs' range."""
    runs = [score for t in board.tasks for n in labels for score in board.scores[t, n].runs]
    low, high = _limits(board) or (min(runs), max(runs))
    return [float(value) for value in np.linspace(low, high, PROFILE_POINTS)]


def _profile_line(
    label: str, table: Sequence[Sequence[float]], thresholds: list[float], style: LineStyle
) -> Line:
    profile, low, high = estimate_profile(table, thresholds)
    return Line(
        label=label,
        x=thresholds,
        y=profile.tolist(),
        interval=(low.tolist(), high.tolist()),
        colour=style.colour,
        style=style.line,
        points=True,
    )
