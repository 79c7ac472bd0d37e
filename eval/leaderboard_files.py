"""Boards as files for others to read: CSV, JSON and LaTeX."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tql_offline.eval.averages import average, domain_title, domains
from tql_offline.eval.leaderboard import Board, TaskScore, by_cell
from tql_offline.eval.leaderboard_page import BoardSection, average_table, score_table
from tql_offline.eval.measured import Measured, Setting
from tql_offline.eval.report_tables import NONE, Cell, cell
from tql_offline.eval.rows import natural, tasks_of
from tql_offline.version import __version__

SCHEMA = "tql-offline/leaderboard/1"
RECORDED = ("dataset_sha256", "env_id", "updates", "tql_offline")
"""Facts about the runs of a score that are listed, with every value they take."""
COLUMNS = (
    *(*Setting._fields, "task", "method", "origin"),
    *("runs", "ended", "score_unit", "mean", "sd", "low", "high", "bold"),
    *RECORDED,
)


def as_csv(sections: Sequence[BoardSection]) -> str:
    """A CSV file with one line per task and method, over all boards."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for section in sections:
        for row in _rows(section.board):
            writer.writerow({name: _csv_text(row[name]) for name in COLUMNS})
    return out.getvalue()


def _csv_text(value: Any) -> Any:
    """Join several values, and quote foreign text that a spreadsheet would take for a formula."""
    if isinstance(value, list):
        value = ";".join(map(str, value))
    if isinstance(value, str) and re.match(r"[=+\-@\t\r]", value):
        return f"'{value}"
    return "" if value is None else value


def as_json(sections: Sequence[BoardSection]) -> str:
    """Everything that the page's boards show; NaN is null."""
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "boards": [_board(section) for section in sections],
    }
    return json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _board(section: BoardSection) -> dict[str, Any]:
    board = section.board
    groups = {**domains(board), "all": board.tasks} if board.averages(board.tasks) else {}
    return {
        "setting": board.setting._asdict(),
        "scores": [_score(row) for row in _rows(board)],
        "averages": [
            {
                "domain": name,
                "tasks": len(tasks_of(tasks)),
                "method": label,
                "mean": found[0],
                "sd": found[1],
            }
            for name, tasks in groups.items()
            for label in board.labels
            if (found := average(board, label, tasks)) is not None
        ],
        "summaries": [asdict(summary) for summary in section.summaries],
        "scaling": [asdict(scaling) for scaling in section.scalings],
        "differences": [asdict(difference) for difference in section.comparisons.found],
        "notes": list(board.notes),
    }


def _score(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in Setting._fields}


def _rows(board: Board) -> Iterable[dict[str, Any]]:
    runs, ended = by_cell(board.runs), by_cell(board.ended)
    for task in board.tasks:
        for label, bold in zip(board.labels, board.bold(task), strict=True):
            score = board.scores.get((task, label))
            if score is not None:
                origin = "measured" if label in board.measured else "reported"
                name = label.removesuffix(" (reported)") if origin == "reported" else label
                facts = {"task": task, "method": name, "origin": origin, "bold": bold}
                number = len(ended.get((task, label), ())) if origin == "measured" else None
                yield _row(board, facts, score, runs.get((task, label), ()), number)
        for method in board.imported_methods:
            if (score := board.imported.get((task, method))) is not None:
                facts = {"task": task, "method": method, "origin": "imported", "bold": False}
                yield _row(board, facts, score, (), None)
    without = TaskScore(runs=(), mean=math.nan, sd=math.nan)
    lost = ended.keys() - board.scores.keys()  # all runs of a cell
    for task, label in sorted(lost, key=lambda cell: tuple(map(natural, cell))):
        facts = {"task": task, "method": label, "origin": "measured", "bold": False}
        yield _row(board, facts, without, ended[task, label], len(ended[task, label]))


def _row(
    board: Board,
    facts: dict[str, Any],
    score: TaskScore,
    runs: Sequence[Measured],
    ended: int | None,
) -> dict[str, Any]:
    """A cell with what is recorded of its runs, and how many ended without a score, if known."""
    facts = {**board.setting._asdict(), **facts, "ended": ended, "score_unit": board.unit}
    return facts | _recorded(runs) | _numbers(board, score, is_ours=ended is not None)


def _recorded(runs: Sequence[Measured]) -> dict[str, list[Any]]:
    """Distinct values of the runs of a cell, without those that were not recorded."""
    return {
        name: [value for value in dict.fromkeys(getattr(run, name) for run in runs) if value]
        for name in RECORDED
    }


def _numbers(board: Board, score: TaskScore, *, is_ours: bool) -> dict[str, Any]:
    """A cell's statistics; its runs are None where a paper or file does not tell them."""
    interval = board.interval(score)
    return {
        "runs": len(score.seeds) or (0 if is_ours else None),
        "mean": _finite(score.mean),
        "sd": _finite(score.sd),
        "low": _finite(interval.low),
        "high": _finite(interval.high),
        "scores": _finite(score.seeds),
    }


def _finite(value: Any) -> Any:
    """The value as files give it: floats to twelve figures, and None for one that is no number."""
    if isinstance(value, float):
        # A binary 100 × 0.55 is 55.00000000000001.
        return float(f"{value:.12g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def as_latex(sections: Sequence[BoardSection]) -> str:
    """A `tabular` per board, for LaTeX's `input`; it needs the package booktabs."""
    return "\n".join(_tabular(section.board) for section in sections)


def _tabular(board: Board) -> str:
    scores = score_table(board)
    rows = dict(zip(board.tasks, scores.rows, strict=True))
    groups = {domain_title(name, tasks): tasks for name, tasks in domains(board).items()}
    lines = [
        *(f"% {escape_latex(text)}" for text in (str(board.setting), *board.notes)),
        rf"\begin{{tabular}}{{l{'r' * (len(scores.columns) - 1)}}}",
        r"\toprule",
        _latex_row(cell(name) for name in scores.columns),
        r"\midrule",
        *(_latex_row(rows[task]) for tasks in groups.values() for task in tasks),
    ]
    if board.averages(board.tasks) and len(board.tasks) > 1:
        head = rf"\multicolumn{{{len(scores.columns)}}}{{l}}{{averages over}} \\"
        beside = [Cell(text=NONE)] * len(board.imported_methods)
        alone = {title for title, tasks in groups.items() if len(tasks) == 1}  # its own average
        found = (row for row in average_table(board).rows if row[0].text not in alone)
        lines += [r"\midrule", head, *(_latex_row((*row, *beside)) for row in found)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_row(cells: Iterable[Cell]) -> str:
    return rf"{' & '.join(map(_latex_cell, cells))} \\"


def _latex_cell(cell: Cell) -> str:
    text = "--" if cell.text == NONE else escape_latex(cell.text).replace(" ± ", r" $\pm$ ")
    return rf"\textbf{{{text}}}" if cell.bold else text


_LATEX = {
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def escape_latex(text: str) -> str:
    r"""Escape foreign text so that LaTeX prints it literally, on one line.

    >>> print(escape_latex("a_b \\input{x}\n%"))
    a\_b \textbackslash{}input\{x\} \%
    """
    line = re.sub(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", " ", text)
    return "".join(_LATEX.get(character, character) for character in line)
