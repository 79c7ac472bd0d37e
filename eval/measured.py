"""A run's scores, with what must be equal for two runs to be compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple, Self

from tql_offline.config import SIZES, WITHOUT_CRITIC
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.names import MINARI_PREFIX, with_task
from tql_offline.errors import numbered, shown
from tql_offline.eval.evaluation_records import Evaluation, has_own_episodes
from tql_offline.eval.protocol import namesake, protocol_label
from tql_offline.eval.record_files import count
from tql_offline.eval.rows import DIGEST, OWN, own_name
from tql_offline.eval.run_records import Run, lookup
from tql_offline.eval.variants import Settings, differing, settings_of

REPORTED, IMPORTED = "(reported)", "(imported)"
"""Ends of the labels of columns that hold no runs."""
NO_SIZE = "(no size)"
"""End of the label of a column of runs without a size that would have another's."""
SIMULATORS = ("ogbench", "mujoco", "gymnasium")
_DECIMALS = 9
"""Of a run's score: more are rounding, by which runs of as many successes would differ."""


class Setting(NamedTuple):
    """The facts that must be equal for two runs' scores to be compared."""

    protocol: str
    suite: str = ""
    success_timing: str = ""
    ogbench: str = ""
    mujoco: str = ""
    gymnasium: str = ""

    def __str__(self) -> str:
        """Protocol, suite, timing and versions, as far as they are known."""
        data = f"{self.suite} data" if self.suite else ""
        judged = f"success judged '{self.success_timing}'" if self.success_timing else ""
        versions = (
            f"{name} {version}"
            for name, version in zip(SIMULATORS, self[3:], strict=True)
            if version
        )
        return ", ".join(filter(None, [self.protocol, data, judged, *versions]))


@dataclass(frozen=True, kw_only=True)
class CountedScore:
    """The counted evaluations of one policy of one run under one protocol, taken together.

    Attributes:
        evaluations: the last planned evaluations, at most `counted` of them, ascending in step; if
            none was planned, the last of all.
        counted: how many evaluations the protocol counts.
        every: all evaluations that may count.
        lacking: updates whose evaluations count but are missing; earlier ones stand in for them.
    """

    evaluations: tuple[Evaluation, ...]
    counted: int
    every: tuple[Evaluation, ...]
    lacking: tuple[int, ...] = ()

    @classmethod
    def of(cls, every: Sequence[Evaluation], lacking: tuple[int, ...] = ()) -> Self:
        """Make a score from one or more evaluations, ascending in step."""
        counted = every[-1].counted
        return cls(
            evaluations=tuple(every[-counted:]),
            counted=counted,
            every=tuple(every),
            lacking=lacking,
        )

    @property
    def last(self) -> Evaluation:
        """The evaluation at the latest step."""
        return self.evaluations[-1]

    @property
    def episodes(self) -> int:
        """Number of episodes in all counted evaluations."""
        return sum(e.episodes for e in self.evaluations)

    @property
    def starts(self) -> int:
        """Number of different episodes: a run's evaluations begin from the same states."""
        seeds = {episode.seed for e in self.evaluations for episode in e.details}
        most = max(e.episodes for e in self.evaluations)
        return most if None in seeds else max(len(seeds), most)

    @property
    def successes(self) -> int | None:
        """Number of successful episodes; None if success is not defined."""
        known = [e.successes for e in self.evaluations if e.successes is not None]
        return sum(known) if len(known) == len(self.evaluations) else None

    @property
    def last_three(self) -> float:
        """Mean score of the last three evaluations; NaN if there are fewer."""
        scores = [e.score for e in self.every[-3:]]
        return math.fsum(scores) / 3 if len(scores) == 3 else math.nan

    @property
    def best(self) -> float:
        """The best score of all, an oracle: it cannot be known without playing."""
        return max((e.score for e in self.every if not math.isnan(e.score)), default=math.nan)

    def mean(self, of: Callable[[Evaluation], float]) -> float:
        """Mean over the counted evaluations, each weighted by its episodes."""
        return math.fsum(of(e) * e.episodes for e in self.evaluations) / self.episodes


