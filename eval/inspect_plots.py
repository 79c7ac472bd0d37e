"""Figures of an inspection: attention maps and Q landscapes, for the page and as files."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from tql_offline.eval.inspections import Floats, InspectedState, Inspection, Landscape
from tql_offline.eval.plots import INK, SERIES, Line, Panel, figure_svg, panel_svg

MAX_SHOWN_LAYERS = 8

SQUARE = (5.0, 4.4)
LEVELS = 8
NAMED_TOKENS = 12
"""Up to this many tokens are named at the axes one by one; beyond it, only their groups are."""

WEIGHT = (0x33, 0x8F, 0xCF)
"""Colour of attention, drawn with varying opacity: it shows on light and dark pages."""


def attention_svg(weights: Floats, observation_dim: int, title: str, key: str) -> str:
    """Draw one map: queries down, keys across; the strongest colour is the largest weight.

    Args:
        weights: `(L, L)`, rows sum to 1.
        observation_dim: S; the actions' tokens begin after the S observation tokens.
        title: description in words, for those who cannot see the map.
        key: prefix of the ids inside.
    """

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.17, 0.13, 0.8, 0.83))
        axes.imshow(_image(weights), interpolation="none", aspect="auto")
        _token_axes(axes, len(weights), observation_dim)

    to = int(weights[0].argmax())
    where = "[VALUE]" if to == 0 else f"token {to}"
    words = f"{title}. The [VALUE] query gives {weights[0, to]:.2f} of its weight to {where}."
    return figure_svg(draw, key, words, SQUARE)


def _image(weights: Floats) -> NDArray[np.uint8]:
    """RGBA image with opacity in proportion to the weight."""
    most = float(weights.max()) or 1.0
    image = np.empty((*weights.shape, 4), dtype=np.uint8)
    image[..., :3] = WEIGHT
    image[..., 3] = np.round(255 * np.nan_to_num(weights) / most)
    return image


def _token_axes(axes: Axes, tokens: int, observation_dim: int) -> None:
    """Draw the names of tokens, or of their groups, and lines between the groups."""
    first_action = 1 + observation_dim
    if tokens <= NAMED_TOKENS:
        places: list[float] = [float(i) for i in range(tokens)]
        names = ["[V]", *(f"s{i}" for i in range(observation_dim))]
        names += [f"a{i}" for i in range(tokens - first_action)]
    else:
        places = [0, (first_action) / 2, (first_action + tokens - 1) / 2]
        names = ["[V]", f"s0…s{observation_dim - 1}", f"a0…a{tokens - first_action - 1}"]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(places))
        axis.set_ticklabels(names)
    for edge in (0.5, first_action - 0.5):
        axes.axhline(edge, color=INK, linewidth=0.6)
        axes.axvline(edge, color=INK, linewidth=0.6)
    axes.grid(visible=False)
    axes.set_xlabel("keys")


def heads_svg(heads: Floats, title: str, key: str) -> str:
    """Draw the maps of one layer's heads, `(H, L, L)`, side by side, each on its own scale."""
    across = min(len(heads), 8)
    down = math.ceil(len(heads) / across)
    tokens, gap = heads.shape[-1], max(1, heads.shape[-1] // 10)
    pitch = tokens + gap
    image = np.zeros((down * pitch - gap, across * pitch - gap, 4), dtype=np.uint8)
    places = [divmod(i, across) for i in range(len(heads))]
    for (row, column), weights in zip(places, heads, strict=True):
        top, left = row * pitch, column * pitch
        image[top : top + tokens, left : left + tokens] = _image(weights)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axes.imshow(image, interpolation="none")
        for row, column in places:
            left, top = column * pitch - 0.5, row * pitch - 0.5
            x = [left, left + tokens, left + tokens, left, left]
            y = [top, top, top + tokens, top + tokens, top]
            axes.plot(x, y, color=INK, linewidth=0.6)
        axes.set_axis_off()

    return figure_svg(draw, key, title, (5, 5 * down / across))


def landscape_svgs(landscape: Landscape, title: str, key: str) -> list[tuple[str, str]]:
    """Headings and drawings of Q over the varied dims: mean and spread, or both in one curve."""
    if len(landscape.dims) == 1:
        return [("Q, mean ± spread of the ensemble", _curve(landscape, title, key))]
    return [
        ("Q, mean of the ensemble", _contours(landscape, landscape.mean, title, f"{key}-m", 1)),
        ("Spread of the ensemble", _contours(landscape, landscape.spread, title, f"{key}-s", 2)),
    ]


def _curve(landscape: Landscape, title: str, key: str) -> str:
    q, spread = landscape.mean, landscape.spread
    (dim,) = landscape.dims
    grid = landscape.grid.tolist()
    band = ((q - spread).tolist(), (q + spread).tolist())
    lines = [Line(label="Q", x=grid, y=q.tolist(), interval=band)]
    for colour, action in ((2, landscape.data_action), (3, landscape.policy_action)):
        at = float(action[dim])
        label = "the data's action" if colour == 2 else "the policy's action"
        value = float(np.interp(at, grid, q))
        lines.append(Line(label=label, x=[at], y=[value], colour=colour, style="none"))
    panel = Panel(title=title, lines=tuple(lines), x_label=f"action dim {dim}")
    return panel_svg(panel, key)


def _contours(landscape: Landscape, values: Floats, title: str, key: str, colour: int) -> str:
    first, second = landscape.dims

    def draw(figure: Figure) -> None:
        axes, scale = figure.add_axes(_MAIN), figure.add_axes(_SCALE)
        grid = landscape.grid
        levels = MaxNLocator(LEVELS).tick_values(values.min(), values.max())
        # Higher fills are more opaque, so that they show on any page.
        for index, level in enumerate(levels[:-1]):
            look: dict[str, Any] = {"alpha": 0.75 * (index + 1) / (len(levels) - 1)}
            band = [level, levels[index + 1]]
            axes.contourf(grid, grid, values.T, band, colors=[SERIES[colour - 1]], **look)
            scale.axhspan(*band, color=SERIES[colour - 1], linewidth=0, **look)
        axes.contour(
            grid, grid, values.T, levels[1:-1], colors=[INK], linewidths=0.5, linestyles="solid"
        )
        _mark(axes, landscape.data_action[[first, second]], "x")
        _mark(axes, landscape.policy_action[[first, second]], "o")
        _landscape_axes(axes, landscape)
        _scale_axis(scale, levels)

    words = f"{title}, from {values.min():.4g} to {values.max():.4g}"
    return figure_svg(draw, key, words, SQUARE)


_MAIN, _SCALE = (0.15, 0.14, 0.62, 0.81), (0.82, 0.14, 0.04, 0.81)


def _mark(axes: Axes, at: Floats, marker: str) -> None:
    axes.plot(
        at[:1],
        at[1:],
        marker=marker,
        color=INK,
        linestyle="none",
        markersize=9,
        markerfacecolor="none",
        markeredgewidth=2.2,
        clip_on=False,
    )


def _landscape_axes(axes: Axes, landscape: Landscape) -> None:
    for axis, dim in ((axes.xaxis, landscape.dims[0]), (axes.yaxis, landscape.dims[1])):
        axis.set_major_locator(MaxNLocator(4))
        axis.set_label_text(f"action dim {dim}")
    axes.grid(visible=False)


def _scale_axis(scale: Axes, levels: Sequence[float]) -> None:
    """Draw the scale of the fills, beside them."""
    scale.set_ylim(levels[0], levels[-1])
    scale.set_xticks([])
    scale.grid(visible=False)
    scale.yaxis.tick_right()
    scale.set_yticks(levels, [f"{level:.5g}" for level in levels])


# Of a whole inspection.


def state_drawings(state: InspectedState, found: Inspection, key: str) -> list[tuple[str, str]]:
    """Headings and drawings of one state: its layers' maps, then Q."""
    drawn = [
        (
            f"Layer {layer + 1}, mean of heads, up to {weights.max():.2f}",
            attention_svg(
                weights,
                found.observation_dim,
                f"Attention of layer {layer + 1} at {state.title}",
                f"{key}-l{layer}",
            ),
        )
        for layer, weights in enumerate(state.attention[:MAX_SHOWN_LAYERS])
    ]
    return drawn + landscape_svgs(state.landscape, f"Q at {state.title}", f"{key}-q")


def figures(found: Inspection, heads: NDArray[np.float32] | None) -> dict[str, str]:
    """Every figure of an inspection as a separate file, by name.

    Args:
        found: the inspection, as read from its inspect.json.
        heads: `(states, N, H, L, L)` weights of every head; None for a critic without attention.
    """
    files = {}
    for index, state in enumerate(found.states):
        drawn = state_drawings(state, found, "p")
        maps, q = drawn[: len(state.attention)], drawn[len(state.attention) :]
        if maps:
            heading = f"Attention at {state.title}: queries down, keys across"
            files[f"attention-{state.transition}.svg"] = sheet(heading, maps)
        files[f"q-{state.transition}.svg"] = sheet(f"Q at {state.title}; {_MARKS}", q)
        if heads is not None:
            layers = enumerate(heads[index][:MAX_SHOWN_LAYERS].astype(np.float64), start=1)
            cells = [
                (f"Layer {n}, heads in rows of 8", heads_svg(each, f"Heads of layer {n}", f"h{n}"))
                for n, each in layers
            ]
            heading = f"Attention of every head at {state.title}, each on a scale of its own"
            files[f"attention-heads-{state.transition}.svg"] = sheet(heading, cells)
    return files


_MARKS = "× the data's action, ○ the policy's"

_PAPER_COLOURS = {
    "--bg": "#fff", "--fg": "#16191d", "--muted": "#57606a", "--line": "#dfe3e8",
    "--c1": "#0072b2", "--c2": "#d55e00", "--c3": "#009e73", "--c4": "#cc79a7",
    "--c5": "#e69f00", "--c6": "#56b4e9",
}  # fmt: skip
"""Colours of the page in print; a separate file has no page to take them from."""


def sheet(heading: str, cells: Iterable[tuple[str, str]]) -> str:
    """Lay drawings out side by side under a heading, as a file for any viewer."""
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": "sans-serif"})
    left, height = _MARGIN, 0.0
    for title, svg in cells:
        drawing = ET.fromstring(svg)
        wide, high = (float(number) for number in drawing.get("viewBox", "").split()[2:])
        place = {"x": left, "y": _HEAD, "width": wide, "height": high}
        drawing.attrib |= {name: f"{value:g}" for name, value in place.items()}
        _text(root, left, _HEAD - 6, 12, title)
        root.append(drawing)
        left, height = left + wide + _MARGIN, max(height, high)
    size = (max(left, 7.0 * len(heading)), _HEAD + height + _MARGIN)
    root.set("viewBox", f"0 0 {size[0]:g} {size[1]:g}")
    root.attrib |= {"width": f"{size[0]:g}", "height": f"{size[1]:g}"}
    _text(root, _MARGIN, 24, 14, heading)
    root.insert(0, ET.Element("rect", {"width": "100%", "height": "100%", "fill": "#fff"}))
    text = ET.tostring(root, encoding="unicode")
    for name, colour in _PAPER_COLOURS.items():
        text = text.replace(f"var({name})", colour)
    return f"{text}\n"


_MARGIN, _HEAD = 16.0, 52.0


def _text(root: ET.Element, x: float, y: float, size: int, words: str) -> None:
    place = {"x": f"{x:g}", "y": f"{y:g}", "font-size": f"{size}", "fill": "var(--fg)"}
    ET.SubElement(root, "text", place).text = words
