"""Plots in a report of runs: learning curves, attention, losses."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tql_offline.eval.attention_health import COLLAPSED, has_targets, has_temperatures
from tql_offline.eval.curve_records import Curve
from tql_offline.eval.evaluation_records import Evaluation
from tql_offline.eval.inspect_plots import state_drawings
from tql_offline.eval.measured import played_of
from tql_offline.eval.plots import MAX_COLOUR, Line, Panel, panel_svg, spans_decades
from tql_offline.eval.report_scores import (
    GROUPS,
    entropy_mode_of,
    layers_of,
    main_played,
    policy_order,
    tokens_of,
)
from tql_offline.eval.run_records import Run
from tql_offline.eval.statistics import t_interval, wilson_interval

MAX_METRIC_PANELS = 12

MAX_INSPECTED = 3
"""Number of an inspection's states that the page shows; the rest stay in the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a legend."""

    label: str
    colour: int
    style: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn panel and its heading."""

    title: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class PlotGroup:
    """Panels that share a heading, a legend and a note."""

    title: str
    note: str
    keys: tuple[Key, ...]
    plots: tuple[Plot, ...]


def run_plots(run: Run, anchor: str) -> tuple[PlotGroup, ...]:
    """All plots of one run; `anchor` is the prefix of the ids inside."""
    drawn = (
        _learning_plots(run, f"{anchor}-learning"),
        _entropy_plots(run, f"{anchor}-entropy"),
        _entropy_plots(run, f"{anchor}-value-entropy", "value_", " of V"),
        _temperature_plots(run, f"{anchor}-temperature"),
        _loss_plots(run, f"{anchor}-loss"),
        *_inspection_plots(run, f"{anchor}-inspect"),
    )
    return tuple(group for group in drawn if group.plots)


def _curve_line(curve: Curve, label: str, colour: int, dashed: bool = False) -> Line:
    return Line(
        label=label,
        x=curve.steps,
        y=curve.values,
        colour=colour,
        style="dashed" if dashed else "solid",
    )


def draw(panels: Iterable[tuple[str, Panel]], key: str) -> tuple[Plot, ...]:
    """Draw the panels that show something, each under its heading."""
    shown = [(t, p) for t, p in panels if any(not line.is_empty for line in p.lines)]
    return tuple(
        Plot(title=title, svg=Markup(panel_svg(panel, f"{key}-{i}")))
        for i, (title, panel) in enumerate(shown)
    )


def _success_line(evaluations: Sequence[Evaluation], label: str, colour: int) -> Line:
    known = [(e.step, e.successes, e.episodes) for e in evaluations if e.successes is not None]
    ends = [wilson_interval(k, n) for _, k, n in known]
    return Line(
        label=label,
        x=[step for step, _, _ in known],
        y=[100 * k / n for _, k, n in known],
        interval=([100 * low for low, _ in ends], [100 * high for _, high in ends]),
        colour=colour,
        points=True,
    )


def _return_line(evaluations: Sequence[Evaluation], label: str, colour: int) -> Line:
    ends = [_return_interval(evaluation) for evaluation in evaluations]
    return Line(
        label=label,
        x=[e.step for e in evaluations],
        y=[e.return_mean for e in evaluations],
        interval=([low for low, _ in ends], [high for _, high in ends]),
        colour=colour,
        points=True,
    )


def _return_interval(evaluation: Evaluation) -> tuple[float, float]:
    """Student's t interval of the mean over its episodes; NaN where they are too few or unknown."""
    totals = [episode.total for episode in evaluation.details]
    known = len(totals) > 1 and all(map(math.isfinite, totals))
    return t_interval(totals) if known else (math.nan, math.nan)


def _by_policy(run: Run) -> dict[str, list[Evaluation]]:
    """Evaluations of the run's main protocol and task, learned policy first."""
    main = main_played(run)
    found: dict[str, list[Evaluation]] = {}
    for evaluation in run.evaluations:
        if played_of(evaluation) == main:
            found.setdefault(evaluation.policy, []).append(evaluation)
    return dict(sorted(found.items(), key=lambda item: policy_order(item[0])))


def _learning_plots(run: Run, key: str) -> PlotGroup:
    policies = list(_by_policy(run).items())[:MAX_COLOUR]
    named = [(_policy_label(p), found, i) for i, (p, found) in enumerate(policies, start=1)]
    success = Panel(
        title="Success rate in percent",
        lines=tuple(_success_line(found, label, i) for label, found, i in named),
        y_limits=(0, 100),
    )
    returns = Panel(
        title="Mean return", lines=tuple(_return_line(found, label, i) for label, found, i in named)
    )
    rates = any(e.successes is not None for _, found in policies for e in found)
    how = "Wilson for the success rate, " if rates else ""
    return PlotGroup(
        title="Learning curve",
        note="Bands and bars are 95 % intervals over the episodes of one evaluation: "
        f"{how}Student's t for the mean return.",
        keys=tuple(Key(label=label, colour=i, style="point") for label, _, i in named),
        plots=draw([("Success rate, %", success), ("Mean return", returns)], key),
    )


def _policy_label(policy: str) -> str:
    return f"{policy} policy" if policy in ("learned", "behaviour") else policy


