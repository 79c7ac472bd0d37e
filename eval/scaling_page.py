"""Scores by size on the report's page: a sentence, tables and plots."""

import math
from collections.abc import Iterator, Mapping, Sequence

from tql_offline.errors import listed, numbered
from tql_offline.eval.averages import number_of_tasks
from tql_offline.eval.ended import survivors
from tql_offline.eval.leaderboard import Board
from tql_offline.eval.line_styles import colours_of
from tql_offline.eval.plots import MAX_COLOUR, MAX_PANELS, Line, Panel, short_count
from tql_offline.eval.published import PublishedSize
from tql_offline.eval.report_plots import Key, PlotGroup, draw
from tql_offline.eval.report_tables import (
    Cell,
    Table,
    between,
    cell,
    chance,
    digits_of,
    make_table,
    number_cell,
    spread,
)
from tql_offline.eval.rows import MAX_NAMED, natural
from tql_offline.eval.scaling import Scaling, SizePoint, best_of
from tql_offline.eval.statistics import Estimate
from tql_offline.eval.trends import SIGNIFICANCE, corrected

SIZE_COLUMNS = (
    *("size", "parameters", "runs", "score", "against the smallest", "relative, %"),
    *("last", "last three", "best (oracle)", "updates/s", "hours of updates", "FLOPs of updates"),
)


def scaling_table(scaling: Scaling, percent: bool, is_rate: bool) -> Table:
    """Table of one method by size: over all tasks or, if these have no average, on each.

    Args:
        scaling: the method's scaling.
        percent: whether scores are of the order of 100.
        is_rate: whether they are success rates.
    """
    digits, by_task = digits_of(percent), scaling.by_task
    over = (
        f"by task and size, on {_tasks(scaling)}" if by_task else f"by size, over {_tasks(scaling)}"
    )
    full = full_change(scaling.points, is_rate)
    each = (
        (cell(task), *_size_row(point, digits, full)) for task in by_task for point in by_task[task]
    )
    return make_table(
        f"{scaling.method} {over}: counted score, then the last evaluation, the mean of the last "
        "three, and the best, an oracle chosen by playing",
        (*(("task",) if by_task else ()), *SIZE_COLUMNS),
        each if by_task else (_size_row(point, digits, full) for point in scaling.points),
    )


def _size_row(point: SizePoint, digits: int, full: float) -> tuple[Cell, ...]:
    return (
        cell(point.size),
        number_cell(point.parameters),
        number_cell(point.runs),
        between(point.score, digits),
        between(point.difference, digits, "+"),
        _relative_cell(point.relative, full),
        *(number_cell(value) for value in (point.last, point.last_three, point.best)),
        number_cell(point.updates_per_second),
        number_cell(point.hours),
        flops_cell(point.flops),
    )


def _relative_cell(relative: Estimate, full: float) -> Cell:
    """A relative change in percent, if it has an interval.

    Fieller's upper bound is large where the smallest size's mean may be small. Beyond the change to
    a full score it tells only that it is no bound.
    """
    if not math.isfinite(relative.low):
        return cell("")
    told = between(relative, 0, "+", 100)
    if relative.high <= full:
        return told
    value, low = (f"{100 * bound:+.0f}" for bound in (relative.value, relative.low))
    return Cell(text=f"{value} [{low}, no upper bound of use]", sort=told.sort)


def full_change(points: Sequence[SizePoint], is_rate: bool) -> float:
    """The relative change from the smallest size's score to a full one; infinite if none is full.

    Args:
        points: sizes, smallest first.
        is_rate: whether scores are success rates in percent.
    """
    base = points[0].score.value
    return 100 / base - 1 if is_rate and base > 0 else math.inf


def flops_cell(flops: float) -> Cell:
    """A cell of operations, `1.2P` for 1.2e15; a dash if they were not counted."""
    return cell("") if math.isnan(flops) else Cell(text=short_count(flops), sort=flops)


def printed_table(printed: Sequence[PublishedSize]) -> Table:
    """Table of a paper's scores, methods by sizes."""
    found = {(point.method, point.parameters): point for point in printed}
    methods = dict.fromkeys(point.method for point in printed)
    sizes = sorted({point.parameters for point in printed})
    rows = (
        (cell(method), *(_printed_cell(found.get((method, size))) for size in sizes))
        for method in methods
    )
    return make_table(
        f"Reported by size: {printed[0].source}. {printed[0].note} What ± is: docs/claim.md",
        ("method", *(f"{size / 1e6:g}M" for size in sizes)),
        rows,
    )


def _printed_cell(point: PublishedSize | None) -> Cell:
    if point is None:
        return cell("")
    return Cell(text=spread(point.mean, point.sd, 0), sort=point.mean)


# In a sentence.