class Played(NamedTuple):
    """What evaluations of one run must share to be taken together."""

    protocol: str
    env_id: str
    success_timing: str


def played_of(evaluation: Evaluation) -> Played:
    """How an evaluation was played."""
    return Played(evaluation.protocol, evaluation.env_id, evaluation.success_timing)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A finished run's scores; of a run that ended without any, what tells where they would be.

    Attributes:
        name: the run's name in warnings.
        task: name of the dataset, by which papers name a task; without one, the environment.
        dataset: the dataset as the run was given it, which may be a path on any machine.
        method: name of the method; with its size, one column of a board.
        size: the critic's size; empty if there is no critic.
        parameters: number of the critic's parameters.
        dataset_sha256: digest of the data trained on.
        env_id: the environment played in, as the run names it.
        tql_offline: version that the run was made with; empty if unknown.
        score: mean score of the counted evaluations.
        last: score of the last evaluation.
        last_three: mean score of the last three; NaN if there are fewer. Here and below, those that
            were played under other conditions than the counted ones are left out.
        best: score of the best evaluation, an oracle: it cannot be chosen without playing.
        updates: number of updates done.
        seconds: time spent in updates; NaN if the run did not record it.
        device: what updates were computed on; empty if unknown.
        flops: operations of matrix products in all updates; NaN if they were not counted.
        settings: the settings that the run was trained with; see `variants`.
        counted: number of evaluations that the score is the mean of.
        reference: what the score was normalised by, in words; empty if it was not.
        conditions: what runs of one row have in common, as far as known: data, environment, step
            limit, reference.
        behaviour: score of the policy cloned from the same data, in as many episodes and, as far as
            seeds were recorded, the same ones; NaN if there is none.
        in_same_episodes: whether recorded seeds show that `behaviour` and all evaluations that
            count are of the same episodes.
        in_own_episodes: whether recorded seeds show that all evaluations that count are of the
            protocol's own episodes.
        curve: score by update of every evaluation that the protocol plans.
    """

    name: str
    setting: Setting
    task: str
    dataset: str
    method: str
    size: str
    parameters: int | None
    seed: int
    dataset_sha256: str
    env_id: str
    tql_offline: str
    settings: Settings
    conditions: Mapping[str, str]
    score: float = math.nan
    last: float = math.nan
    last_three: float = math.nan
    best: float = math.nan
    updates: int = 0
    seconds: float = math.nan
    flops: float = math.nan
    device: str = ""
    counted: int = 0
    reference: str = ""
    behaviour: float = math.nan
    in_same_episodes: bool = False
    in_own_episodes: bool = False
    curve: Mapping[int, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the run's column."""
        return f"{self.method} {self.size}".strip()


