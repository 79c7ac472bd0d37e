"""Learning curves of a board: each column's mean score over its runs, by update."""

from collections.abc import Iterator, Mapping, Sequence

from tql_offline.errors import numbered
from tql_offline.eval.leaderboard import Board, by_cell
from tql_offline.eval.line_styles import LineStyle, keys_of, line_styles
from tql_offline.eval.plots import MAX_COLOUR, MAX_PANELS, Line, Panel
from tql_offline.eval.report_plots import PlotGroup, draw
from tql_offline.eval.statistics import estimate_mean


def learning_plots(
    board: Board, anchor: str, unit: str, limits: tuple[float, float] | None
) -> PlotGroup:
    """A panel per task, with a line per column: its runs' mean and, of several, its interval.

    A line has the updates at which all runs of its cell were scored. The last score is shown
    whatever the protocol counts.

    Args:
        board: comparable runs.
        anchor: prefix of the plots' ids.
        unit: the unit of a score, in words.
        limits: least and greatest score, if scores have them.
    """
    labels = _best_first(board)[:MAX_COLOUR]
    styles = line_styles(board, labels)
    cells = _cells(board, labels)
    tasks = [task for task in board.tasks if any(key[0] == task for key in cells)]
    panels = [
        (
            task,
            Panel(
                title=unit.capitalize(),
                lines=tuple(_lines(cells, task, styles, board.is_rate)),
                y_limits=limits,
            ),
        )
        for task in tasks[:MAX_PANELS]
    ]
    more = len(tasks) - len(panels)
    left_out = len(board.measured) - len(labels)
    notes = [
        "Mean score of the runs of a method by update; bands: 95 % intervals over runs.",
        *([f"The {MAX_COLOUR} with the best scores of {len(board.measured)}."] if left_out else []),
        *([f"{numbered(more, 'more task', 'more tasks')} not drawn."] if more else []),
    ]
    return PlotGroup(
        title="Learning curves",
        note=" ".join(notes),
        keys=keys_of(styles),
        plots=draw(panels, f"{anchor}-learning"),
    )


def _best_first(board: Board) -> list[str]:
    """Columns of runs, first those on most tasks and, of these, those with the best scores."""

    def worth(label: str) -> tuple[int, float]:
        means = [s.mean for (_, other), s in board.scores.items() if other == label]
        return len(means), sum(means)

    return sorted(board.measured, key=worth, reverse=True)


def _cells(
    board: Board, labels: Sequence[str]
) -> dict[tuple[str, str], dict[int, tuple[float, ...]]]:
    """Of each task and column, the runs' scores at each update that all of them have, if several.

    A single score is no curve.
    """
    found = {}
    for key, its in by_cell(run for run in board.runs if run.label in labels).items():
        shared = sorted(set.intersection(*(set(run.curve) for run in its)))
        if len(shared) > 1:
            found[key] = {step: tuple(run.curve[step] for run in its) for step in shared}
    return found


def _lines(
    cells: Mapping[tuple[str, str], Mapping[int, tuple[float, ...]]],
    task: str,
    styles: Mapping[str, LineStyle],
    is_rate: bool,
) -> Iterator[Line]:
    for label, style in styles.items():
        if (scores := cells.get((task, label))) is None:
            continue
        means = [estimate_mean([runs], is_rate=is_rate) for runs in scores.values()]
        yield Line(
            label=label,
            x=list(scores),
            y=[mean.value for mean in means],
            interval=([mean.low for mean in means], [mean.high for mean in means]),
            colour=style.colour,
            style=style.line,
            points=True,
        )
