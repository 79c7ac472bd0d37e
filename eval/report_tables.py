"""Tables as both of a report's files show them, and the format of their numbers."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from tql_offline.eval.statistics import Estimate

NONE = "—"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One table cell; `sort` orders its column if the text would not, `href` links it."""

    text: str
    sort: float | str | None = None
    href: str | None = None
    bold: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that both files show; columns named in `numeric` are right-aligned."""

    caption: str
    columns: tuple[str, ...]
    numeric: frozenset[str]
    rows: tuple[tuple[Cell, ...], ...]


def make_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """Make a table; a column is numeric if any of its cells holds a number."""
    held = tuple(tuple(row) for row in rows)
    numeric = {
        name
        for index, name in enumerate(columns)
        if any(isinstance(row[index].sort, float) for row in held)
    }
    return Table(caption=caption, columns=tuple(columns), numeric=frozenset(numeric), rows=held)


_EXACT = 1e15
"""Larger numbers have no digit to round."""


def plain(value: float, decimals: int | None) -> str:
    """A score as papers print it: to the decimals of its unit or, with None, to four figures.

    >>> plain(39.76, 0), plain(39.76, 1), plain(0.5876, None), plain(float("nan"), 0)
    ('40', '39.8', '0.5876', '—')
    """
    fits = decimals is not None and abs(value) <= 1000
    return half_up(value, decimals or 0) if fits else figure(value)


def spread(mean: float, sd: float, decimals: int | None) -> str:
    """Mean and standard deviation, to a number of decimals or, with None, each to four figures.

    >>> spread(39.76, 6.84, 0), spread(0.5876, 0.0123, 4)
    ('40 ± 7', '0.5876 ± 0.0123')
    >>> spread(39.76, float("nan"), 0)  # of one run
    '40'
    """
    numbers = (mean,) if math.isnan(sd) else (mean, sd)
    if decimals is None:
        return " ± ".join(map(figure, numbers))
    return " ± ".join(half_up(n, decimals) for n in numbers)


def half_up(number: float, decimals: int) -> str:
    """A number to some decimals, halves away from 0, so that equal differences look equal.

    >>> half_up(82.5, 0), half_up(87.5, 0), half_up(-0.2, 0), half_up(2.675, 2)
    ('83', '88', '0', '2.68')
    """
    if not abs(number) < _EXACT:  # or NaN
        return f"{number:.{decimals}f}"
    rounded = Decimal(repr(number)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)
    return f"{rounded or abs(rounded)}"  # of -0, 0


def decimals_of(numbers: Iterable[float], usual: int | None) -> int | None:
    """Decimals that a row of means and deviations is printed to: those usual for the unit, if any.

    Of others, as many as give the largest four figures. None, which leaves each number to itself,
    where plain digits would not do: a mean is far larger or smaller than another.

    >>> decimals_of([-8.0217, 0.17, -11.894], None), decimals_of([39.76], 0)
    (2, 0)
    >>> decimals_of([0.0123, 2000.0], None)
    """
    sizes = [abs(number) for number in numbers if math.isfinite(number) and number]
    largest = max(sizes, default=0.0)
    if usual is not None and largest <= 1000:
        return usual
    if not sizes:
        return 0
    if not 1e-4 < largest < 1e4 or min(sizes) < largest / 1000:
        return None
    return max(0, 3 - math.floor(math.log10(largest)))


def digits_of(percent: bool) -> int:
    """Number of decimals in an interval of scores."""
    return 1 if percent else 3


def cell(value: Any, href: str | None = None) -> Cell:
    """A cell with a text, or a dash if there is none."""
    return Cell(text=as_text(value), href=href)


def number_cell(value: float | int | None) -> Cell:
    """A cell with a number, or a dash for None and NaN."""
    if value is None or math.isnan(value):
        return Cell(text=NONE)
    return Cell(text=grouped(value) if isinstance(value, int) else figure(value), sort=float(value))


def between(estimate: Estimate, digits: int = 1, sign: str = "", times: float = 1.0) -> Cell:
    """A cell with a value and its interval, if there is one."""
    if math.isnan(estimate.value):
        return Cell(text=NONE)
    value, low, high = (
        f"{times * bound:{sign}z.{digits}f}"  # no -0.0
        for bound in (estimate.value, estimate.low, estimate.high)
    )
    known = not math.isnan(estimate.low)
    return Cell(text=f"{value} [{low}, {high}]" if known else value, sort=estimate.value)


def chance(p: float) -> str:
    """A p-value in a sentence; none is 0, and none below 0.05 is rounded to it.

    >>> chance(0.03), chance(1e-5), chance(0.0496)
    ('p = 0.030', 'p < 0.001', 'p = 0.0496')
    """
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.4f}" if 0.0495 <= p < 0.05 else f"p = {p:.3f}"


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
    """A count with its thousands separated.

    >>> grouped(1050345).replace(chr(160), "_")
    '1_050_345'
    """
    return f"{value:,}".replace(",", "\u00a0")


def figure(value: float) -> str:
    """A measured number to four significant figures, or a dash for NaN.

    >>> figure(-123.456), figure(float("nan"))
    ('-123.5', '—')
    """
    if math.isnan(value):
        return NONE
    return grouped(round(value)) if 9999.5 <= abs(value) < 1e9 else f"{value:.4g}"
