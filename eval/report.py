"""A report of runs: one HTML file that needs nothing else, one Markdown file, and the leaderboard.

The same run folders give the same bytes: no clock, no host, no random ids. Every text of a run is
foreign: HTML is escaped by the template engine, Markdown by `escape_markdown`, and the page's
content security policy runs no script but its own.
"""

import base64
import hashlib
import importlib.resources
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tql_offline.errors import InputError
from tql_offline.eval.leaderboard import Measured, make_boards, measured
from tql_offline.eval.leaderboard_files import as_csv, as_json, as_latex
from tql_offline.eval.leaderboard_page import BoardSection, board_section
from tql_offline.eval.plots import MAX_COLOUR, Line, Panel, panel_svg, spans_decades
from tql_offline.eval.published import published_scores, published_sizes
from tql_offline.eval.report_data import (
    Curve,
    Evaluation,
    Run,
    count,
    known_protocol,
    lookup,
    protocol_label,
    read_result,
    read_run,
)
from tql_offline.eval.report_tables import (
    NONE,
    Cell,
    Table,
    as_text,
    cell,
    figure,
    grouped,
    make_table,
    number_cell,
)
from tql_offline.eval.statistics import wilson_interval
from tql_offline.runs import RunFolder, write_atomic
from tql_offline.version import __version__

MAX_LISTED_WARNINGS = 20
"""Warnings listed per run; the rest are counted."""

MAX_METRIC_PANELS = 12
MAX_LAYERS = 32

GROUPS = ("[VALUE] query", "other queries")

_FORMULAS = {
    "success": "success = info['success'] at the last step; score = 100 × success rate",
    "return": "score = mean undiscounted return",
}
_TIMINGS = {"pre": "before the action ('pre')", "post": "after the action ('post')"}


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where a report was written."""

    html: Path
    markdown: Path
    boards: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Score:
    """The counted evaluations of one policy of one run under one protocol, taken together.

    Attributes:
        evaluations: the last ones, at most `counted` of them, ascending in step.
        counted: how many the protocol counts.
    """

    evaluations: tuple[Evaluation, ...]
    counted: int

    @property
    def last(self) -> Evaluation:
        """The evaluation at the latest step."""
        return self.evaluations[-1]

    @property
    def episodes(self) -> int:
        """Episodes of all counted evaluations."""
        return sum(e.episodes for e in self.evaluations)

    @property
    def successes(self) -> int | None:
        """Successes among them; None where success is not defined."""
        known = [e.successes for e in self.evaluations if e.successes is not None]
        return sum(known) if len(known) == len(self.evaluations) else None

    def mean(self, of: Callable[[Evaluation], float]) -> float:
        """Mean over the counted evaluations, each weighted by its episodes."""
        return math.fsum(of(e) * e.episodes for e in self.evaluations) / self.episodes


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


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Everything the report says of one run."""

    anchor: str
    name: str
    state: str
    answer: str
    plots: tuple[PlotGroup, ...]
    tables: tuple[Table, ...]
    seeds: tuple[tuple[str, str], ...]
    settings: Table
    provenance: Table
    command: str
    warnings: tuple[str, ...]


def write_report(
    runs: list[RunFolder],
    out: Path,
    progress: Callable[[int], None] | None = None,
    *,
    merged: Sequence[Path] = (),
    published: bool = True,
) -> ReportFiles:
    """Write `report.html`, `report.md` and, where scores can be compared, `leaderboard.*`.

    Args:
        runs: in the order to show them; unfinished and damaged ones are shown as such.
        out: folder, made where it is missing.
        progress: called with the number of runs done.
        merged: others' `result.json` files; they are on the leaderboard only.
        published: whether printed scores of the same tasks and protocol stand beside.

    Returns:
        The files' places.

    Raises:
        InputError: there is no run, or `out` cannot be written to.
    """
    if not runs and not merged:
        raise InputError("a report needs at least one run; name a run folder or a folder of runs")
    read = _with_distinct_names([read_run(folder) for folder in runs])
    sections = []
    for index, run in enumerate(read, start=1):
        sections.append(_run_section(run, f"run-{index}"))
        if progress is not None:
            progress(index)
    boards, warnings = _boards(read, merged, published)
    page = _page(read, sections, boards, warnings)
    texts = {
        "report.html": render("report.html.jinja", page),
        "report.md": render("report.md.jinja", page),
    }
    if boards:
        texts |= {
            "leaderboard.csv": as_csv(boards),
            "leaderboard.json": as_json(boards),
            "leaderboard.tex": as_latex(boards),
        }
    _write_all(out, texts)
    return ReportFiles(
        html=out / "report.html",
        markdown=out / "report.md",
        boards=tuple(out / name for name in texts if name.startswith("leaderboard")),
    )