def measured(run: Run) -> Measured | str:
    """A run's scores, or the reason it is not on a board, as the end of a sentence."""
    result = run.result
    if run.fault:
        return f"has a result.json that {run.fault}"
    if run.ended:
        return f"was stopped by watch.{run.ended.rule}" if run.ended.rule else "diverged"
    if not result:
        return "is unfinished"
    label = protocol_label(result.get("protocol"))
    learned = [e for e in run.evaluations if e.policy == "learned"]
    if not learned:
        return "is not scored yet (`tql-offline eval RUN --missing` scores it)"
    known = [e for e in learned if e.protocol == label and math.isfinite(e.score) and run.plans(e)]
    if not known:
        return "has no score that its own protocol plans (`tql-offline eval RUN --missing` adds it)"
    seed = count(result.get("seed"))
    task = task_name(run)
    if seed is None or not task:
        return f"has a result without a {'task' if seed is not None else 'seed'}"
    method = _string(result.get("method")) or "unnamed"
    size = _string(result.get("size"))
    if f"{method} {size}".strip().endswith((REPORTED, IMPORTED, NO_SIZE)):
        return f"has a method {shown(f'{method} {size}')}, which is the name of another column"
    if size not in ("", *SIZES):
        return f"has a critic of size {shown(size)}; the sizes are {', '.join(SIZES)}"
    score = CountedScore.of(known)
    if len(score.evaluations) < score.counted:
        planned = numbered(len(known), "planned evaluation", "planned evaluations")
        return f"has {planned} where its protocol counts {score.counted}"
    if missing := run.lacking(known):
        return f"has no score of update {', '.join(map(str, missing))}, which its protocol counts"
    settings = {setting_played(run, label, evaluation) for evaluation in score.evaluations}
    conditions = [conditions_of(run, evaluation) for evaluation in score.evaluations]
    unlike = [*map(str, sorted(settings))] if len(settings) > 1 else []
    unlike += [f"{key} differs" for key in differing(conditions)]
    if unlike:
        played = "; ".join(unlike)
        return f"has counted evaluations that cannot be compared ({played}); evaluate them again"
    known = [e for e in known if _are_alike(run, e, score.last)]
    score = CountedScore.of(known)
    updates = count(result.get("updates")) or known[-1].step
    flops = count(result.get("flops_per_update"))
    behaviour = _behaviour(run, score.last)
    return Measured(
        name=run.name,
        setting=settings.pop(),
        task=task,
        dataset=_string(result.get("dataset")),
        method=method,
        size=size,
        parameters=count(result.get("parameters")),
        seed=seed,
        dataset_sha256=_data_digest(run),
        env_id=score.last.env_id,
        tql_offline=_string(run.provenance.get("tql_offline")),
        score=_mean([e.score for e in score.evaluations]),
        last=score.last.score,
        last_three=score.last_three,
        best=score.best,
        updates=updates,
        seconds=run.seconds,
        flops=float(flops * updates) if flops else math.nan,
        device=_string(run.provenance.get("device")),
        settings=settings_of(run),
        counted=score.counted,
        reference=score.last.reference,
        conditions={key: value for known in conditions for key, value in known.items()},
        behaviour=behaviour.score if behaviour else math.nan,
        in_same_episodes=behaviour is not None
        and all(_have_same_episodes(run, behaviour, e) for e in score.evaluations),
        in_own_episodes=all(map(has_own_episodes, score.evaluations)),
        curve={evaluation.step: evaluation.score for evaluation in known},
    )


def _mean(scores: Sequence[float]) -> float:
    """Mean of scores, the same for equal sums: 100 · k / n in another order rounds otherwise."""
    return round(fmean(scores), _DECIMALS)


def _behaviour(run: Run, learned: Evaluation) -> Evaluation | None:
    """The last evaluation of the behaviour policy that may be of another one's episodes."""
    behaviour = [e for e in run.evaluations if e.policy == "behaviour"]
    like = [e for e in behaviour if _have_same_episodes(run, e, learned) is not False]
    return like[-1] if like else None