def _entropy_plots(run: Run, key: str, of: str = "", whose: str = "") -> PlotGroup:
    tokens = tokens_of(run, of)
    most = math.log(tokens) if tokens else None
    keys = [Key(label=name, colour=i, style="solid") for i, name in enumerate(GROUPS, start=1)]
    if has_targets(entropy_mode_of(run)) and f"{of}entropy_target/0/0" in run.curves:
        keys += [Key(label="its target", colour=0, style="dashed")]
    if most is not None:
        label = f"ln L = {most:.2f}, the maximum; {COLLAPSED:g}, the collapse threshold"
        keys += [Key(label=label, colour=0, style="dotted")]
    panels = [
        (f"Layer {n + 1}, nats", _entropy_panel(run, n, most, of)) for n in layers_of(run, of)
    ]
    return PlotGroup(
        title=f"Attention entropy{whose}",
        note="Mean over batch and heads. Near 0, a query attends to a single token; at ln L, to "
        f"all equally. A layer whose mean over all L queries is below {COLLAPSED:g} nats has "
        "collapsed.",
        keys=tuple(keys),
        plots=draw(panels, key),
    )


def _entropy_panel(run: Run, layer: int, most: float | None, of: str) -> Panel:
    lines = []
    metrics = [(f"{of}entropy", False), (f"{of}entropy_target", True)]
    for group, name in enumerate(GROUPS):
        for metric, dashed in metrics if has_targets(entropy_mode_of(run)) else metrics[:1]:
            curve = run.curves.get(f"{metric}/{layer}/{group}")
            if curve is not None:
                label = f"target of {name}" if dashed else name
                lines.append(_curve_line(curve, label, group + 1, dashed))
    if most is not None:
        across = (0, run.curves[f"{of}entropy/{layer}/0"].steps[-1])
        lines += [
            Line(label=label, x=across, y=(level, level), colour=0, style="dotted")
            for label, level in (("ln L", most), ("collapse", COLLAPSED))
        ]
    highest = max((v for line in lines for v in line.y if math.isfinite(v)), default=0.0)
    limits = (0, 1.06 * highest) if highest > 0 else None
    return Panel(title=f"Entropy of layer {layer + 1}", lines=tuple(lines), y_limits=limits)


def _temperature_plots(run: Run, key: str) -> PlotGroup:
    mode = entropy_mode_of(run)
    panels = []
    for layer in layers_of(run) if has_temperatures(mode) else ():
        curves = [run.curves.get(f"temperature/{layer}/{group}") for group in (0, 1)]
        lines = tuple(
            _curve_line(curve, GROUPS[group], group + 1)
            for group, curve in enumerate(curves)
            if curve is not None
        )
        panel = Panel(
            title=f"Temperature of layer {layer + 1}",
            lines=lines,
            y_log=spans_decades(v for line in lines for v in line.y),
        )
        panels.append((f"Layer {layer + 1}{', log scale' if panel.y_log else ''}", panel))
    learned = "a temperature grows while its entropy is below target"
    return PlotGroup(
        title="Temperatures",
        note="How strongly the critic's loss raises each entropy; "
        f"{learned if has_targets(mode) else 'all are held at 1'}.",
        keys=tuple(Key(label=name, colour=i, style="solid") for i, name in enumerate(GROUPS, 1)),
        plots=draw(panels, key),
    )


def _loss_plots(run: Run, key: str) -> PlotGroup:
    names = [n for n in run.curves if n.endswith("_loss") or n.startswith("q_")]
    panels = []
    for name in names[:MAX_METRIC_PANELS]:
        log = spans_decades(run.curves[name].values)
        title = _metric_title(name)
        panel = Panel(title=title, lines=(_curve_line(run.curves[name], title, 1),), y_log=log)
        panels.append((f"{title}, log scale" if log else title, panel))
    return PlotGroup(title="Losses and Q", note="", keys=(), plots=draw(panels, key))


def _inspection_plots(run: Run, key: str) -> tuple[PlotGroup, ...]:
    """Plots of what `inspect` found at its first states."""
    found = run.inspection
    if found is None:
        return ()
    shown = found.states[:MAX_INSPECTED]
    rest = len(found.states) - len(shown)
    more = f" {rest} more states are in the run's inspect folder." if rest else ""
    attention = (
        "Attention: queries down, keys across, [V] the [VALUE] token; the stronger the colour, "
        "the larger the weight. "
        if found.tokens
        else "Attention is recorded of transformer critics alone. "
    )
    note = (
        f"{attention}Q over two action dims, the others held at the {{held}} action; × the data's "
        "action, ○ the policy's; spread: standard deviation over the ensemble."
    )
    return tuple(
        PlotGroup(
            title=f"Inspected at update {found.step:,}: {state.title}",
            note=note.format(held=f"{state.landscape.held}'s") + (more if state is last else ""),
            keys=(),
            plots=tuple(
                Plot(title=title, svg=Markup(svg))
                for title, svg in state_drawings(state, found, f"{key}-{i}")
            ),
        )
        for last in shown[-1:]
        for i, state in enumerate(shown)
    )


def _metric_title(name: str) -> str:
    """Title of a metric: `critic loss` for `critic_loss`, `Q mean` for `q_mean`."""
    words = name.replace("_", " ")
    return f"Q {words[2:]}" if words.startswith("q ") else words


def curves_of_runs(named: list[tuple[str, Run]]) -> PlotGroup | None:
    """The learned policies' curves in one panel, if they are few enough to tell apart."""
    found = [(name, _by_policy(run).get("learned", [])) for name, run in named]
    found = [(name, evaluations) for name, evaluations in found if evaluations]
    if not 2 <= len(found) <= MAX_COLOUR:
        return None
    lines = tuple(_success_line(e, name, i) for i, (name, e) in enumerate(found, start=1))
    panel = Panel(title="Success rate in percent", lines=lines, y_limits=(0, 100))
    plots = draw([("Success rate, %", panel)], "all")
    if not plots:
        return None
    return PlotGroup(
        title="Learning curves of runs",
        note="Learned policies. Bands: 95 % Wilson intervals over one evaluation's episodes.",
        keys=tuple(
            Key(label=name, colour=i, style="point") for i, (name, _) in enumerate(found, 1)
        ),
        plots=plots,
    )
