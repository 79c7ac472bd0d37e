"""Playing episodes with a policy, and the record of an evaluation.

The policy is called once per tick for all slots, always with the full batch. Slot k plays episodes
k, k + slots, k + 2 slots, ... in this order, whatever the others do:

    tick     :   0    1    2    3    4    5    6            slots = 2, episodes of 2, 4 and 1 steps
    slot 0   : [ r0   s0   s0   r2   s2   .    . ]          r: reset to an episode's first state
    slot 1   : [ r1   s1   s1   s1   s1   .    . ]          s: one step

Rows of slots that take no step keep their last values and their actions are not used. The batch has
one shape throughout and each row is a function of its episode's seed, so results don't depend on
the number of processes, and a lost process's episodes can be played again to the same bits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError
from tql_offline.eval.protocol import Protocol, episode_seeds
from tql_offline.eval.scores import evaluation_score
from tql_offline.eval.workers import EnvironmentPool, Outcome

Array = NDArray[np.float32]
Policy = Callable[[Array, Array], Array]
"""From observations `(slots, n_s)` and standard normal noise `(slots, noise_dim)` to actions
`(slots, n_a)`. Row i of the actions may depend only on row i of the arguments.
"""

POLICIES = ("learned", "behaviour")
_NOISE_STREAM = (2**32 - 1,)
"""Spawn key of an episode's noise, apart from the environment's streams of the same seed."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode.

    Attributes:
        seed: of the initial state, the environment's draws and the policy's noise.
        return_: undiscounted sum of rewards.
        length: steps.
        success: `info["success"]` of the last step (the rule of FQL's and OGBench's evaluators).
        terminated: whether the task itself ended.
        truncated: whether the episode was cut off.
        reports_success: whether the environment gave a success at all.
    """

    seed: int
    return_: float
    length: int
    success: bool
    terminated: bool
    truncated: bool
    reports_success: bool = True


@dataclass
class _Slot:
    """Where one slot is in its episodes."""

    episodes: deque[int]
    playing: bool = False
    return_: float = 0.0
    length: int = 0
    noise: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def begin(self, seed: int) -> None:
        """Start counting the first episode of the queue, perhaps again."""
        self.playing, self.return_, self.length = True, 0.0, 0
        stream = np.random.SeedSequence(seed, spawn_key=_NOISE_STREAM)
        self.noise = np.random.default_rng(stream)


def rollout(
    policy: Policy,
    env_id: str,
    *,
    seeds: Sequence[int],
    noise_dim: int,
    slots: int,
    processes: int,
    success_timing: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play one episode per seed in a pool of its own; see `run_episodes`.

    Args:
        policy: see `Policy`.
        env_id: as for `environments.make`.
        seeds: of the episodes.
        noise_dim: numbers of noise the policy takes per step, 0 for none.
        slots: environments stepped together, the policy's batch.
        processes: worker processes; 1 keeps the environments in this process.
        success_timing: as for `environments.make`.
        progress: called with the number of finished episodes.

    Raises:
        InputError: the environment cannot be made, or the policy's actions are not usable.
    """
    with EnvironmentPool(
        env_id, slots=slots, processes=processes, success_timing=success_timing
    ) as pool:
        return run_episodes(policy, pool, seeds=seeds, noise_dim=noise_dim, progress=progress)


