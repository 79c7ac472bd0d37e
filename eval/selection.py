"""The gain from choosing among a method's policies by online episodes, against its cost.

Offline methods have settings that somebody chooses, and the usual choice, by the scores that are
then printed, plays hundreds of episodes for free. Here the choice is played out, by unifloral's
protocol (Jackson et al., "A Clean Slate for Offline Reinforcement Learning", 2025): some policies
of the pool, trained with any settings and seeds, are the arms of a bandit, an episode is a pull,
and after each pull the score is the true mean of the arm that looks best.

One thing differs. The true mean can only be estimated from the episodes that were played, and an
estimate from the episodes that also made the choice is too high. So one half of each run's episodes
chooses and the other half evaluates, and vice versa. With the paper's 1,000 episodes it matters
little.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tql_offline.eval.evaluation_records import RecordedEpisode
from tql_offline.eval.measured import Measured, conditions_of, measured, setting_played
from tql_offline.eval.protocol import Scale, scores_success
from tql_offline.eval.rows import row_names, with_shared_names
from tql_offline.eval.run_records import Run
from tql_offline.eval.statistics import Scores, student_t

ARMS, PULLS = 8, 200
"""The paper's numbers of policies to choose among and of episodes that a choice may take."""
REPEATS = 5000
"""Number of choices that are averaged; the paper's 500 would add noise to the interval."""
SUCCESS = "success %"
EXPLORATION = 2.0
"""α of UCB1, for rewards in [0, 1]."""
FEWEST_EPISODES = 10
_SAME_MEAN = 1e-9
"""Relative distance up to which means are equal: sums in another order round otherwise."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The runs of one method at one size on one task, with any settings and seeds.

    Attributes:
        task: the task, with the conditions that distinguish it from other pools'.
        setting: the setting under which the episodes were played, which may be of another protocol
            than the runs' own.
        unit: unit of the scores: `success %`, `normalised score` or `return`.
        episodes: for each run, `(episodes,)` scores of single episodes of its last policy.
        bounds: scores that are the bandit's rewards 0 and 1.
    """

    task: str
    setting: str
    method: str
    size: str
    unit: str
    runs: tuple[str, ...]
    episodes: tuple[Scores, ...]
    bounds: tuple[float, float]

    @property
    def alike(self) -> bool:
        """Whether all runs have the same mean, and so no spread that tells what others would do."""
        means = [(row[::2].mean() + row[1::2].mean()) / 2 for row in self.episodes]
        return bool(np.allclose(means, means[0], rtol=_SAME_MEAN))


@dataclass(frozen=True, kw_only=True)
class SelectionCurve:
    """The expected score of the chosen policy after each pull, `(pulls,)`.

    Attributes:
        mean: mean over choices.
        low: lower end of the 95 % interval over runs; NaN for fewer than two runs per arm, or where
            all runs have the same mean.
        high: upper end, likewise.
        blind: expected score of a policy chosen at random, without a pull.
        by_all: expected score of the arm that is best by all episodes available for choosing.
    """

    mean: Scores
    low: Scores
    high: Scores
    blind: float
    by_all: float


def selection_curve(
    pool: Pool,
    generator: np.random.Generator,
    *,
    arms: int = ARMS,
    pulls: int = PULLS,
    repeats: int = REPEATS,
) -> SelectionCurve:
    """Play a bandit over the policies of a pool again and again.

    Args:
        pool: a pool of two or more runs.
        generator: the only source of randomness.
        arms: number of policies drawn for each choice, without repetition; all if the pool has
            fewer.
        pulls: number of episodes that a choice takes.
        repeats: number of choices that the mean is over.
    """
    halves = [_half(pool, 0), _half(pool, 1)]
    arms, runs = min(arms, len(pool.runs)), len(pool.runs)
    picks = _draw(np.tile(np.arange(runs), (repeats, 1)), arms, generator)
    values = _valued(halves, [_chosen(half, picks, pulls, generator) for half in halves])
    by_all = [picks[np.arange(repeats), half.means[picks].argmax(axis=1)] for half in halves]
    mean = values.mean(axis=0)
    # With fewer runs, nearly all choices are among the same and it covers too little: docs/log.md.
    has_margin = runs >= 2 * arms and not pool.alike
    margin = _margin(picks, values, runs) if has_margin else np.full(pulls, math.nan)
    ends = (0.0, 100.0) if pool.unit == SUCCESS else (-math.inf, math.inf)
    return SelectionCurve(
        mean=mean,
        low=np.clip(mean - margin, *ends),
        high=np.clip(mean + margin, *ends),
        blind=float(np.mean([half.means for half in halves])),
        by_all=float(_valued(halves, by_all).mean()),
    )