def trend_sentences(
    scalings: Sequence[Scaling], digits: int = 1, *, brief: bool = False
) -> Iterator[str]:
    """Yield whether a bigger critic helped each method of a board, as far as the runs can tell.

    Several methods are several tests: Holm's correction keeps the chance of any false claim at 5 %.
    """
    tests = corrected([scaling.trend for scaling in scalings])
    for scaling, (p, least_p) in zip(scalings, tests, strict=True):
        yield trend_sentence(scaling, p, least_p, len(scalings), digits, brief=brief)


def trend_sentence(
    scaling: Scaling, p: float, least_p: float, tests: int, digits: int, *, brief: bool = False
) -> str:
    """The answer for one method.

    Args:
        scaling: the method's scaling.
        p: two-sided p-value, corrected for `tests` methods.
        least_p: the same if this method's scores were in perfect order.
        tests: number of methods tested.
        digits: decimals of a difference of scores.
        brief: whether to leave out the evidence and the tasks that disagree.
    """
    first, last = scaling.points[0], scaling.points[-1]
    evidence = "" if brief else f" ({_evidence(scaling, p, tests)})"
    return (
        f"{scaling.method}, {first.size} to {last.size}, over {_tasks(scaling)}: "
        f"{_confounded(scaling)}{_answer(scaling, p, least_p, tests)}{evidence}; "
        f"{_change(scaling, tests, digits)}.{survivors(scaling.lost)}"
        f"{_enough(scaling, least_p, tests)}"
        f"{'' if brief else _within(scaling, digits)}"
    )


def _change(scaling: Scaling, tests: int, digits: int) -> str:
    """The largest size against the smallest: the difference or, without an average, task counts."""
    first, last = scaling.points[0], scaling.points[-1]
    if not scaling.by_task:
        is_uncorrected = tests > 1 and not math.isnan(last.difference.low)
        single = f" (not corrected for {tests} methods)" if is_uncorrected else ""
        difference = between(last.difference, digits, "+").text
        return f"{last.size} against {first.size}: {difference}{single}"
    less = f", and less on {scaling.fallen}" if scaling.fallen else ""
    return (
        f"{last.size} scores more than {first.size} on {scaling.risen} of "
        f"{number_of_tasks(scaling.tasks)}{less}"
    )


def _evidence(scaling: Scaling, p: float, tests: int) -> str:
    correction = f", Holm-corrected for {tests} methods" if tests > 1 else ""
    return (
        "Jonckheere-Terpstra test by permutation within tasks: concordance "
        f"{scaling.trend.concordance:+.2f}, two-sided {chance(p)}{correction}"
    )


def _confounded(scaling: Scaling) -> str:
    """What else differs between the sizes, stated before any answer."""
    if not scaling.differing:
        return ""
    names = listed(scaling.differing, MAX_NAMED)
    return f"these runs also differ in {names}, so size is not the only difference: "


def _answer(scaling: Scaling, p: float, least_p: float, tests: int) -> str:
    trend = scaling.trend
    if scaling.alike:
        return "all runs of a task score the same, so no effect of size can show"
    if least_p >= SIGNIFICANCE:
        are_few = trend.fewest_runs < trend.runs_enough(tests)
        which = "too few runs" if are_few else "too many equal scores"
        return f"{which} to show a trend with size, whatever their order"
    if p < SIGNIFICANCE:
        rises = trend.p_rise < trend.p_fall
        return f"scores {'rise' if rises else 'fall'} with size{_doubt(scaling, rises)}"
    return "no trend with size is shown"


def _doubt(scaling: Scaling, rises: bool) -> str:
    """What a claim by the ranks of runs must not hide about the means."""
    first, last = scaling.points[0], scaling.points[-1]
    change = last.difference
    if (change.value if rises else -change.value) <= 0:
        higher = "higher" if rises else "lower"
        return (
            f" by the ranks of runs, though {last.size}'s mean is not {higher} than {first.size}'s"
        )
    if change.low <= 0 <= change.high:
        return " by the ranks of runs, though the interval of the means' difference holds 0"
    more, less = (scaling.risen, scaling.fallen) if rises else (scaling.fallen, scaling.risen)
    if less > more:
        lower = "lower" if rises else "higher"
        return f" by the ranks of runs, though {last.size}'s mean is {lower} on more tasks"
    return ""


def _enough(scaling: Scaling, least_p: float, tests: int) -> str:
    """How many runs could show a trend, where these are too few."""
    runs, each = scaling.trend.runs_enough(tests), " on each task" if len(scaling.tasks) > 1 else ""
    if scaling.alike or least_p < SIGNIFICANCE or scaling.trend.fewest_runs >= runs:
        return ""
    return f" A trend can show from {runs} runs of each size{each} on."


