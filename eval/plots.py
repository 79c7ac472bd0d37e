"""Plots as inline SVG that follows the page: its colours, its font, its light or dark mode.

Every plot is one small panel, so that a page can lay panels out for its width and their text stays
readable. Legends and titles belong to the page; a panel holds only numbers, no text from a run.
"""

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator

MAX_POINTS = 400
"""Most points drawn per line; a longer curve is thinned to evenly spaced ones."""

DENSE = 40
"""On a line of more points only some are marked, at different places for each colour."""

MAX_PANELS = 6
"""Most tasks that are drawn where each needs a panel of its own."""
MAX_COLOUR = 6
"""Line colours 1..6 of the page's palette (`--c1` ...), which also differ in marker."""

_SIZE = (5.0, 2.9)
"""Width and height of a panel in inches."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_PNG = "data:image/png;base64,"

# Drawn in these colours, which nothing else uses, and then replaced by the page's own.
INK, _FAINT, PAPER = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = tuple(f"#0a0c{i:02x}" for i in range(1, MAX_COLOUR + 1))
_PAGE_COLOURS = {
    INK: "var(--muted)",
    _FAINT: "var(--line)",
    PAPER: "var(--bg)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES, start=1)},
}
_MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tql-offline",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line, or one set of points, of a panel.

    Attributes:
        label: name in the page's legend and the text description.
        x: updates, or parameters.
        y: values; NaN leaves a gap.
        interval: lower and upper ends of an interval around each value.
        colour: 1..6 in the page's palette; 0 is the axes' grey.
        style: style of the line; `none` draws only points.
        points: whether to mark each value.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    interval: tuple[Sequence[float], Sequence[float]] | None = None
    colour: int = 1
    style: Literal["solid", "dashed", "dotted", "none"] = "solid"
    points: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(math.isfinite(value) for value in self.y)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot.

    Attributes:
        title: what the vertical axis shows, with its unit.
        y_limits: limits of the vertical axis; None fits the values.
        y_log: whether the vertical axis is logarithmic.
        x_label: what the horizontal axis shows.
        x_ticks: values to label on a logarithmic horizontal axis, where there is room; empty for a
            linear axis that includes 0.
    """

    title: str
    lines: tuple[Line, ...]
    y_limits: tuple[float, float] | None = None
    y_log: bool = False
    x_label: str = "updates"
    x_ticks: tuple[float, ...] = ()


def spans_decades(values: Iterable[float]) -> bool:
    """Whether values are positive and differ so much that only a logarithmic axis shows them."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 100 * min(finite)


def describe(panel: Panel) -> str:
    """Describe the plot in words, for those who cannot see it."""
    return f"{panel.title} against {panel.x_label}. " + " ".join(
        _describe_line(line) for line in panel.lines if not line.is_empty
    )


def _describe_line(line: Line) -> str:
    seen = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    (first_x, first), (last_x, last) = seen[0], seen[-1]
    if first_x == last_x or first == last:
        return f"{line.label}: {last:.4g}."
    return f"{line.label}: from {first:.4g} at {first_x:.4g} to {last:.4g} at {last_x:.4g}."


def panel_svg(panel: Panel, key: str) -> str:
    """Draw a panel; see `figure_svg`.

    Args:
        panel: the panel, with at least one line that is not empty.
        key: prefix of the ids inside, different for every panel of a page.

    Returns:
        An `<svg>` element for a page that sets `--bg --muted --line --c1 ... --c6 --sans`; the same
        characters for the same panel, independent of matplotlib's settings, date and machine.
    """
    return _inline(_panel_document(panel), key, describe(panel))


def _panel_document(panel: Panel) -> str:
    return _document(lambda figure: _draw(figure.add_axes((0.105, 0.165, 0.865, 0.785)), panel))


def figure_svg(
    draw: Callable[[Figure], None],
    key: str,
    description: str,
    size: tuple[float, float] = _SIZE,
) -> str:
    """Draw what `draw` puts into a figure, in the page's style.

    Args:
        draw: draws into the figure, with `INK`, `PAPER` and `SERIES` as colours.
        key: prefix of the ids inside, different for every figure of a page.
        description: description in words, for those who cannot see it.
        size: width and height in inches.

    Returns:
        An `<svg>` element for a page that sets `--bg --muted --line --c1 ... --c6 --sans`; the same
        characters for the same drawing, independent of matplotlib's settings, date and machine.
    """
    return _inline(_document(draw, size), key, description)


def _document(draw: Callable[[Figure], None], size: tuple[float, float] = _SIZE) -> str:
    """Matplotlib's SVG of what `draw` puts into a figure of `size` inches."""
    drawn = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=size)
        draw(figure)
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    shown = [line for line in panel.lines if not line.is_empty]
    # Many overlapping bands would hide the lines.
    band = 0.16 if sum(line.interval is not None for line in shown) <= 2 else 0.07
    for line in shown:
        _draw_line(axes, line, band)
    if panel.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
    if panel.y_limits is not None:
        axes.set_ylim(*panel.y_limits)
    _set_x_axis(axes, panel)


