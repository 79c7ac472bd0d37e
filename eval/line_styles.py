"""Which colour and line a board's columns have in its plots."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from tql_offline.eval.leaderboard import Board
from tql_offline.eval.plots import MAX_COLOUR
from tql_offline.eval.report_plots import Key

_BY_SIZE: tuple[Literal["solid", "dashed", "dotted"], ...] = ("solid", "dashed", "dotted")
"""Lines of a method's sizes, from the largest."""


class LineStyle(NamedTuple):
    """How a column is drawn."""

    colour: int
    line: Literal["solid", "dashed", "dotted"]


def keys_of(styles: Mapping[str, LineStyle]) -> tuple[Key, ...]:
    """The legend: markers or, where columns share colours, lines."""
    are_alone = len({style.colour for style in styles.values()}) == len(styles)
    return tuple(
        Key(label=label, colour=style.colour, style="point" if are_alone else style.line)
        for label, style in styles.items()
    )


def colours_of(board: Board, methods: Sequence[str]) -> dict[str, int]:
    """Colours, from 1, of the methods that are drawn, at most `MAX_COLOUR`.

    Where there are no more methods on the board, each has the same colour in all plots.
    """
    every = tuple(dict.fromkeys(run.method for run in board.runs))
    ordered = every if len(every) <= MAX_COLOUR else dict.fromkeys(methods)
    return {method: colour for colour, method in enumerate(ordered, start=1)}


def line_styles(board: Board, labels: Sequence[str]) -> dict[str, LineStyle]:
    """How some columns of runs are drawn: by method in colour and by size in line, if that tells.

    Where it does not, because there are more methods than colours or more sizes than lines, each
    column has a colour of its own. A board of no more columns than colours has one answer for all
    its plots.

    Args:
        board: the board.
        labels: its columns that are drawn, at most `MAX_COLOUR`.
    """
    among = board.measured if len(board.measured) <= MAX_COLOUR else tuple(labels)
    styles = _by_method_and_size(board, among)
    if len(set(styles.values())) < len(among):
        styles = {label: LineStyle(i, "solid") for i, label in enumerate(among, start=1)}
    return {label: styles[label] for label in labels}


def _by_method_and_size(board: Board, labels: Sequence[str]) -> dict[str, LineStyle]:
    methods = {run.label: run.method for run in board.runs}
    sizes = {run.label: run.parameters or 0 for run in board.runs}
    colours = colours_of(board, [methods[label] for label in labels])
    styles = {}
    for label in labels:
        its = [other for other in methods if methods[other] == methods[label]]
        place = sorted(its, key=lambda other: -sizes[other]).index(label)
        line = _BY_SIZE[min(place, len(_BY_SIZE) - 1)]
        styles[label] = LineStyle(colours[methods[label]], line)
    return styles
