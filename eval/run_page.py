"""What the report says of single runs: their sections, and the tables of all."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tql_offline.eval.attention_health import has_targets, has_temperatures
from tql_offline.eval.evaluation_records import Evaluation
from tql_offline.eval.measured import CountedScore
from tql_offline.eval.record_files import count
from tql_offline.eval.report_plots import PlotGroup, run_plots
from tql_offline.eval.report_scores import (
    GROUPS,
    alarm_of,
    answer_of,
    collapse_of,
    dataset_of,
    entropy_mode_of,
    fact,
    lack_of,
    last_value,
    layers_of,
    main_scores,
    method_of,
    parameters_of,
    rate_text,
    scores_of,
    size_of,
    state_of,
)
from tql_offline.eval.report_tables import (
    NONE,
    Cell,
    Table,
    as_text,
    cell,
    grouped,
    make_table,
    number_cell,
)
from tql_offline.eval.run_records import Run, lookup

NO_FACTS = make_table("", (), ())


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Everything the report says about one run; without an anchor, only its head."""

    anchor: str
    name: str
    state: str
    answer: str
    alarm: str
    warnings: tuple[str, ...]
    plots: tuple[PlotGroup, ...] = ()
    tables: tuple[Table, ...] = ()
    seeds: tuple[tuple[str, str], ...] = ()
    settings: Table = NO_FACTS
    provenance: Table = NO_FACTS
    command: str = ""

    @property
    def link(self) -> str | None:
        """To its place in the page, if it has one."""
        return f"#{self.anchor}" if self.anchor else None


# Tables

OVERVIEW = "All runs: successes with 95 % Wilson intervals, or scores where success is not counted"
OVERVIEW_OF_SCORES = "All runs, by score"


def _success_cell(
    successes: int | None, episodes: int, starts: int | None = None, more: str = ""
) -> Cell:
    if successes is None:
        return Cell(text=NONE)
    text = f"{successes}/{episodes} ({rate_text(successes, episodes, starts=starts)})"
    return Cell(text=text + more, sort=successes / episodes)


def _score_success_cell(score: CountedScore | None) -> Cell:
    if score is None:
        return Cell(text=NONE)
    more = f", update {grouped(score.last.step)}" if score.lacking else ""
    return _success_cell(score.successes, score.episodes, score.starts, more)


def _steps_cell(score: CountedScore) -> Cell:
    """The steps counted, and how many there should have been if some are missing."""
    last = score.last.step
    if score.counted == 1:
        return number_cell(last)
    have = len(score.evaluations)
    number = f"{have}" if have == score.counted else f"{have} of {score.counted}"
    text = f"{grouped(score.evaluations[0].step)}–{grouped(last)} ({number})"
    return Cell(text=text, sort=float(last))


def overview_table(sections: list[RunSection], runs: list[Run]) -> Table:
    """A row of each run: what it is, and what its policies reach."""
    columns = (
        *("run", "state", "method", "size", "parameters", "seed", "learned", "behaviour"),
        "collapsed",
    )
    rows = []
    for section, run in zip(sections, runs, strict=True):
        scores = main_scores(run)
        rows.append(
            (
                cell(section.name, section.link),
                cell(section.state),
                cell(method_of(run)),
                cell(size_of(run)),
                number_cell(parameters_of(run)),
                number_cell(count(fact(run, "seed"))),
                _outcome_cell(scores.get("learned")),
                _outcome_cell(scores.get("behaviour")),
                _collapse_cell(run),
            )
        )
    return make_table(OVERVIEW if have_rates(runs) else OVERVIEW_OF_SCORES, columns, rows)


def have_rates(runs: Iterable[Run]) -> bool:
    """Whether any score is a rate of successes, which has a Wilson interval."""
    return any(score.successes is not None for run in runs for score in scores_of(run))


def _outcome_cell(score: CountedScore | None) -> Cell:
    """Successes, or the score if the protocol counts none."""
    if score is not None and score.successes is None:
        return number_cell(score.mean(lambda e: e.score))
    return _score_success_cell(score)


def _collapse_cell(run: Run) -> Cell:
    """Layers whose attention has collapsed; a dash where no entropy was logged."""
    if not layers_of(run):
        return cell("")
    found = [
        f"{whose}layer {', '.join(map(str, layers))}"
        for of, whose in (("", ""), ("value_", "V's "))
        if (layers := collapse_of(run, of)[0])
    ]
    return cell("; ".join(found) or "none")