def _are_alike(run: Run, one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations of a run are of one setting, and of no condition known to differ."""
    pair = (one, other)
    return len({setting_played(run, e.protocol, e) for e in pair}) == 1 and not differing(
        conditions_of(run, e) for e in pair
    )


def _have_same_episodes(run: Run, one: Evaluation, other: Evaluation) -> bool | None:
    """Whether two evaluations played the same episodes; None if their seeds do not tell."""
    if one.episodes != other.episodes or not _are_alike(run, one, other):
        return False
    pairs = [(a.seed, b.seed) for a, b in zip(one.details, other.details, strict=False)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if any(a != b for a, b in known):
        return False
    return True if len(known) == one.episodes else None


def unscored(run: Run) -> Measured:
    """A run that ended without a score as it would be on a board, as far as it came to record it.

    Args:
        run: a run with usable settings and no result.
    """
    protocol = _string(run.config.get("evaluation.protocol"))
    learned = [e for e in run.evaluations if e.policy == "learned"]
    own = [e for e in learned if namesake(e.protocol) == namesake(protocol)]
    last = own[-1] if own else None
    has_critic = run.config.get("objective") not in WITHOUT_CRITIC
    return Measured(
        name=run.name,
        setting=setting_played(run, protocol, last),
        task=task_name(run),
        dataset=_dataset(run),
        method=run.method,
        size=_string(run.config.get("critic.size")) if has_critic else "",
        parameters=count(run.provenance.get("critic_parameters")),
        seed=count(run.config.get("seed")) or 0,
        dataset_sha256=_data_digest(run),
        env_id=_string(run.provenance.get("environment.env_id")),
        tql_offline=_string(run.provenance.get("tql_offline")),
        settings=settings_of(run),
        conditions=conditions_of(run, last),
    )


def task_name(run: Run) -> str:
    """Name of a run's dataset with its task, or of the environment if there is no dataset."""
    name, recorded = _dataset(run), _string(run.provenance.get("dataset.name"))
    if name and suite_of(name) == OWN:
        return recorded or (name if name.startswith(MINARI_PREFIX) else own_name(name))
    return with_task(name or _string(run.result.get("task")))


def _dataset(run: Run) -> str:
    """Name of a run's dataset, or the path of its file; empty if neither is known."""
    told = run.result or {"dataset": run.config.get("dataset.name")}
    name, env_id = _string(told.get("dataset")), _string(told.get("task"))
    if name.startswith(MINARI_PREFIX) or env_id.startswith(MINARI_PREFIX):
        # The name may be a folder, which differs between machines.
        return _string(run.provenance.get("dataset.name")) or name
    return with_task(name)


def _data_digest(run: Run) -> str:
    """SHA-256 of a run's data, by its result or, where there is none, by what it began with."""
    key = "dataset_sha256" if run.result else "dataset.sha256"
    return _string((run.result or run.provenance).get(key))


def setting_played(run: Run, protocol: str, evaluation: Evaluation | None) -> Setting:
    """The setting an evaluation was played with; if not recorded, what the run began with."""
    facts, played = run.provenance, dict(evaluation.versions if evaluation else ())
    recorded = evaluation.success_timing if evaluation else ""
    timing = recorded or _string(lookup(facts, "success_timing"))
    versions = (played.get(name) or _string(lookup(facts, name)) for name in SIMULATORS)
    # A file of one's own is of no suite, whatever it is called.
    return Setting(protocol, suite_of(_dataset(run) or task_name(run)), timing, *versions)


def conditions_of(run: Run, evaluation: Evaluation | None) -> dict[str, str]:
    """The conditions that distinguish a task's rows, without those that were not recorded."""
    began, e = run.provenance, evaluation
    # Of the environment's own package.
    others = {name: at for name, at in e.versions if name not in SIMULATORS} if e else {}
    env_id = (e.env_id if e else "") or _string(began.get("environment.env_id"))
    played_limit = e.max_episode_steps if e else None
    limit = played_limit or count(began.get("environment.max_episode_steps"))
    found = {
        **others,  # first, as its names are the file's
        "data": _data_digest(run)[:DIGEST],
        "environment": _environment(env_id),
        "step limit": str(limit or ""),
        # Without its source, which may name a folder on one machine.
        "reference": e.reference.partition(", from ")[0] if e else "",
    }
    return {key: value for key, value in found.items() if value}


def _environment(env_id: str) -> str:
    """An environment's id without what differs between machines that have the same environment."""
    # A Minari dataset names its environment, and may be named by the folder it lies in.
    return "of the dataset" if env_id.startswith(MINARI_PREFIX) else with_task(env_id)


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""
