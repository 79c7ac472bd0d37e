"""Evaluation protocols: what makes two scores comparable, as versioned data (`protocols.toml`).

A variant with numbers other than its entry's is a protocol of its own: `quick:5` plays 5 episodes,
and `quick@2000` evaluates every 2,000 updates. Its name differs, so its scores are pooled with no
others.
"""

import functools
import re
import tomllib
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError

_NAME = re.compile(r"(?P<name>[^:@]*)(?::(?P<episodes>\d{1,9}))?(?:@(?P<every>\d{1,9}))?", re.ASCII)
MAX_EPISODES = 10_000
"""Most episodes that a name may ask for: a million would be a slip, and would take days."""

_Returns = TypeVar("_Returns", float, NDArray[np.float64])


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How policies are evaluated, and which evaluations make a run's score.

    Attributes:
        name: what reports print; scores pool only within one name and version.
        version: raised whenever any other field changes.
        episodes: episodes per evaluation.
        evaluate_every: updates between evaluations; used where `evaluations` is 0.
        evaluations: number of evaluations, evenly spaced over the run; 0 to use `evaluate_every`.
        counted: a run's score is its last evaluation, or the mean of its last three.
        training_steps: updates of a full run under this protocol.
        seeds: runs per task that a full result needs.
        bold: tables print scores of at least this fraction of the row's best in bold, unless all of
            the row's are equal (`scores.bold`).
        score: success rate in percent, mean undiscounted return, or that return normalised by
            reference scores.
        slots: environments stepped together, the policy's batch; part of the protocol because a
            policy's arithmetic may change in its last bits with the size of its batch.
        goals: goals of a goal-conditioned environment, `episodes` each; 0 for a single task.
        references: table of `references.toml` by whose scores a return is normalised.
    """

    name: str
    version: int
    episodes: int
    evaluate_every: int
    evaluations: int
    counted: Literal["last", "last-3"]
    training_steps: int
    seeds: int
    bold: float
    score: Literal["success", "return", "normalised"]
    slots: int
    goals: int = 0
    references: str = ""

    @property
    def episodes_played(self) -> int:
        """Number of episodes of an evaluation, over all goals."""
        return self.episodes * max(self.goals, 1)


class Scale(NamedTuple):
    """The returns that a normalised score maps to 0 and to `scale`, and that scale."""

    low: float
    high: float
    scale: float

    def of(self, returns: _Returns) -> _Returns:
        """`scale · (R - low) / (high - low)` (D4RL, arXiv 2004.07219, section 4)."""
        return self.scale * (returns - self.low) / (self.high - self.low)


@functools.cache
def protocols() -> tuple[Protocol, ...]:
    """Every known protocol, in the order of `protocols.toml`."""
    text = resources.files(__package__).joinpath("protocols.toml").read_text(encoding="utf-8")
    return tuple(Protocol(**table) for table in tomllib.loads(text)["protocol"])


def get(name: str, version: int | None = None) -> Protocol:
    """Look a protocol up by name, in its newest version or the one asked for.

    Args:
        name: an entry's name, or a variant with other numbers: `NAME:EPISODES@UPDATES`, either or
            both.
        version: the entry's version; None takes the newest.

    Raises:
        InputError: no such protocol or version, or numbers out of range; the message for the
            former lists the known protocols.

    >>> get("ogbench-singletask").episodes
    50
    >>> evaluation_steps(get("quick:5@2000"), 5000), get("quick:5@2000").episodes
    ([2000, 4000, 5000], 5)
    """
    parts = _NAME.fullmatch(name)
    base = parts["name"] if parts else name
    matches = [p for p in protocols() if p.name == base and version in (None, p.version)]
    if parts is None or not matches:
        asked = repr(name) if version is None else f"{name!r} version {version}"
        known = ", ".join(f"{p.name} (version {p.version})" for p in protocols())
        raise InputError(
            f"there is no protocol {asked}; choose one of: {known}; with NAME:EPISODES@UPDATES for "
            "other numbers than its own"
        )
    protocol = max(matches, key=lambda p: p.version)
    episodes, every = (int(n) if n else None for n in parts.group("episodes", "every"))
    changed = _with_numbers(protocol, episodes, every)
    if changed.name != name:  # each protocol has only one name, by which scores are found again
        raise InputError(f"protocol {name!r} is {changed.name!r}; name it so")
    return changed


def _with_numbers(protocol: Protocol, episodes: int | None, every: int | None) -> Protocol:
    """Change episodes and updates between evaluations; the name changes only if they do."""
    name = protocol.name
    if 0 in (episodes, every) or (episodes or 1) > MAX_EPISODES:
        raise InputError(
            f"protocol {name!r} cannot have those numbers: give 1 to {MAX_EPISODES} episodes, and "
            "at least 1 update between evaluations"
        )
    if episodes not in (None, protocol.episodes):
        name += f":{episodes}"
        protocol = replace(protocol, episodes=episodes)
        protocol = replace(protocol, slots=min(protocol.slots, protocol.episodes_played))
    if every not in (None, protocol.evaluate_every):
        name += f"@{every}"
        protocol = replace(protocol, evaluate_every=every, evaluations=0)
    return replace(protocol, name=name)


def protocol_label(protocol: Any) -> str:
    """Name and version of a protocol, `quick v1`; a bare name is used as it is."""
    if not isinstance(protocol, dict):
        return str(protocol or "")
    version = protocol.get("version")
    name = str(protocol.get("name") or "")
    return name if version is None else f"{name} v{version}"


def known_protocol(label: str) -> Protocol | None:
    """The protocol of a label such as `quick v1`; None if this package does not know it."""
    name, _, version = label.rpartition(" v")
    if not re.fullmatch(r"[1-9]\d{0,8}", version, re.ASCII):
        return None
    try:
        return get(name, int(version))
    except InputError:
        return None


def namesake(label: str) -> Protocol | None:
    """The newest version of the protocol that a label names, whatever its version; None if none is.

    >>> namesake("quick-return v99").score
    'return'
    """
    name, _, version = label.rpartition(" v")
    try:
        return get(name if name and version.isdecimal() else label)
    except InputError:
        return None


def scores_success(protocol: Any) -> bool:
    """Whether a protocol scores success; one of an unknown name is assumed to."""
    known = namesake(protocol_label(protocol))
    return known is None or known.score == "success"


def evaluations_counted(counted: Any) -> int:
    """How many of the last evaluations count: `last` is 1, `last-3` is 3, anything else is 1."""
    match = re.fullmatch(r"last-(\d{1,3})", counted) if isinstance(counted, str) else None
    return max(1, int(match[1])) if match else 1


def evaluation_steps(protocol: Protocol, steps: int) -> list[int]:
    """The updates after which a run of `steps` updates is evaluated, ascending.

    The last update is always among them, so that a finished run has a score.

    Args:
        protocol: the protocol.
        steps: updates of the run.

    Raises:
        InputError: `steps` is below 1.

    >>> evaluation_steps(get("ogbench-singletask"), 250_000)
    [100000, 200000, 250000]
    >>> evaluation_steps(get("quick"), 10)
    [2, 5, 7, 10]
    """
    if steps < 1:
        raise InputError(f"a run of {steps} updates has nothing to evaluate; set at least 1")
    if protocol.evaluations:
        count = protocol.evaluations
        return sorted({steps * i // count for i in range(1, count + 1)} - {0})
    regular = range(protocol.evaluate_every, steps, protocol.evaluate_every)
    return [*regular, steps]


def counted_steps(protocol: Protocol, steps: int) -> list[int]:
    """The updates whose evaluations make a run's score, ascending; cheap for any `steps`.

    >>> counted_steps(get("ogbench-singletask"), 1_000_000)
    [800000, 900000, 1000000]
    >>> counted_steps(get("ogbench-singletask"), 150_000), counted_steps(get("quick"), 8000)
    ([100000, 150000], [8000])
    """
    counted, every = evaluations_counted(protocol.counted), protocol.evaluate_every
    if protocol.evaluations:
        return evaluation_steps(protocol, steps)[-counted:]
    regular = (steps - 1) // every
    return [every * k for k in range(max(1, regular - counted + 2), regular + 1)] + [steps]


def is_planned(protocol: Protocol, steps: int, step: int) -> bool:
    """Whether `step` is one of `evaluation_steps`; cheap even if a foreign run has very many.

    >>> [is_planned(get("ogbench-singletask"), 250_000, k) for k in (150_000, 200_000, 250_000)]
    [False, True, True]
    """
    if protocol.evaluations:
        return 0 < step <= steps and step in evaluation_steps(protocol, steps)
    return step == steps or (0 < step < steps and step % protocol.evaluate_every == 0)


def episode_seeds(protocol: Protocol) -> list[int]:
    """Distinct seeds of an evaluation's episodes, `episodes_played` integers in [0, 2^32).

    They don't depend on the run: every policy on a task starts from the same initial states and is
    given the same noise, so that policies are compared pairwise. Under a protocol with goals, the
    goals come in turn: an episode's goal is `goal_of_seed`.

    Args:
        protocol: the protocol; only its numbers of episodes and goals matter.
    """
    goals = max(protocol.goals, 1)
    # More than needed: among 32-bit numbers an equal pair is rare but not impossible, and so is a
    # remainder that occurs only half as often as the others.
    state = np.random.SeedSequence(0).generate_state(2 * protocol.episodes_played)
    drawn = dict.fromkeys(state.tolist())
    by_goal = [[seed for seed in drawn if seed % goals == goal] for goal in range(goals)]
    return [seeds[k] for k in range(protocol.episodes) for seeds in by_goal]


def goal_of_seed(seed: int, goals: int) -> int:
    """The goal of the episode with a seed, counted from 1 like OGBench's `task_id`."""
    return seed % goals + 1
