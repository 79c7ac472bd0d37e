"""Facts a report gives about one run: its name, counted scores and answer in one sentence."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from tql_offline.config import FLOW_POLICIES, WITHOUT_CRITIC
from tql_offline.eval.attention_health import COLLAPSED, alarm_sentence, layer_means
from tql_offline.eval.curve_records import Curve
from tql_offline.eval.evaluation_records import Evaluation
from tql_offline.eval.measured import CountedScore, Played, played_of
from tql_offline.eval.protocol import protocol_label
from tql_offline.eval.record_files import count
from tql_offline.eval.report_tables import NONE, as_text, figure, grouped
from tql_offline.eval.run_records import Run
from tql_offline.eval.statistics import wilson_interval

MAX_LAYERS = 32

GROUPS = ("[VALUE] query", "other queries")


def percent(rate: float, episodes: int) -> str:
    """A rate in percent, with a decimal only if there are enough episodes to justify it.

    >>> percent(49 / 50, 50), percent(0.98765, 1000)
    ('98', '98.8')
    """
    return f"{100 * rate:.{0 if episodes < 200 else 1}f}"


def rate_text(
    successes: int, episodes: int, interval_name: str = "", starts: int | None = None
) -> str:
    """A success rate with its 95% Wilson interval.

    Args:
        successes: number of successful episodes.
        episodes: number of episodes played.
        interval_name: text before the interval.
        starts: number of different initial states, which the interval counts instead of episodes: a
            second episode from one state adds little. None: all are different.

    >>> rate_text(49, 50).replace(chr(160), " ")
    '98 %, 90–100 %'
    >>> rate_text(135, 150, starts=50).replace(chr(160), " ")
    '90 %, 79–96 %'
    """
    low, high = success_interval(successes, episodes, starts)
    rate = percent(successes / episodes, episodes)
    between = f"{percent(low, episodes)}–{percent(high, episodes)}"
    return f"{rate}\u00a0%, {interval_name}{between}\u00a0%"


def success_interval(
    successes: int, episodes: int, starts: int | None = None
) -> tuple[float, float]:
    """95 % Wilson interval of a success rate over `starts` different initial states."""
    different = starts or episodes
    return wilson_interval(successes * different / episodes, different)


def scores_of(run: Run) -> tuple[CountedScore, ...]:
    """The counted evaluations of each policy under each protocol, in order of appearance."""
    groups: dict[Played, dict[str, list[Evaluation]]] = {}
    for evaluation in run.evaluations:
        policies = groups.setdefault(played_of(evaluation), {})
        policies.setdefault(evaluation.policy, []).append(evaluation)
    return tuple(
        _score(run, policy, found)
        for policies in groups.values()
        for policy, found in sorted(policies.items(), key=lambda item: policy_order(item[0]))
    )


def _score(run: Run, policy: str, evaluations: Sequence[Evaluation]) -> CountedScore:
    planned = [e for e in evaluations if run.plans(e)] or evaluations
    # Other policies are scored only at the end.
    return CountedScore.of(planned, run.lacking(planned) if policy == "learned" else ())


def lack_of(run: Run, score: CountedScore) -> str:
    """A sentence on counted evaluations that a run's own protocol misses; empty if it has all."""
    own = protocol_label(run.result.get("protocol"))
    if not score.lacking or own != score.last.protocol:
        return ""
    return (
        f"{own} counts the score at update {', '.join(f'{step:,}' for step in score.lacking)}, "
        f"which is missing; `tql-offline eval {shlex.quote(run.folder.path.as_posix())} --missing` "
        "adds it"
    )


def policy_order(policy: str) -> tuple[int, str]:
    """Sort key that puts the learned policy first and the behaviour second."""
    known = ("learned", "behaviour")
    return (known.index(policy) if policy in known else len(known), policy)


def main_played(run: Run) -> Played | None:
    """What a run is judged by: its result's protocol, or failing that the first played."""
    named = protocol_label(run.result.get("protocol"))
    played = [played_of(evaluation) for evaluation in run.evaluations]
    first = played[0] if played else None
    return next((one for one in played if named and one.protocol == named), first)


def main_scores(run: Run) -> dict[str, CountedScore]:
    """Scores by policy, of what a run is judged by."""
    main = main_played(run)
    return {s.last.policy: s for s in scores_of(run) if played_of(s.last) == main}


# A run's names and outcome


def with_distinct_names(runs: list[Run]) -> list[tuple[str, Run]]:
    """Pair runs with their names; those that share a name are named by their paths."""
    names = [run.name for run in runs]
    return [
        (run.name if names.count(run.name) == 1 else run.folder.path.as_posix(), run)
        for run in runs
    ]


def fact(run: Run, *names: str) -> Any:
    """A fact about a run: under any of its names in its result, config and provenance in turn."""
    for table in (run.result, run.config, run.provenance):
        for name in names:
            value = table.get(name)
            if value is not None and not isinstance(value, dict | list):
                return value
    return None


def method_of(run: Run) -> str:
    """The method's name in the literature; with an unusable config, its objective and critic."""
    method = run.result.get("method") or run.method
    if isinstance(method, str) and method:
        return method
    parts = (run.config.get("objective"), run.config.get("critic.kind"))
    return " ".join(p for p in parts if isinstance(p, str)) or "unknown method"


def size_of(run: Run) -> str:
    """The critic's size, or a dash if there is none."""
    has_critic = run.config.get("objective") not in WITHOUT_CRITIC
    return as_text(fact(run, *(("size", "critic.size") if has_critic else ("size",))))