def _margin(picks: NDArray[np.int64], values: Scores, runs: int) -> Scores:
    """Half-width of the 95 % interval over runs, `(pulls,)`: Student's t by a jackknife.

    The mean over choices is a U-statistic of the runs: without a run, it is the mean of the choices
    that do not include it.
    """
    is_without = np.array([(picks != run).all(axis=1) for run in range(runs)])
    # If every choice includes a run, as few choices may, none is left without it: 0 / 0.
    with np.errstate(invalid="ignore"):
        without = is_without @ values / is_without.sum(axis=1, keepdims=True)
    variance = (runs - 1) * without.var(axis=0)
    margin: Scores = student_t(runs - 1) * np.sqrt(variance)
    return margin


def _draw(pools: NDArray[np.int64], arms: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw from each row's entries in random order, without replacement; `(rows, arms)`."""
    order: NDArray[np.int64] = np.argsort(generator.random(pools.shape), axis=1)[:, :arms]
    return np.take_along_axis(pools, order, axis=1)


@dataclass(frozen=True, kw_only=True)
class _Half:
    """Half of each run's episodes: the bandit's `rewards`, padded, and `means` of the scores."""

    rewards: NDArray[np.float64]
    counts: NDArray[np.int64]
    means: Scores


def _half(pool: Pool, parity: int) -> _Half:
    parts = [episodes[parity::2] for episodes in pool.episodes]
    low, high = pool.bounds
    rewards = np.zeros((len(parts), max(map(len, parts))))
    for row, part in zip(rewards, parts, strict=True):
        row[: len(part)] = (part - low) / (high - low)
    return _Half(
        rewards=rewards,
        counts=np.array([len(part) for part in parts]),
        means=np.array([part.mean() for part in parts]),
    )


def _valued(halves: Sequence[_Half], chosen: Sequence[NDArray[np.int64]]) -> Scores:
    """Mean scores of the runs that each half chose, by the episodes of the other half."""
    scores: Scores = (halves[1].means[chosen[0]] + halves[0].means[chosen[1]]) / 2
    return scores


def _chosen(
    half: _Half, picks: NDArray[np.int64], pulls: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """The run that looks best after each pull of UCB1; `(choices, pulls)`.

    Each arm is pulled once, then always the one with the largest mean + sqrt(α ln t / n), where n
    are its pulls and t all pulls. The arm that looks best is the one with the largest mean.
    """
    rows = np.arange(len(picks))
    totals, counts = np.zeros(picks.shape), np.zeros(picks.shape)
    best = np.empty((len(picks), pulls), np.int64)
    for pull in range(pulls):
        if pull < picks.shape[1]:
            arm = np.full(len(picks), pull)
        else:
            arm = np.argmax(ucb(totals, counts, pull), axis=1)
        run = picks[rows, arm]
        episode = (generator.random(len(picks)) * half.counts[run]).astype(np.int64)
        totals[rows, arm] += half.rewards[run, episode]
        counts[rows, arm] += 1
        means = np.divide(totals, counts, out=np.full(picks.shape, -np.inf), where=counts > 0)
        best[:, pull] = picks[rows, np.argmax(means, axis=1)]
    return best


def ucb(totals: Scores, counts: Scores, pulls: int) -> Scores:
    """Upper confidence bounds of arms that have each been pulled at least once."""
    bounds: Scores = totals / counts + np.sqrt(EXPLORATION * math.log(pulls) / counts)
    return bounds


# From runs to pools.


@dataclass(frozen=True, kw_only=True)
class _Played:
    """A run with the single episodes of its last policy, played under a protocol."""

    run: Measured
    protocol: str
    episodes: tuple[RecordedEpisode, ...]
    normalised_by: Scale | None


def pools(runs: Iterable[Run]) -> tuple[list[Pool], list[str]]:
    """Sort finished runs by task, method and size.

    Returns:
        Pools of two or more runs, and a sentence for every run that was left out.
    """
    found: dict[tuple[str, ...], list[_Played]] = {}
    left: list[str] = []
    usable: list[_Played] = []
    for run in runs:
        read = _played(run)
        if isinstance(read, str):
            left.append(f"{run.name} {read}")
        else:
            usable.append(read)
    shared = with_shared_names([played.run for played in usable])
    for played, facts in zip(usable, shared, strict=True):
        pool = (facts.task, facts.method, facts.size, str(facts.setting))
        like = (*pool, *facts.conditions.values())
        same = next((p.run for p in found.get(like, []) if _is_copy(p.run, facts)), None)
        if same is not None:
            left.append(f"{facts.name} has the seed, settings and score of {same.name}: a copy")
        else:
            found.setdefault(like, []).append(replace(played, run=facts))
    alone = [each[0].run for each in found.values() if len(each) == 1]
    left += [f"{run.name} is the only run of {run.label} on {run.task}" for run in alone]
    several = [each for each in found.values() if len(each) > 1]
    several.sort(key=lambda each: _column_order(each[0].run))
    tasks = row_names([each[0].run for each in several])
    return [_pool(each, task) for each, task in zip(several, tasks, strict=True)], left


def _column_order(run: Measured) -> tuple[str, str, int]:
    return run.task, run.method, run.parameters or 0


def _is_copy(first: Measured, second: Measured) -> bool:
    """Whether two runs are the same one: a copy's episodes would count as another policy."""
    alike = (first.seed, first.settings, first.updates) == (
        second.seed,
        second.settings,
        second.updates,
    )
    return alike and first.score == second.score


def _played(run: Run) -> _Played | str:
    """The parts of a run that a pool uses, or the reason it cannot use the run."""
    scored = measured(run)
    if isinstance(scored, str):
        return scored
    learned = [e for e in run.evaluations if e.policy == "learned" and e.env_id == scored.env_id]
    last = [e for e in learned if e.step == learned[-1].step]
    most = max(last, key=lambda evaluation: len(evaluation.details))
    if len(most.details) < FEWEST_EPISODES:
        return f"has fewer than {FEWEST_EPISODES} episodes of its last policy"
    if not all(math.isfinite(episode.total) for episode in most.details):
        return "has an episode whose return is no number"
    if scores_success(scored.setting.protocol) and any(e.success is None for e in most.details):
        return "has an episode of which it is not known whether it succeeded"
    own = [e.normalised_by for e in learned if e.protocol == scored.setting.protocol]
    # These episodes may have been played later than those of the score, with other versions.
    reference = {key: scored.conditions[key] for key in ["reference"] if key in scored.conditions}
    return _Played(
        run=replace(
            scored,
            setting=setting_played(run, scored.setting.protocol, most),
            conditions=conditions_of(run, most) | reference,
        ),
        protocol=most.protocol,
        episodes=most.details,
        normalised_by=own[-1],
    )


def _pool(runs: Sequence[_Played], task: str) -> Pool:
    first = runs[0].run
    scores, unit, bounds = _scores(runs)
    protocols = " and ".join(dict.fromkeys(played.protocol for played in runs))
    return Pool(
        task=task,
        setting=str(first.setting._replace(protocol=protocols)),
        method=first.method,
        size=first.size,
        unit=unit,
        runs=tuple(played.run.name for played in runs),
        episodes=tuple(scores),
        bounds=bounds,
    )


def _scores(runs: Sequence[_Played]) -> tuple[list[Scores], str, tuple[float, float]]:
    """Scores of single episodes in the unit of the runs' own protocol."""
    if scores_success(runs[0].run.setting.protocol):
        succeeded = [[bool(e.success) for e in played.episodes] for played in runs]
        return [100.0 * np.array(row) for row in succeeded], SUCCESS, (0.0, 100.0)
    returns = [np.array([e.total for e in played.episodes]) for played in runs]
    if scale := runs[0].normalised_by:
        return [scale.of(row) for row in returns], "normalised score", (0.0, scale.scale)
    low, high = min(map(np.min, returns)), max(map(np.max, returns))
    return returns, "return", (float(low), float(high) if high > low else float(low) + 1)


def shown_pulls(pulls: int) -> Iterator[int]:
    """Numbers of pulls after which a table shows the score: 1, 2, 4, ... and the last.

    >>> list(shown_pulls(20))
    [1, 2, 4, 8, 16, 20]
    """
    pull = 1
    while pull < pulls:
        yield pull
        pull *= 2
    yield pulls
