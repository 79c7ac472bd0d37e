"""Boards as files for others to read: CSV, JSON and LaTeX."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from tql_offline.eval.averages import average, domain_title, domains, number_of_tasks
from tql_offline.eval.leaderboard import Board, TaskScore, by_cell, imported_label
from tql_offline.eval.leaderboard_page import BoardSection, pair_decimals, row_decimals
from tql_offline.eval.measured import Measured, Setting
from tql_offline.eval.report_tables import spread
from tql_offline.eval.rows import tasks_of
from tql_offline.version import __version__

SCHEMA = "tql-offline/leaderboard/1"
RECORDED = ("dataset_sha256", "env_id", "updates", "tql_offline")
"""Facts about the runs of a score that are listed, with every value they take."""
COLUMNS = (
    *(*Setting._fields, "task", "method", "origin"),
    *("runs", "score_unit", "mean", "sd", "low", "high", "bold"),
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
    runs = by_cell(board.runs)
    unit = board.unit
    for task in board.tasks:
        for label, bold in zip(board.labels, board.bold(task), strict=True):
            score = board.scores.get((task, label))
            if score is not None:
                origin = "measured" if label in board.measured else "reported"
                name = label.removesuffix(" (reported)") if origin == "reported" else label
                facts = {"task": task, "method": name, "origin": origin, "bold": bold}
                facts |= {"score_unit": unit, **_recorded(runs.get((task, label), ()))}
                yield {**board.setting._asdict(), **facts, **_numbers(board, score)}
        for method in board.imported_methods:
            if (score := board.imported.get((task, method))) is not None:
                facts = {"task": task, "method": method, "origin": "imported", "bold": False}
                facts |= {"score_unit": unit, **_recorded(())}
                yield {**board.setting._asdict(), **facts, **_numbers(board, score)}


def _recorded(runs: Sequence[Measured]) -> dict[str, list[Any]]:
    """Distinct values of the runs of a cell, without those that were not recorded."""
    return {
        name: [value for value in dict.fromkeys(getattr(run, name) for run in runs) if value]
        for name in RECORDED
    }


def _numbers(board: Board, score: TaskScore) -> dict[str, Any]:
    interval = board.interval(score)
    return {
        "runs": len(score.seeds) or None,
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
    labels = (*board.labels, *map(imported_label, board.imported_methods))
    head = " & ".join(map(escape_latex, ("task", *labels)))
    lines = [
        *(f"% {escape_latex(text)}" for text in (str(board.setting), *board.notes)),
        rf"\begin{{tabular}}{{l{'r' * len(labels)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    for tasks in domains(board).values():
        lines += [_latex_row(board, task) for task in tasks]
    if board.averages(board.tasks) and len(board.tasks) > 1:
        lines += [r"\midrule", rf"\multicolumn{{{1 + len(labels)}}}{{l}}{{averages over}} \\"]
        lines += [_latex_average(board, name, tasks) for name, tasks in _groups(board).items()]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _groups(board: Board) -> dict[str, tuple[str, ...]]:
    """Domains of several rows, and all rows if there are others; one row is its own average."""
    found = {domain_title(name, rows): rows for name, rows in domains(board).items()}
    groups = {title: rows for title, rows in found.items() if len(rows) > 1}
    return (
        groups
        if len(found) == 1
        else {**groups, f"all {number_of_tasks(board.tasks)}": board.tasks}
    )


def _latex_row(board: Board, task: str) -> str:
    cells, decimals = [escape_latex(task)], row_decimals(board, task)
    for label, bold in zip(board.labels, board.bold(task), strict=True):
        score = board.scores.get((task, label))
        text = _latex_score(score, decimals)
        cells.append(rf"\textbf{{{text}}}" if bold and score is not None else text)
    beside = (board.imported.get((task, method)) for method in board.imported_methods)
    cells += [_latex_score(score, decimals) for score in beside]
    return rf"{' & '.join(cells)} \\"


def _latex_score(score: TaskScore | None, decimals: int | None) -> str:
    if score is None:
        return "--"
    number = f" ({len(score.seeds)})" if score.seeds else ""
    return f"{_latex_spread(score.mean, score.sd, decimals)}{number}"


def _latex_average(board: Board, name: str, tasks: Sequence[str]) -> str:
    found = [average(board, label, tasks) for label in board.labels]
    decimals = pair_decimals(board, found)
    cells = ["--" if pair is None else _latex_spread(*pair, decimals) for pair in found]
    cells += ["--"] * len(board.imported_methods)
    return rf"{' & '.join([escape_latex(name), *cells])} \\"


def _latex_spread(mean: float, sd: float, decimals: int | None) -> str:
    return spread(mean, sd, decimals).replace(" ± ", r" $\pm$ ")


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