def score_table(sections: list[RunSection], runs: list[Run]) -> Table:
    """A row of each score, of every policy and protocol."""
    columns = (
        *("run", "policy", "success (95 % interval)", "step", "episodes", "mean return"),
        *("mean length", "score", "last", "last three", "best (oracle)"),
        *("method", "size", "parameters", "dataset", "protocol"),
    )
    rows = [
        (
            cell(section.name, section.link),
            cell(score.last.policy),
            _score_success_cell(score),
            _steps_cell(score),
            number_cell(score.episodes),
            number_cell(score.mean(lambda e: e.return_mean)),
            number_cell(score.mean(lambda e: e.length_mean)),
            number_cell(score.mean(lambda e: e.score)),
            *(number_cell(value) for value in (score.last.score, score.last_three, score.best)),
            cell(method_of(run)),
            cell(size_of(run)),
            number_cell(parameters_of(run)),
            cell(dataset_of(run)),
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
    """Entropies, and what controls them: no target or temperature that does nothing."""
    mode = entropy_mode_of(run)
    metrics = {"entropy": "entropy, nats"}
    metrics |= {"entropy_target": "target, nats"} if has_targets(mode) else {}
    metrics |= {"temperature": "temperature"} if has_temperatures(mode) else {}
    rows = (
        (
            Cell(text=str(layer + 1), sort=float(layer)),
            cell(GROUPS[group]),
            *(
                number_cell(last_value(run.curves.get(f"{name}/{layer}/{group}")))
                for name in metrics
            ),
        )
        for layer in layers_of(run)
        for group in (0, 1)
    )
    columns = ("layer", "queries", *metrics.values())
    return make_table("Attention, last logged", columns, rows)


def _metric_table(run: Run) -> Table:
    rows = (
        (cell(name), number_cell(curve.values[0]), number_cell(last_value(curve)))
        for name, curve in run.curves.items()
        if "/" not in name
    )
    return make_table("Metrics, first and last logged", ("metric", "first", "last"), rows)


def _facts(caption: str, columns: tuple[str, str], flat: dict[str, Any]) -> Table:
    return make_table(caption, columns, ((cell(k), cell(v)) for k, v in flat.items()))


# The page


def _command(run: Run) -> str:
    """What repeats a run."""
    file = shlex.quote(run.folder.config.as_posix())
    if lookup(run.provenance, "dataset.source") == "arrays":
        return f"# from Python, on the same arrays, with the settings of {file}"
    return f"tql-offline train --config {file}"


def run_section(named: tuple[str, Run], anchor: str) -> RunSection:
    """All that the page says about a run; without an anchor, only its head."""
    name, run = named
    summary = RunSection(
        anchor=anchor,
        name=name,
        state=state_of(run),
        answer=answer_of(run),
        alarm=alarm_of(run),
        warnings=(*run.warnings, *filter(None, (lack_of(run, s) for s in scores_of(run)))),
    )
    if not anchor:
        return summary
    tables = (_evaluation_table(run), _attention_table(run), _metric_table(run))
    return replace(
        summary,
        plots=run_plots(run, anchor),
        tables=tuple(table for table in tables if table.rows),
        seeds=tuple(_seed_lists(run)),
        settings=_facts("Settings", ("setting", "value"), run.config),
        provenance=_facts("Provenance", ("fact", "value"), run.provenance),
        command=_command(run),
    )


def _seed_lists(run: Run) -> Iterable[tuple[str, str]]:
    """For every counted evaluation, its episodes' seeds and which of them failed."""
    for score in scores_of(run):
        for evaluation in score.evaluations:
            if evaluation.details:
                title = f"{evaluation.policy}, step {grouped(evaluation.step)}"
                yield f"{title}, {evaluation.protocol}", _seed_list(evaluation)


def _seed_list(evaluation: Evaluation) -> str:
    """All seeds, then those that failed or those that succeeded, whichever are fewer."""
    seeds = " ".join(as_text(e.seed) for e in evaluation.details)
    if evaluation.successes is None:
        return seeds
    if evaluation.successes in (0, evaluation.episodes):
        return f"{seeds}; all {'succeeded' if evaluation.successes else 'failed'}"
    rare = 2 * evaluation.successes <= evaluation.episodes
    listed = " ".join(as_text(e.seed) for e in evaluation.details if e.success is rare)
    return f"{seeds}; {'succeeded' if rare else 'failed'}: {listed}"