def run_episodes(
    policy: Policy,
    pool: EnvironmentPool,
    *,
    seeds: Sequence[int],
    noise_dim: int,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play one episode per seed.

    Args:
        policy: see `Policy`.
        pool: the environments.
        seeds: of the episodes, non-negative.
        noise_dim: numbers of noise the policy takes per step, 0 for none.
        progress: called with the number of finished episodes.

    Returns:
        The episodes in the order of their seeds.

    Raises:
        InputError: a seed is negative, or the policy's actions are misshapen or not finite.
    """
    if min(seeds, default=0) < 0:
        raise InputError(f"episode seed {min(seeds)} is negative; use seeds of at least 0")
    # Gymnasium takes no NumPy integers.
    seeds = [int(seed) for seed in seeds]
    slots = [_Slot(deque(range(k, len(seeds), pool.slots))) for k in range(pool.slots)]
    observations = np.zeros((pool.slots, pool.description["observation_dim"]), dtype=np.float32)
    noise = np.zeros((pool.slots, noise_dim), dtype=np.float32)
    done: dict[int, Episode] = {}
    while len(done) < len(seeds):
        steps = [k for k, slot in enumerate(slots) if slot.playing]
        resets = {k: seeds[slot.episodes[0]] for k, slot in enumerate(slots) if _waits(slot)}
        for k in steps:
            noise[k] = slots[k].noise.standard_normal(noise_dim, dtype=np.float32)
        actions = _act(policy, pool.description["env_id"], observations, noise, steps)
        outcomes, lost = pool.advance(resets, steps, actions)
        for k, seed in resets.items():
            slots[k].begin(seed)
        for k in lost:
            slots[k].playing = False
        finished = []
        for outcome in outcomes:
            observations[outcome.slots] = outcome.observations
            finished += _record(outcome, set(steps), slots, seeds)
        done.update(finished)
        if progress is not None and finished:
            progress(len(done))
    return [done[index] for index in range(len(seeds))]


def evaluate(
    policy: Policy,
    pool: EnvironmentPool,
    protocol: Protocol,
    *,
    step: int,
    policy_name: str,
    noise_dim: int,
    base_seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a policy by a protocol.

    Args:
        policy: see `Policy`.
        pool: with the protocol's number of slots.
        protocol: says how many episodes, and what the score is.
        step: updates the policy was trained for.
        policy_name: "learned" or "behaviour".
        noise_dim: numbers of noise the policy takes per step, 0 for none.
        base_seed: draws another set of episodes; see `protocol.episode_seeds`.
        progress: called with the number of finished episodes.

    Returns:
        One line of `evaluations.jsonl`.

    Raises:
        InputError: the pool has another number of slots than the protocol, the policy's name is
            unknown, its actions are not usable, or the environment reports no success where that is
            the score.
    """
    if pool.slots != protocol.slots:
        raise InputError(
            f"protocol {protocol.name!r} steps {protocol.slots} environments together, the pool "
            f"has {pool.slots} slots; make it with slots={protocol.slots}"
        )
    if policy_name not in POLICIES:
        raise InputError(f"policy name {policy_name!r} is unknown; use one of {POLICIES}")
    episodes = run_episodes(
        policy,
        pool,
        seeds=episode_seeds(protocol, base_seed),
        noise_dim=noise_dim,
        progress=progress,
    )
    if protocol.score == "success" and not all(e.reports_success for e in episodes):
        raise InputError(
            f"environment {pool.description['env_id']!r} reports no success, which protocol "
            f"{protocol.name!r} scores; choose a protocol that scores the return"
        )
    return {
        "step": step,
        "policy": policy_name,
        "protocol": {
            "name": protocol.name,
            "version": protocol.version,
            "episodes": protocol.episodes,
            "counted": protocol.counted,
        },
        "env_id": pool.description["env_id"],
        "success_timing": pool.description["success_timing"],
        "episodes": [_as_document(episode) for episode in episodes],
        **_summary(protocol, episodes),
    }


def _summary(protocol: Protocol, episodes: Sequence[Episode]) -> dict[str, float]:
    """Success rate, mean return and score of an evaluation."""
    success_rate = float(np.mean([e.success for e in episodes]))
    return_mean = float(np.mean([e.return_ for e in episodes]))
    score = evaluation_score(protocol, success_rate=success_rate, return_mean=return_mean)
    return {"success_rate": success_rate, "return_mean": return_mean, "score": score}


def _as_document(episode: Episode) -> dict[str, Any]:
    """An episode as it stands in `evaluations.jsonl`."""
    return {
        "seed": episode.seed,
        "return": episode.return_,
        "length": episode.length,
        "success": episode.success,
    }


def _waits(slot: _Slot) -> bool:
    """Whether the slot has an episode to begin."""
    return bool(slot.episodes) and not slot.playing


def _act(
    policy: Policy, env_id: str, observations: Array, noise: Array, steps: Sequence[int]
) -> Array:
    """The policy's actions for the slots that take a step, `(len(steps), n_a)`.

    Actions are clipped to [-1, 1] as in FQL's evaluator.

    Raises:
        InputError: they have a wrong shape or are not finite.
    """
    if not steps:
        return np.zeros((0, 0), dtype=np.float32)
    # Copies: a policy may keep its arguments, and must not reach into the idle rows.
    actions = np.asarray(policy(observations.copy(), noise.copy()), dtype=np.float32)
    if actions.ndim != 2 or len(actions) != len(observations):
        raise InputError(
            f"the policy gives actions of shape {actions.shape} for {len(observations)} "
            f"observations of environment {env_id!r}; give one row of numbers per observation"
        )
    chosen = actions[steps]
    if not np.isfinite(chosen).all():
        raise InputError(
            f"the policy gives an action that is not finite (NaN or infinite) in environment "
            f"{env_id!r}; evaluate an earlier checkpoint"
        )
    return np.clip(chosen, -1.0, 1.0)


def _record(
    outcome: Outcome, stepped: set[int], slots: Sequence[_Slot], seeds: Sequence[int]
) -> list[tuple[int, Episode]]:
    """Book an outcome's steps into their slots, and return the episodes that they finished."""
    finished = []
    for row, k in enumerate(outcome.slots):
        if k not in stepped:
            continue
        slot = slots[k]
        slot.return_ += float(outcome.rewards[row])
        slot.length += 1
        if outcome.terminated[row] or outcome.truncated[row]:
            index = slot.episodes.popleft()
            slot.playing = False
            finished.append((index, _episode(seeds[index], slot, outcome, row)))
    return finished


def _episode(seed: int, slot: _Slot, outcome: Outcome, row: int) -> Episode:
    """The episode that a slot finished with this row of an outcome."""
    success = float(outcome.success[row])
    return Episode(
        seed=seed,
        return_=slot.return_,
        length=slot.length,
        success=success == 1.0,
        terminated=bool(outcome.terminated[row]),
        truncated=bool(outcome.truncated[row]),
        reports_success=not np.isnan(success),
    )