def label_of(run: Run) -> str:
    """Method and size."""
    return f"{method_of(run)} {size_of(run)}" if size_of(run) != NONE else method_of(run)


def dataset_of(run: Run) -> str:
    """Name of the data trained on."""
    named = run.result.get("dataset") or run.config.get("dataset.name")
    named = named or run.provenance.get("dataset.name") or run.config.get("dataset.path")
    return as_text(named)


def parameters_of(run: Run) -> int | None:
    """Number of the critic's parameters."""
    return count(fact(run, "parameters", "critic_parameters"))


def state_of(run: Run) -> str:
    """Whether the run is finished, and how many updates it has done."""
    done = f"{grouped(run.steps_done)} updates"
    if run.finished:
        return f"finished, {done}"
    if run.ended:
        return f"ended by update {grouped(run.ended.step)}: {run.ended.sentence}"
    state = "without a usable result" if run.fault else "unfinished"
    planned = count(fact(run, "steps", "updates"))
    if not planned:
        return f"{state}, {done}"
    return f"{state}, {grouped(run.steps_done)} of {grouped(planned)} updates"


def answer_of(run: Run) -> str:
    """The run in one sentence: the learned policy compared with the behaviour of its data."""
    label = label_of(run) if run.finished else f"{label_of(run)} ({state_of(run)})"
    scores = main_scores(run)
    if not scores:
        return f"{label}: no evaluation yet."
    dated = {score.last.step for score in scores.values()} != {run.steps_done}
    parts: list[str] = []
    for policy, score in scores.items():
        who = label if policy == "learned" else _policy_name(policy, run)
        parts.append(f"{who}: {_outcome(score, first=not parts, dated=dated)}")
    if "learned" not in scores:
        parts.insert(0, f"{label}: the learned policy was not evaluated")
    return "; ".join(parts) + "."


def _policy_name(policy: str, run: Run) -> str:
    if policy != "behaviour":
        return policy
    objective = run.result.get("objective") or run.config.get("objective")
    kind = "flow" if objective in FLOW_POLICIES else "policy"
    return f"behaviour {kind} of the same data"


def _outcome(score: CountedScore, *, first: bool, dated: bool) -> str:
    """A score in words; `dated` says at which update the policy was scored."""
    when = f" at update {grouped(score.last.step)}" if dated else ""
    if score.successes is None:
        value = score.mean(lambda e: e.return_mean)
        return f"mean return {figure(value)} over {score.episodes} episodes{when}"
    if not first:
        rate = rate_text(score.successes, score.episodes, starts=score.starts)
        return f"{score.successes}/{score.episodes}{when} ({rate})"
    name = "95\u00a0% Wilson interval "
    rate = rate_text(score.successes, score.episodes, name, score.starts)
    number = len(score.evaluations)
    where = "" if number == 1 else f" in the last {number} evaluations"
    return f"{score.successes}/{score.episodes} successes{where}{when} ({rate})"


# A run's logged curves


def last_value(curve: Curve | None) -> float:
    """A curve's last value; NaN if there is no curve."""
    return math.nan if curve is None else curve.values[-1]


def layers_of(run: Run, of: str = "") -> list[int]:
    """Layers whose entropy was logged, of the critic or, with `of="value_"`, of V."""
    return [n for n in range(MAX_LAYERS) if f"{of}entropy/{n}/0" in run.curves]


def entropy_mode_of(run: Run) -> Any:
    """How the run controlled its entropies; None if unknown."""
    return fact(run, "entropy.mode", "entropy")


def tokens_of(run: Run, of: str = "") -> int | None:
    """Number of tokens L of the critic or, with `of="value_"`, of V; None if unknown."""
    return count(fact(run, f"{of}tokens")) or None


def collapse_of(run: Run, of: str = "") -> tuple[tuple[int, ...], int]:
    """Layers, from 1, whose attention has collapsed, and the logged update since which one has.

    Args:
        run: any run.
        of: `""` for the critic, `"value_"` for V.

    Returns:
        No layers if none has collapsed, or if entropies or tokens were not logged.
    """
    tokens, layers = tokens_of(run, of), layers_of(run, of)
    if tokens is None or not layers:
        return (), 0
    found, since = [], []
    for layer in layers:
        pair = [run.curves.get(f"{of}entropy/{layer}/{group}") for group in (0, 1)]
        value, others = (curve.values if curve else () for curve in pair)
        steps = pair[0].steps if pair[0] else ()
        if len(value) != len(others):
            continue  # a line of the log was damaged
        below = layer_means(list(zip(value, others, strict=True)), tokens) < COLLAPSED
        if below[-1]:
            found.append(layer + 1)
            since.append(steps[len(below) - int(np.argmin([*below[::-1], False]))])
    return tuple(found), min(since, default=0)


def alarm_of(run: Run) -> str:
    """The alarm: a sentence each for the critic and V, empty if neither has collapsed."""
    return " ".join(filter(None, [_alarm(run, "", ""), _alarm(run, "value_", "in V ")]))


def _alarm(run: Run, of: str, where: str) -> str:
    layers, since = collapse_of(run, of)
    if not layers:
        return ""
    entropy = [
        [last_value(run.curves.get(f"{of}entropy/{layer}/{group}")) for group in (0, 1)]
        for layer in layers_of(run, of)
    ]
    return alarm_sentence(entropy, tokens_of(run, of) or 1, f"{where}since update {grouped(since)}")