def _set_x_axis(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(panel.x_label)
    if panel.x_ticks:
        axes.set_xscale("log")
        ticks = _apart(panel.x_ticks)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(min(panel.x_ticks) / 1.6, max(panel.x_ticks) * 1.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    else:
        drawn = [x for line in panel.lines if not line.is_empty for x in line.x]
        first, last = min(0, *drawn), max(0, *drawn)
        margin = 0.02 * (last - first)
        axes.set_xlim(first - margin, last + margin if last > first else 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def short_count(value: float) -> str:
    """A count to three significant figures.

    >>> short_count(406_530), short_count(26_300_000), short_count(1.2e15)
    ('407k', '26.3M', '1.2P')
    """
    for unit, power in (("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6)):
        if value >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g}{unit}"
    return f"{value / 1e3:.3g}k"


def _apart(values: Iterable[float]) -> list[float]:
    """The distinct values on a logarithmic axis that leave room for each other's labels."""
    kept: list[float] = []
    for value in sorted(set(values)):
        if not kept or value > 1.5 * kept[-1]:
            kept.append(value)
    return kept


def _draw_line(axes: Axes, line: Line, band: float) -> None:
    colour = SERIES[line.colour - 1] if line.colour else INK
    # A line needs two points; a single one shows only by its marker.
    marked = line.points or line.style == "none" or len(line.x) == 1
    marker = _MARKERS[(line.colour or 1) - 1] if marked else None
    kept = _thinned(len(line.x))
    x, y = [line.x[i] for i in kept], [line.y[i] for i in kept]
    if line.interval is not None:
        low, high = ([side[i] for i in kept] for side in line.interval)
        if line.style == "none" or len(x) == 1:
            axes.vlines(x, low, high, color=colour, linewidth=1.4)
        else:
            axes.fill_between(x, low, high, color=colour, alpha=band, linewidth=0)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=line.style,
        linewidth=1.2 if line.style in ("dashed", "dotted") else 1.8,
        marker=marker,
        markersize=6,
        markevery=None
        if len(x) <= DENSE or line.style == "none"
        else (3 * line.colour, len(x) // 8),
        markeredgecolor=PAPER,
        clip_on=False,
    )


def _thinned(length: int) -> list[int]:
    """Indices of at most `MAX_POINTS` evenly spaced points, first and last included."""
    if length <= MAX_POINTS:
        return list(range(length))
    return [round(i * (length - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]


def _inline(document: str, key: str, description: str) -> str:
    """Turn matplotlib's document into an element that lives inside a page."""
    root = ET.fromstring(document)
    for parent in list(root.iter()):
        for child in list(parent):
            # The metadata refer to other sites; the style sheet would apply to the whole page.
            if child.tag.endswith("}metadata") or child.find(f"{{{_SVG}}}style") is not None:
                parent.remove(child)
    used = _referenced_ids(root)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = _trimmed(element.text), _trimmed(element.tail)
        element.attrib = dict(_page_attributes(element, key, used))
    view_box = root.get("viewBox", "")
    root.attrib = {
        "class": "plot",
        "viewBox": view_box,
        "role": "img",
        "aria-label": description,
    }
    return ET.tostring(root, encoding="unicode")


def _trimmed(text: str | None) -> str | None:
    return text if text and not text.isspace() else None


def _referenced_ids(root: ET.Element) -> set[str]:
    used: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == _XLINK and not value.startswith(_PNG):
                used.add(value.removeprefix("#"))
            used.update(re.findall(r"url\(#([^)]+)\)", value))
    return used


def _page_attributes(element: ET.Element, key: str, used: set[str]) -> Iterable[tuple[str, str]]:
    for name, value in element.attrib.items():
        if name == "id":
            if value in used:
                yield "id", f"{key}-{value}"
        elif name == _XLINK and value.startswith(_PNG):
            yield "href", value
        elif name == "transform" and element.tag == "image":
            yield name, value  # its scale needs every digit
        elif name == _XLINK:
            yield "href", f"#{key}-{value.removeprefix('#')}"
        else:
            yield name, _page_value(name, value, key)


def _page_value(name: str, value: str, key: str) -> str:
    if name == "style":
        for drawn, colour in _PAGE_COLOURS.items():
            value = value.replace(drawn, colour)
        return _without_font(value)
    if name in {"d", "x", "y", "transform"}:
        return re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", value)
    return value.replace("url(#", f"url(#{key}-")


def _without_font(style: str) -> str:
    """Keep a text's size and leave its family to the page."""
    style = re.sub(r"font: ([\d.]+px) [^;]+", r"font-size: \1", style)
    return re.sub(r"font-family: [^;]+(; |$)", "", style)