def _write_all(out: Path, texts: dict[str, str]) -> None:
    try:
        for name, text in texts.items():
            write_atomic(out / name, text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {out} ({error.strerror}); give another folder"
        ) from error


def _boards(
    named: list[tuple[str, Run]], merged: Sequence[Path], published: bool
) -> tuple[list[BoardSection], list[str]]:
    """The leaderboard's sections, and what was left out of it."""
    own = [measured(replace(run, name=name)) for name, run in named]
    found, warnings = [scores for scores in own if isinstance(scores, Measured)], []
    for path in merged:
        run = read_result(path)
        scores = measured(run)
        if isinstance(scores, Measured):
            found.append(scores)
        else:
            reason = "; ".join(run.warnings) or f"the run {scores} and was left out"
            warnings.append(f"{path}: {reason}")
    boards, left_out = make_boards(found, published_scores() if published else ())
    printed = published_sizes() if published else ()
    sections = [
        board_section(b, f"board-{i}", printed if b.reported else ())
        for i, b in enumerate(boards, start=1)
    ]
    return [s for s in sections if len(s.board.runs) > 1 or s.board.reported], [
        *warnings,
        *left_out,
    ]


def render(template: str, page: dict[str, Any]) -> str:
    """Fill one of this folder's templates.

    Args:
        template: its file name; `.md.jinja` is escaped as Markdown, any other as HTML.
        page: the template's variables.

    Returns:
        Text that UTF-8 can hold (a lone surrogate of a run's text becomes `?`).
    """
    markdown = template.endswith(".md.jinja")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template_source),
        autoescape=not markdown,
        finalize=escape_markdown if markdown else None,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(csp_hash=csp_hash, code_block=code_block)
    text = environment.get_template(template).render(page)
    return text.encode("utf-8", "replace").decode("utf-8")


def _template_source(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def escape_markdown(value: Any) -> Any:
    r"""Text that Markdown shows as it is, on one line, also inside a table cell.

    >>> print(escape_markdown("a|b <i> tql_tiny"))
    a\|b \<i\> tql_tiny
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    line = re.sub(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", " ", value)
    # An underscore inside a word is plain text, and names are full of them.
    return re.sub(r"[\\`*\[\]<>|&~$#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def code_block(text: str) -> Markup:
    """A Markdown code block, fenced by more backticks than the text has in a row."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}\n{text}\n{fence}")


