"""Evaluation protocols: what makes two scores comparable, as versioned data (`protocols.toml`)."""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np

from tql_offline.errors import InputError


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
        bold: tables print scores of at least this fraction of the row's best in bold.
        score: success rate in percent, or mean undiscounted return.
        slots: environments stepped together, the policy's batch; part of the protocol because a
            policy's arithmetic may change in its last bits with the size of its batch.
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
    score: Literal["success", "return"]
    slots: int

    def __post_init__(self) -> None:
        """Check the fields' ranges."""
        for field in ("version", "episodes", "training_steps", "seeds", "slots"):
            if getattr(self, field) < 1:
                raise InputError(f"protocol {self.name!r}: {field} is below 1; set a positive one")
        if (self.evaluate_every < 1) == (self.evaluations < 1):
            raise InputError(
                f"protocol {self.name!r} must set either evaluate_every or evaluations, "
                "and the other to 0"
            )
        if self.counted not in ("last", "last-3") or self.score not in ("success", "return"):
            raise InputError(
                f"protocol {self.name!r}: counted must be 'last' or 'last-3' and score 'success' "
                f"or 'return', not {self.counted!r} and {self.score!r}"
            )
        if not 0 < self.bold <= 1:
            raise InputError(f"protocol {self.name!r}: bold must lie in (0, 1], not {self.bold}")


@functools.cache
def protocols() -> tuple[Protocol, ...]:
    """Every known protocol, in the order of `protocols.toml`."""
    text = resources.files(__package__).joinpath("protocols.toml").read_text(encoding="utf-8")
    return tuple(Protocol(**table) for table in tomllib.loads(text)["protocol"])


def get(name: str, version: int | None = None) -> Protocol:
    """The protocol of a name, in its newest version or the one asked for.

    Raises:
        InputError: no such protocol or version; the message lists those there are.

    >>> get("ogbench-singletask").episodes
    50
    """
    matches = [p for p in protocols() if p.name == name and version in (None, p.version)]
    if not matches:
        asked = repr(name) if version is None else f"{name!r} version {version}"
        known = ", ".join(f"{p.name} (version {p.version})" for p in protocols())
        raise InputError(f"there is no protocol {asked}; choose one of: {known}")
    return max(matches, key=lambda p: p.version)


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
    [2, 5, 8, 10]
    """
    if steps < 1:
        raise InputError(f"a run of {steps} updates has nothing to evaluate; set at least 1")
    if protocol.evaluations:
        count = protocol.evaluations
        return sorted({steps * i // count for i in range(1, count + 1)} - {0})
    regular = range(protocol.evaluate_every, steps, protocol.evaluate_every)
    return [*regular, steps]


def episode_seeds(protocol: Protocol, base_seed: int = 0) -> list[int]:
    """Distinct seeds of an evaluation's episodes.

    They don't depend on the run: under one base seed every policy of a task starts from the same
    initial states and is given the same noise, so that policies are compared pairwise.

    Args:
        protocol: the protocol; only its number of episodes matters.
        base_seed: draws another set of episodes.

    Returns:
        `episodes` integers in [0, 2^32).

    Raises:
        InputError: the base seed is negative.
    """
    if base_seed < 0:
        raise InputError(f"the base seed of the episodes is {base_seed}; set one of at least 0")
    sequence = np.random.SeedSequence(base_seed)
    # Twice as many as needed: among 32-bit numbers an equal pair is rare but not impossible.
    drawn = sequence.generate_state(2 * protocol.episodes).tolist()
    return list(dict.fromkeys(drawn))[: protocol.episodes]
