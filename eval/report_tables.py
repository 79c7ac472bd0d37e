"""Tables as both of a report's files show them, and how their numbers are written."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NONE = "—"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One table cell; `sort` orders its column where the text would not, `href` links it."""

    text: str
    sort: float | str | None = None
    href: str | None = None
    bold: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table both files show; columns named in `numeric` are set flush right."""

    caption: str
    columns: tuple[str, ...]
    numeric: frozenset[str]
    rows: tuple[tuple[Cell, ...], ...]


def make_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A table whose columns are numeric where a cell holds a number."""
    held = tuple(tuple(row) for row in rows)
    numeric = {
        name
        for index, name in enumerate(columns)
        if any(isinstance(row[index].sort, float) for row in held)
    }
    return Table(caption=caption, columns=tuple(columns), numeric=frozenset(numeric), rows=held)


def cell(value: Any, href: str | None = None) -> Cell:
    """A text, or a dash where there is none."""
    return Cell(text=as_text(value), href=href)


def number_cell(value: float | int | None) -> Cell:
    """A number, or a dash for None and NaN."""
    if value is None or math.isnan(value):
        return Cell(text=NONE)
    return Cell(text=grouped(value) if isinstance(value, int) else figure(value), sort=float(value))


def as_text(value: Any) -> str:
    """A fact from a run's files as text."""
    if value is None or value == "":
        return NONE
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return "…"


def grouped(value: int) -> str:
    """A count with its thousands apart.

    >>> grouped(1050345).replace(chr(160), "_")
    '1_050_345'
    """
    return f"{value:,}".replace(",", "\u00a0")


def figure(value: float) -> str:
    """A measured number in four significant figures, a dash for NaN.

    >>> figure(-123.456), figure(float("nan"))
    ('-123.5', '—')
    """
    if math.isnan(value):
        return NONE
    return grouped(round(value)) if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