def csp_hash(script: str) -> str:
    """The source that lets a content security policy run exactly this inline script."""
    digest = hashlib.sha256(str(script).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def percent(rate: float, episodes: int) -> str:
    """A rate in percent; a decimal only where there are episodes enough to mean it.

    >>> percent(49 / 50, 50), percent(0.98765, 1000)
    ('98', '98.8')
    """
    return f"{100 * rate:.{0 if episodes < 200 else 1}f}"


def rate_text(successes: int, episodes: int, interval_name: str = "") -> str:
    """A success rate with its 95% Wilson interval.

    >>> rate_text(49, 50).replace(chr(160), " ")
    '98 %, 90–100 %'
    """
    low, high = wilson_interval(successes, episodes)
    rate = percent(successes / episodes, episodes)
    between = f"{percent(low, episodes)}–{percent(high, episodes)}"
    return f"{rate}\u00a0%, {interval_name}{between}\u00a0%"


def scores_of(run: Run) -> tuple[Score, ...]:
    """The counted evaluations of each policy under each protocol, in the order they came."""
    groups: dict[tuple[str, str, str], dict[str, list[Evaluation]]] = {}
    for evaluation in run.evaluations:
        policies = groups.setdefault(_setting(evaluation), {})
        policies.setdefault(evaluation.policy, []).append(evaluation)
    return tuple(
        Score(evaluations=tuple(found[-found[-1].counted :]), counted=found[-1].counted)
        for policies in groups.values()
        for _, found in sorted(policies.items(), key=lambda item: _policy_order(item[0]))
    )


def _setting(evaluation: Evaluation) -> tuple[str, str, str]:
    return evaluation.protocol, evaluation.env_id, evaluation.success_timing


def _policy_order(policy: str) -> tuple[int, str]:
    known = ("learned", "behaviour")
    return (known.index(policy) if policy in known else len(known), policy)


def _main_setting(run: Run) -> tuple[str, str, str] | None:
    """The protocol and task a run is judged by: its result's, else the first it was played on."""
    named = protocol_label(run.result.get("protocol"))
    settings = [_setting(e) for e in run.evaluations]
    return next((s for s in settings if named and s[0] == named), settings[0] if settings else None)


def _main_scores(run: Run) -> dict[str, Score]:
    setting = _main_setting(run)
    return {s.last.policy: s for s in scores_of(run) if _setting(s.last) == setting}


# What a run is called, and what became of it


def _with_distinct_names(runs: list[Run]) -> list[tuple[str, Run]]:
    """Pair runs with their names; those that share one are called by their paths."""
    names = [run.name for run in runs]
    return [
        (run.name if names.count(run.name) == 1 else run.folder.path.as_posix(), run)
        for run in runs
    ]


def _named(run: Run, *names: str) -> Any:
    """A fact of a run: from its result, else its config, else its provenance."""
    for table in (run.result, run.config, run.provenance):
        value = lookup(table, *names)
        if value is not None and not isinstance(value, dict | list):
            return value
    return None


def _method(run: Run) -> str:
    method = run.result.get("method")
    if isinstance(method, str) and method:
        return method
    parts = (lookup(run.config, "objective"), lookup(run.config, "critic.kind", "kind"))
    return " ".join(p for p in parts if isinstance(p, str)) or "unknown method"


def _size(run: Run) -> str:
    return as_text(_named(run, "size"))


def _label(run: Run) -> str:
    return f"{_method(run)} {_size(run)}" if _size(run) != NONE else _method(run)


def _dataset(run: Run) -> str:
    named = run.result.get("dataset") or run.config.get("dataset.name")
    named = named or run.provenance.get("dataset.name") or run.config.get("dataset.path")
    return as_text(named)


def _parameters(run: Run) -> int | None:
    return count(_named(run, "parameters", "critic_parameters"))


def _state(run: Run) -> str:
    done = f"{grouped(run.steps_done)} updates"
    if run.finished:
        return f"finished, {done}"
    planned = count(_named(run, "steps", "updates"))
    if not planned:
        return f"unfinished, {done}"
    return f"unfinished, {grouped(run.steps_done)} of {grouped(planned)} updates"


def _answer(run: Run) -> str:
    """The run in one sentence: what it learned, beside the behaviour of its data."""
    label = _label(run) if run.finished else f"{_label(run)} ({_state(run)})"
    scores = _main_scores(run)
    if not scores:
        return f"{label}: no evaluation yet."
    parts: list[str] = []
    for policy, score in scores.items():
        who = label if policy == "learned" else _policy_name(policy, run)
        parts.append(f"{who}: {_outcome(score, first=not parts)}")
    if "learned" not in scores:
        parts.insert(0, f"{label}: the learned policy was not evaluated")
    return "; ".join(parts) + "."


def _policy_name(policy: str, run: Run) -> str:
    if policy != "behaviour":
        return policy
    objective = lookup(run.result, "objective") or lookup(run.config, "objective")
    kind = "flow" if objective == "flow" else "policy"
    return f"behaviour {kind} of the same data"


def _outcome(score: Score, first: bool) -> str:
    if score.successes is None:
        value = score.mean(lambda e: e.return_mean)
        return f"mean return {figure(value)} over {score.episodes} episodes"
    if not first:
        rate = rate_text(score.successes, score.episodes)
        return f"{score.successes}/{score.episodes} ({rate})"
    rate = rate_text(score.successes, score.episodes, "95\u00a0% Wilson interval ")
    number = len(score.evaluations)
    where = "" if number == 1 else f" in the last {number} evaluations"
    return f"{score.successes}/{score.episodes} successes{where} ({rate})"


# Tables


def _success_cell(successes: int | None, episodes: int) -> Cell:
    if successes is None:
        return Cell(text=NONE)
    text = f"{successes}/{episodes} ({rate_text(successes, episodes)})"
    return Cell(text=text, sort=successes / episodes)


def _score_success_cell(score: Score | None) -> Cell:
    return Cell(text=NONE) if score is None else _success_cell(score.successes, score.episodes)


def _steps_cell(score: Score) -> Cell:
    """The steps counted, and how many there should have been where some are missing."""
    last = score.last.step
    if score.counted == 1:
        return number_cell(last)
    have = len(score.evaluations)
    number = f"{have}" if have == score.counted else f"{have} of {score.counted}"
    text = f"{grouped(score.evaluations[0].step)}–{grouped(last)} ({number})"
    return Cell(text=text, sort=float(last))


def _overview_table(sections: list[RunSection], runs: list[Run]) -> Table:
    columns = ("run", "state", "method", "size", "parameters", "seed", "learned", "behaviour")
    rows = []
    for section, run in zip(sections, runs, strict=True):
        scores = _main_scores(run)
        rows.append(
            (
                cell(section.name, f"#{section.anchor}"),
                cell(section.state),
                cell(_method(run)),
                cell(_size(run)),
                number_cell(_parameters(run)),
                number_cell(count(_named(run, "seed"))),
                _score_success_cell(scores.get("learned")),
                _score_success_cell(scores.get("behaviour")),
            )
        )
    return make_table("Every run: successes with 95 % Wilson intervals", columns, rows)


def _score_table(sections: list[RunSection], runs: list[Run]) -> Table:
    columns = (
        *("run", "policy", "success (95 % interval)", "step", "episodes", "mean return"),
        *("mean length", "score", "method", "size", "parameters", "dataset", "protocol"),
    )
    rows = [
        (
            cell(section.name, f"#{section.anchor}"),
            cell(score.last.policy),
            _score_success_cell(score),
            _steps_cell(score),
            number_cell(score.episodes),
            number_cell(score.mean(lambda e: e.return_mean)),
            number_cell(score.mean(lambda e: e.length_mean)),
            number_cell(score.mean(lambda e: e.score)),
            cell(_method(run)),
            cell(_size(run)),
            number_cell(_parameters(run)),
            cell(_dataset(run)),
            cell(score.last.protocol),
        )
        for section, run in zip(sections, runs, strict=True)
        for score in scores_of(run)
    ]
    return make_table("Scores of the counted evaluations", columns, rows)


def _evaluation_table(run: Run) -> Table:
    columns = ("policy", "protocol", "step", "episodes", "success (95 % interval)")
    rows = (
        (
            cell(e.policy),
            cell(e.protocol),
            number_cell(e.step),
            number_cell(e.episodes),
            _success_cell(e.successes, e.episodes),
            number_cell(e.return_mean),
            number_cell(e.length_mean),
        )
        for e in run.evaluations
    )
    return make_table("Every evaluation", (*columns, "mean return", "mean length"), rows)


def _attention_table(run: Run) -> Table:
    columns = ("layer", "queries", "entropy, nats", "target, nats", "temperature")
    rows = (
        (
            Cell(text=str(layer + 1), sort=float(layer)),
            cell(GROUPS[group]),
            *(
                number_cell(_last(run.curves.get(f"{name}/{layer}/{group}")))
                for name in ("entropy", "entropy_target", "temperature")
            ),
        )
        for layer in _layers(run)
        for group in (0, 1)
    )
    return make_table("Attention, last logged", columns, rows)


def _metric_table(run: Run) -> Table:
    rows = (
        (cell(name), number_cell(curve.values[0]), number_cell(_last(curve)))
        for name, curve in run.curves.items()
        if "/" not in name
    )
    return make_table("Metrics, first and last logged", ("metric", "first", "last"), rows)


def _last(curve: Curve | None) -> float:
    return math.nan if curve is None else curve.values[-1]


def _facts(caption: str, columns: tuple[str, str], flat: dict[str, Any]) -> Table:
    return make_table(caption, columns, ((cell(k), cell(v)) for k, v in flat.items()))


# Plots


def _layers(run: Run) -> list[int]:
    """Layers whose entropy was logged."""
    return [n for n in range(MAX_LAYERS) if f"entropy/{n}/0" in run.curves]


def _curve_line(curve: Curve, label: str, colour: int, dashed: bool = False) -> Line:
    return Line(
        label=label,
        x=curve.steps,
        y=curve.values,
        colour=colour,
        style="dashed" if dashed else "solid",
    )


def _draw(panels: Iterable[tuple[str, Panel]], key: str) -> tuple[Plot, ...]:
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
    means = [e.return_mean for e in evaluations]
    errors = [1.96 * _standard_error([d.total for d in e.details]) for e in evaluations]
    return Line(
        label=label,
        x=[e.step for e in evaluations],
        y=means,
        interval=(
            [mean - error for mean, error in zip(means, errors, strict=True)],
            [mean + error for mean, error in zip(means, errors, strict=True)],
        ),
        colour=colour,
        points=True,
    )


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _by_policy(run: Run) -> dict[str, list[Evaluation]]:
    """Evaluations of the run's main protocol and task, learned policy first."""
    setting = _main_setting(run)
    found: dict[str, list[Evaluation]] = {}
    for evaluation in run.evaluations:
        if _setting(evaluation) == setting:
            found.setdefault(evaluation.policy, []).append(evaluation)
    return dict(sorted(found.items(), key=lambda item: _policy_order(item[0])))


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
    return PlotGroup(
        title="Learning curve",
        note="Bands and bars, over the episodes of one evaluation: 95 % Wilson interval of the "
        "success rate; mean return ± 1.96 standard errors.",
        keys=tuple(Key(label=label, colour=i, style="point") for label, _, i in named),
        plots=_draw([("Success rate, %", success), ("Mean return", returns)], key),
    )


def _policy_label(policy: str) -> str:
    return f"{policy} policy" if policy in ("learned", "behaviour") else policy


def _entropy_plots(run: Run, key: str) -> PlotGroup:
    tokens = count(_named(run, "tokens")) or _last_count(run.curves.get("tokens"))
    most = math.log(tokens) if tokens else None
    keys = [Key(label=name, colour=i, style="solid") for i, name in enumerate(GROUPS, start=1)]
    if any(name.startswith("entropy_target/") for name in run.curves):
        keys += [Key(label="its target", colour=0, style="dashed")]
    if most is not None:
        keys += [Key(label=f"ln L = {most:.2f}, the most there can be", colour=0, style="dotted")]
    panels = [(f"Layer {n + 1}, nats", _entropy_panel(run, n, most)) for n in _layers(run)]
    return PlotGroup(
        title="Attention entropy",
        note="Mean over batch and heads. Near 0, a query looks at one token only; at ln L, at all "
        "alike.",
        keys=tuple(keys),
        plots=_draw(panels, key),
    )


def _last_count(curve: Curve | None) -> int | None:
    last = _last(curve)
    return None if math.isnan(last) or last < 1 else round(last)


def _entropy_panel(run: Run, layer: int, most: float | None) -> Panel:
    lines = []
    for group, name in enumerate(GROUPS):
        for metric, dashed in (("entropy", False), ("entropy_target", True)):
            curve = run.curves.get(f"{metric}/{layer}/{group}")
            if curve is not None:
                label = f"target of {name}" if dashed else name
                lines.append(_curve_line(curve, label, group + 1, dashed))
    if most is not None:
        across = (0, run.curves[f"entropy/{layer}/0"].steps[-1])
        lines.append(Line(label="ln L", x=across, y=(most, most), colour=0, style="dotted"))
    highest = max((v for line in lines for v in line.y if math.isfinite(v)), default=0.0)
    limits = (0, 1.06 * highest) if highest > 0 else None
    return Panel(title=f"Entropy of layer {layer + 1}", lines=tuple(lines), y_limits=limits)


def _temperature_plots(run: Run, key: str) -> PlotGroup:
    panels = []
    for layer in _layers(run):
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
    return PlotGroup(
        title="Temperatures",
        note="How strongly the critic's loss raises each entropy; a temperature grows while its "
        "entropy is below target.",
        keys=tuple(Key(label=name, colour=i, style="solid") for i, name in enumerate(GROUPS, 1)),
        plots=_draw(panels, key),
    )


def _loss_plots(run: Run, key: str) -> PlotGroup:
    names = [n for n in run.curves if n.endswith("_loss") or n.startswith("q_")]
    panels = []
    for name in names[:MAX_METRIC_PANELS]:
        log = spans_decades(run.curves[name].values)
        title = _metric_title(name)
        panel = Panel(title=title, lines=(_curve_line(run.curves[name], title, 1),), y_log=log)
        panels.append((f"{title}, log scale" if log else title, panel))
    return PlotGroup(title="Losses and Q", note="", keys=(), plots=_draw(panels, key))


def _metric_title(name: str) -> str:
    """`critic_loss` as `critic loss`, `q_mean` as `Q mean`."""
    words = name.replace("_", " ")
    return f"Q {words[2:]}" if words.startswith("q ") else words


def _overall_plots(named: list[tuple[str, Run]]) -> tuple[PlotGroup, ...]:
    groups = (_all_curves(named), _size_plots([run for _, run in named]))
    return tuple(group for group in groups if group is not None and group.plots)


def _all_curves(named: list[tuple[str, Run]]) -> PlotGroup | None:
    """The learned policies' curves in one panel, where they are few enough to be told apart."""
    found = [(name, _by_policy(run).get("learned", [])) for name, run in named]
    found = [(name, evaluations) for name, evaluations in found if evaluations]
    if not 2 <= len(found) <= MAX_COLOUR:
        return None
    lines = tuple(_success_line(e, name, i) for i, (name, e) in enumerate(found, start=1))
    panel = Panel(title="Success rate in percent", lines=lines, y_limits=(0, 100))
    return PlotGroup(
        title="Learning curves",
        note="Learned policies. Bands: 95 % Wilson intervals over one evaluation's episodes.",
        keys=tuple(
            Key(label=name, colour=i, style="point") for i, (name, _) in enumerate(found, 1)
        ),
        plots=_draw([("Success rate, %", panel)], "all"),
    )


def _size_plots(runs: list[Run]) -> PlotGroup | None:
    """Success by critic size, one series for each method, task and protocol."""
    series: dict[str, list[tuple[int, Score]]] = {}
    for run in runs:
        parameters, score = _parameters(run), _main_scores(run).get("learned")
        if run.finished and parameters and score is not None and score.successes is not None:
            label = f"{_method(run)}, {_dataset(run)}, {score.last.protocol}"
            series.setdefault(label, []).append((parameters, score))
    sizes = tuple(sorted({float(p) for found in series.values() for p, _ in found}))
    if len(sizes) < 2:
        return None
    shown = sorted(series.items(), key=lambda item: (-len(item[1]), item[0]))[:MAX_COLOUR]
    lines = tuple(_size_line(found, label, i) for i, (label, found) in enumerate(shown, start=1))
    panel = Panel(
        title="Success rate in percent",
        lines=lines,
        y_limits=(0, 100),
        x_label="critic parameters",
        x_ticks=sizes,
    )
    left_out = len(series) - len(shown)
    rest = f" {left_out} smaller series are in the table only." if left_out else ""
    return PlotGroup(
        title="Score by size",
        note="One point per finished run: the learned policy's counted evaluations with their 95 % "
        f"Wilson interval. The seed is the unit: one run of a size shows no trend.{rest}",
        keys=tuple(
            Key(label=label, colour=i, style="point") for i, (label, _) in enumerate(shown, 1)
        ),
        plots=_draw([("Success rate, %", panel)], "size"),
    )


def _size_line(found: list[tuple[int, Score]], label: str, colour: int) -> Line:
    """Points of one series; runs of one size stand side by side."""
    points = sorted(found, key=lambda item: item[0])
    counts = [(score.successes or 0, score.episodes) for _, score in points]
    ends = [wilson_interval(k, n) for k, n in counts]
    return Line(
        label=label,
        x=_side_by_side([parameters for parameters, _ in points]),
        y=[100 * k / n for k, n in counts],
        interval=([100 * low for low, _ in ends], [100 * high for _, high in ends]),
        colour=colour,
        style="none",
    )


def _side_by_side(values: list[int]) -> list[float]:
    """Equal values (which stand together) set apart around their own, for a logarithmic axis."""
    offsets = [i - values.index(v) - (values.count(v) - 1) / 2 for i, v in enumerate(values)]
    return [v * 1.12**offset for v, offset in zip(values, offsets, strict=True)]


# The page


def _run_section(named: tuple[str, Run], anchor: str) -> RunSection:
    name, run = named
    drawn = (
        _learning_plots(run, f"{anchor}-learning"),
        _entropy_plots(run, f"{anchor}-entropy"),
        _temperature_plots(run, f"{anchor}-temperature"),
        _loss_plots(run, f"{anchor}-loss"),
    )
    tables = (_evaluation_table(run), _attention_table(run), _metric_table(run))
    return RunSection(
        anchor=anchor,
        name=name,
        state=_state(run),
        answer=_answer(run),
        plots=tuple(group for group in drawn if group.plots),
        tables=tuple(table for table in tables if table.rows),
        seeds=tuple(_seed_lists(run)),
        settings=_facts("Settings", ("setting", "value"), run.config),
        provenance=_facts("Provenance", ("fact", "value"), run.provenance),
        command=f"tql-offline train --config {shlex.quote(run.folder.config.as_posix())}",
        warnings=run.warnings,
    )


def _seed_lists(run: Run) -> Iterable[tuple[str, str]]:
    """For every counted evaluation, its episodes' seeds and which of them failed."""
    for score in scores_of(run):
        for evaluation in score.evaluations:
            if evaluation.details:
                title = f"{evaluation.policy}, step {grouped(evaluation.step)}"
                yield f"{title}, {evaluation.protocol}", _seed_list(evaluation)


def _seed_list(evaluation: Evaluation) -> str:
    """All seeds, and the outcome: the fewer of those that failed and those that succeeded."""
    seeds = " ".join(as_text(e.seed) for e in evaluation.details)
    if evaluation.successes is None:
        return seeds
    if evaluation.successes in (0, evaluation.episodes):
        return f"{seeds}; all {'succeeded' if evaluation.successes else 'failed'}"
    rare = 2 * evaluation.successes <= evaluation.episodes
    listed = " ".join(as_text(e.seed) for e in evaluation.details if e.success is rare)
    return f"{seeds}; {'succeeded' if rare else 'failed'}: {listed}"


def _page(
    named: list[tuple[str, Run]],
    sections: list[RunSection],
    boards: list[BoardSection],
    board_warnings: list[str],
) -> dict[str, Any]:
    runs = [run for _, run in named]
    many = len(runs) > 1
    return {
        "title": sections[0].name
        if len(runs) == 1
        else f"{len(runs)} runs"
        if many
        else "Leaderboard",
        "boards": boards,
        "board_warnings": board_warnings,
        "version": __version__,
        "sections": sections,
        "overview": _overview_table(sections, runs) if many else None,
        "scores": _score_table(sections, runs),
        "formulas": _formulas(runs),
        "differences": _differences(runs),
        "plots": _overall_plots(named) if many else (),
        "warning_count": len(board_warnings) + sum(len(section.warnings) for section in sections),
        "max_warnings": MAX_LISTED_WARNINGS,
    }


def _formulas(runs: list[Run]) -> list[str]:
    """What a score means under each protocol that was used."""
    used = {(e.protocol, e.counted, e.success_timing) for run in runs for e in run.evaluations}
    return [_formula(*setting) for setting in sorted(used)]


def _formula(protocol: str, counted: int, success_timing: str) -> str:
    known = known_protocol(protocol)
    meaning = _FORMULAS[known.score] if known else "its score is shown as it was recorded"
    counts = "the last evaluation" if counted == 1 else f"the last {counted} evaluations"
    timing = f"; success judged on the state {_TIMINGS.get(success_timing, success_timing)}"
    return (
        f"{protocol or 'unnamed protocol'}: {meaning}; counted: {counts}"
        f"{timing if success_timing else ''}."
    )


def _differences(runs: list[Run]) -> list[str]:
    """What keeps the runs' scores from being compared as they stand."""
    facts: dict[str, set[str]] = {
        name: {as_text(v) for run in runs if (v := lookup(run.provenance, name)) is not None}
        for name in ("ogbench", "gymnasium", "mujoco", "minari")
    }
    facts["protocol"] = {setting[0] for run in runs if (setting := _main_setting(run))}
    facts["success timing"] = {setting[2] for run in runs if (setting := _main_setting(run))}
    for dataset in {_dataset(run) for run in runs}:
        hashes = {_dataset_hash(run) for run in runs if _dataset(run) == dataset}
        facts[f"content of dataset {dataset}"] = {h[:12] for h in hashes if h}
    return [
        f"The runs differ in {name} ({', '.join(sorted(values))}): their scores are not comparable "
        "as they stand."
        for name, values in sorted(facts.items())
        if len(values) > 1
    ]


def _dataset_hash(run: Run) -> str:
    value = run.result.get("dataset_sha256") or run.provenance.get("dataset.sha256")
    return value if isinstance(value, str) else ""