def _within(scaling: Scaling, digits: int) -> str:
    """What a trend over all tasks and sizes may hide: tasks that disagree, a size in between."""
    if scaling.by_task:
        return _best_within_tasks(scaling)
    said = ""
    if scaling.risen and scaling.fallen:
        said = f" Scores rise on {scaling.risen} of these tasks and fall on {scaling.fallen}."
    best, (first, *_, last) = scaling.best, scaling.points
    if best.size not in (first.size, last.size):
        # No interval: it would be of a size that these same scores chose.
        gain = between(Estimate(value=best.difference.value), digits, "+").text
        said += (
            f" The best size by these scores is {best.size}: {gain} against {first.size}, part of "
            "which may be luck, as these scores chose it."
        )
    return said


def _best_within_tasks(scaling: Scaling) -> str:
    inner = {point.size for point in scaling.points[1:-1]}
    count = sum(best_of(points).size in inner for points in scaling.by_task.values())
    tasks = numbered(count, "task", "tasks")
    return f" A size in between scores best on {tasks}." if count else ""


def _tasks(scaling: Scaling) -> str:
    count = len(scaling.tasks)
    several = f"the {number_of_tasks(scaling.tasks)} that these sizes share"
    tasks = scaling.tasks[0] if count == 1 else several
    if not scaling.left_out:
        return tasks
    sizes = f"{', '.join(scaling.left_out)} {'lack' if len(scaling.left_out) > 1 else 'lacks'} "
    return f"{tasks} ({sizes}{'it' if count == 1 else 'some'})"


# In a figure.

Sizes = Sequence[tuple[int, str, Sequence[SizePoint]]]
"""Colour, method and sizes of each line of a panel."""


def scaling_plots(scalings: Sequence[Scaling], anchor: str, board: Board) -> PlotGroup:
    """Plots of score against parameters and against operations, a line per method.

    Where scores of unlike tasks have no common unit, each task has a panel, by parameters alone.
    """
    shown = scalings[:MAX_COLOUR]
    colours = colours_of(board, [scaling.method for scaling in shown])
    tasks = sorted({task for scaling in shown for task in scaling.tasks}, key=natural)
    if board.averages(tasks):
        panels, note = _average_panels(shown, board, colours)
    else:
        panels, note = _task_panels(shown, board, tasks, colours)
    return PlotGroup(
        title="Score by size",
        note=f"Bands: 95 % intervals over runs.{note}",
        keys=tuple(
            Key(label=scaling.method, colour=colours[scaling.method], style="point")
            for scaling in shown
        ),
        plots=draw(panels, f"{anchor}-scaling"),
    )


def _average_panels(
    shown: Sequence[Scaling], board: Board, colours: Mapping[str, int]
) -> tuple[list[tuple[str, Panel]], str]:
    """Panels of scores over all tasks, and what to note about them."""
    unit = board.unit.capitalize()
    lines = [(colours[s.method], s.method, s.points) for s in shown]
    panels = [(f"{unit}, by parameters", _scaling_panel(lines, board, "parameters"))]
    if not shown or not all(point.flops > 0 for s in shown for point in s.points):
        return panels, ""
    panels.append((f"{unit}, by FLOPs", _scaling_panel(lines, board, "flops")))
    return panels, (
        " FLOPs: matrix-product operations in all of a run's updates, counted once "
        "(a multiply-add is two); evaluations are not included."
    )


def _task_panels(
    shown: Sequence[Scaling], board: Board, tasks: Sequence[str], colours: Mapping[str, int]
) -> tuple[list[tuple[str, Panel]], str]:
    panels = []
    for task in tasks[:MAX_PANELS]:
        lines = [(colours[s.method], s.method, s.on(task)) for s in shown if s.on(task)]
        panels.append(
            (f"{task}: return, by parameters", _scaling_panel(lines, board, "parameters"))
        )
    more = len(tasks) - len(panels)
    rest = numbered(more, "more task is", "more tasks are")
    return panels, f" {rest} in the table." if more else ""


_COSTS = {"parameters": "critic parameters", "flops": "FLOPs of a run's updates"}


def _scaling_panel(lines: Sizes, board: Board, cost: str) -> Panel:
    ticks = {float(getattr(point, cost)) for *_, points in lines for point in points}
    return Panel(
        title=board.unit.capitalize(),
        lines=tuple(_scaling_line(*line, cost) for line in lines),
        y_limits=(0, 100) if board.may_be_rate else None,
        x_label=_COSTS[cost],
        x_ticks=tuple(sorted(ticks)),
    )


def _scaling_line(colour: int, method: str, points: Sequence[SizePoint], cost: str) -> Line:
    return Line(
        label=method,
        x=[float(getattr(point, cost)) for point in points],
        y=[point.score.value for point in points],
        interval=([p.score.low for p in points], [p.score.high for p in points]),
        colour=colour,
        points=True,
    )
