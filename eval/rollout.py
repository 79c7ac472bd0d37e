"""Playing episodes with a policy, and the record of an evaluation.

The policy is called once per tick for all slots, always with the full batch. Slot k plays episodes
k, k + slots, k + 2 slots, ... in this order, independently of the others:

    tick     :   0    1    2    3    4    5    6            slots = 2, episodes of 2, 4 and 1 steps
    slot 0   : [ r0   s0   s0   r2   s2   .    . ]          r: reset to an episode's first state
    slot 1   : [ r1   s1   s1   s1   s1   .    . ]          s: one step

Rows of slots that take no step keep their last values, and their actions are not used. The batch
has one shape throughout and each row is a function of its episode's seed, so results don't depend
on the number of processes, and a lost process's episodes can be replayed bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError
from tql_offline.eval.environments import GOALS_PREFIX
from tql_offline.eval.noise import noise_generator
from tql_offline.eval.protocol import Protocol, episode_seeds, goal_of_seed
from tql_offline.eval.references import Reference
from tql_offline.eval.scores import evaluation_score
from tql_offline.eval.stepping import SlotArrays
from tql_offline.eval.workers import EnvironmentPool, Outcome

Array = NDArray[np.float32]
Indices = NDArray[np.int64]
Policy = Callable[[Array, Array], Array]
"""Maps observations `(slots, n_s)` and standard normal noise `(slots, noise_dim)` to actions
`(slots, n_a)`. Row i of the actions may depend only on row i of the arguments.
"""

_NOISE_STEPS = 64
"""Number of steps whose noise is drawn at once."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One finished episode.

    Attributes:
        seed: seed of the initial state, the environment's draws and the policy's noise.
        return_: undiscounted sum of rewards.
        length: number of steps.
        success: `info["success"]` of the last step (the rule of FQL's and OGBench's evaluators);
            None if the environment reports none.
        terminated: whether the task itself ended.
        truncated: whether the episode was cut off.
    """

    seed: int
    return_: float
    length: int
    success: bool | None
    terminated: bool
    truncated: bool


class RolloutCancelledError(RuntimeError):
    """The caller of a rollout cancelled it."""


class _Slots:
    """Progress of the slots through their episodes, one row per slot.

    Args:
        seeds: seeds of all episodes; slot k plays those at k, k + slots, k + 2 slots, ...
        slots: number of slots.
        noise_dim: dimension of the noise per step.
    """

    def __init__(self, seeds: Sequence[int], slots: int, noise_dim: int) -> None:
        self._seeds = seeds
        self._episode = np.arange(slots)
        self._playing = np.zeros(slots, dtype=np.bool_)
        self._returns = np.zeros(slots, dtype=np.float64)
        self._lengths = np.zeros(slots, dtype=np.int64)
        self._generators = [np.random.default_rng(0)] * slots
        self._noise = np.zeros((slots, _NOISE_STEPS, noise_dim), dtype=np.float32)

    def playing(self, slots: Indices) -> Indices:
        """The slots that are in the middle of an episode."""
        return slots[self._playing[slots]]

    def resets(self, slots: Indices) -> dict[int, int]:
        """Seeds of the episodes that these slots begin next, lost ones included."""
        waiting = slots[~self._playing[slots] & (self._episode[slots] < len(self._seeds))]
        return {k: self._seeds[self._episode[k]] for k in waiting.tolist()}

    def begin(self, resets: Mapping[int, int]) -> None:
        """Start counting these episodes."""
        for k, seed in resets.items():
            self._playing[k], self._returns[k], self._lengths[k] = True, 0.0, 0
            self._generators[k] = noise_generator(seed)

    def abandon(self, slots: Sequence[int]) -> None:
        """Forget the episodes that these slots are in."""
        self._playing[slots] = False

    def draw(self, slots: Indices) -> Array:
        """The noise of these slots' next steps, `(len(slots), noise_dim)`.

        A generator draws the same numbers for a block of steps as step by step.
        """
        step = self._lengths[slots] % _NOISE_STEPS
        for k in slots[step == 0]:
            self._generators[k].standard_normal(dtype=np.float32, out=self._noise[k])
        return self._noise[slots, step]

    def record(self, slots: Indices, arrays: SlotArrays) -> Iterator[tuple[int, Episode]]:
        """Record a step of each of these slots, and yield the episodes that it finished."""
        self._returns[slots] += arrays.rewards[slots]
        self._lengths[slots] += 1
        for k in slots[arrays.ended(slots)].tolist():
            index = int(self._episode[k])
            self._playing[k] = False
            self._episode[k] += len(self._playing)
            yield index, self._finished(k, self._seeds[index], arrays)

    def _finished(self, slot: int, seed: int, arrays: SlotArrays) -> Episode:
        success = float(arrays.success[slot])
        return Episode(
            seed=seed,
            return_=float(self._returns[slot]),
            length=int(self._lengths[slot]),
            success=None if np.isnan(success) else success == 1.0,
            terminated=bool(arrays.terminated[slot]),
            truncated=bool(arrays.truncated[slot]),
        )


def run_episodes(
    policy: Policy,
    pool: EnvironmentPool,
    *,
    seeds: Sequence[int],
    noise_dim: int,
    progress: Callable[[int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Episode]:
    """Play one episode per seed.

    Args:
        policy: see `Policy`.
        pool: the environments.
        seeds: the episodes' seeds, non-negative.
        noise_dim: dimension of the noise the policy takes per step, 0 for none.
        progress: called with the number of finished episodes.
        cancelled: polled at least every 0.1 s, True to give up; to cancel from another thread, let
            it read a `threading.Event`.

    Returns:
        The episodes in the order of their seeds.

    Raises:
        InputError: a seed is negative, or the policy's actions are misshapen or not finite.
    """
    if min(seeds, default=0) < 0:
        raise InputError(f"episode seed {min(seeds)} is negative; use seeds of at least 0")
    try:
        # Gymnasium does not accept NumPy integers.
        return _play(policy, pool, [int(seed) for seed in seeds], noise_dim, progress, cancelled)
    except BaseException:
        # Groups may still owe an answer; new processes cannot take it for a later one.
        pool.close()
        raise


def _play(
    policy: Policy,
    pool: EnvironmentPool,
    seeds: Sequence[int],
    noise_dim: int,
    progress: Callable[[int], None] | None,
    cancelled: Callable[[], bool] | None,
) -> list[Episode]:
    """Play one episode per seed; see `run_episodes`."""
    check = _check(cancelled)
    slots = _Slots(seeds, pool.slots, noise_dim)
    observations = np.zeros_like(pool.arrays.observations)
    noise = np.zeros((pool.slots, noise_dim), dtype=np.float32)
    done: dict[int, Episode] = {}
    free = np.arange(pool.slots)
    while len(done) < len(seeds):
        steps, resets = slots.playing(free), slots.resets(free)
        noise[steps] = slots.draw(steps)
        actions = act(policy, pool.description, observations, noise, steps)
        pool.send(resets, steps.tolist(), actions)
        slots.begin(resets)
        outcomes = pool.receive(check)
        free = np.array([k for outcome in outcomes for k in outcome.order.slots])
        finished = []
        for outcome in outcomes:
            finished += _book(outcome, slots, observations, pool.arrays)
        done.update(finished)
        if progress is not None and finished:
            progress(len(done))
    return [done[index] for index in range(len(seeds))]


def _check(cancelled: Callable[[], bool] | None) -> Callable[[], None]:
    """Make a function that raises once the rollout is cancelled."""

    def check() -> None:
        if cancelled is not None and cancelled():
            raise RolloutCancelledError("the rollout was cancelled; its episodes are dropped")

    return check


def _book(
    outcome: Outcome, slots: _Slots, observations: Array, arrays: SlotArrays
) -> list[tuple[int, Episode]]:
    """Take over the outcome of an order, and return the episodes that it finished."""
    order = outcome.order
    if outcome.lost:
        slots.abandon(order.slots)
        return []
    steps = np.array(order.steps, dtype=np.int64)
    moved = np.array(order.slots) if order.resets else steps
    observations[moved] = arrays.observations[moved]
    return list(slots.record(steps, arrays))


def evaluate(
    policy: Policy,
    pool: EnvironmentPool,
    protocol: Protocol,
    *,
    step: int,
    policy_name: str,
    noise_dim: int,
    reference: Reference | None = None,
    progress: Callable[[int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Evaluate a policy under a protocol.

    Args:
        policy: see `Policy`.
        pool: the environments, with the protocol's number of slots.
        protocol: says how many episodes to play and what the score is.
        step: updates the policy was trained for.
        policy_name: name of the policy, as its record has it.
        noise_dim: dimension of the noise the policy takes per step, 0 for none.
        reference: the dataset's reference scores, for a normalised score.
        progress: called with the number of finished episodes.
        cancelled: polled at least every 0.1 s, True to give up; to cancel from another thread, let
            it read a `threading.Event`.

    Returns:
        One line of `evaluations.jsonl`.

    Raises:
        InputError: the pool's number of slots or goals is not the protocol's, the policy's name is
            unknown, its actions or a return are unusable, or the score needs a success that the
            environment does not report or a reference that the dataset does not have.
    """
    if pool.description["goals"] != protocol.goals:
        raise InputError(
            f"protocol {protocol.name!r} has {protocol.goals} goals where the environment "
            f"{pool.description['env_id']!r} is made for {pool.description['goals']}; a "
            f"goal-conditioned one is named {GOALS_PREFIX}NAME, as {GOALS_PREFIX}cube-double-v0"
        )
    if pool.slots != protocol.slots:
        raise InputError(
            f"protocol {protocol.name!r} steps {protocol.slots} environments together, the pool "
            f"has {pool.slots} slots; make it with slots={protocol.slots}"
        )
    episodes = run_episodes(
        policy,
        pool,
        seeds=episode_seeds(protocol),
        noise_dim=noise_dim,
        progress=progress,
        cancelled=cancelled,
    )
    for episode in episodes:
        if not np.isfinite(episode.return_):
            raise InputError(
                f"environment {pool.description['env_id']!r} gives the return {episode.return_} in "
                f"the episode of seed {episode.seed}; mend its reward"
            )
    if protocol.score == "success" and any(e.success is None for e in episodes):
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
        "max_episode_steps": pool.description["max_episode_steps"],
        "versions": pool.description["versions"],
        "episodes": [_as_document(episode) for episode in episodes],
        **_summary(protocol, episodes, reference),
    }


def _summary(
    protocol: Protocol, episodes: Sequence[Episode], reference: Reference | None
) -> dict[str, Any]:
    """Success rate, mean return and score of an evaluation, with success by goal and reference."""
    reported = [e.success for e in episodes if e.success is not None]
    success_rate = float(np.mean(reported)) if len(reported) == len(episodes) else None
    return_mean = float(np.mean([e.return_ for e in episodes]))
    score = evaluation_score(
        protocol, success_rate=success_rate, return_mean=return_mean, reference=reference
    )
    numbers = {"success_rate": success_rate, "return_mean": return_mean, "score": score}
    goals = {"goal_success_rates": _by_goal(episodes, protocol.goals)} if protocol.goals else {}
    scale = {"reference": reference.describe()} if reference is not None else {}
    return numbers | goals | scale


def _by_goal(episodes: Sequence[Episode], goals: int) -> list[float]:
    """Success rate of each goal."""
    of_goal: list[list[bool]] = [[] for _ in range(goals)]
    for episode in episodes:
        of_goal[goal_of_seed(episode.seed, goals) - 1].append(bool(episode.success))
    return [float(np.mean(successes)) for successes in of_goal]


def _as_document(episode: Episode) -> dict[str, Any]:
    """An episode as written to `evaluations.jsonl`."""
    return {
        "seed": episode.seed,
        "return": episode.return_,
        "length": episode.length,
        "success": episode.success,
    }


def act(
    policy: Policy,
    description: Mapping[str, Any],
    observations: Array,
    noise: Array,
    steps: Indices,
) -> Array:
    """The policy's actions for the slots that take a step, `(len(steps), n_a)`.

    Actions are clipped to [-1, 1] as in FQL's evaluator.

    Raises:
        InputError: the actions have the wrong shape, or they or the observations are not finite.
    """
    env_id, action_dim = description["env_id"], description["action_dim"]
    if not len(steps):
        return np.zeros((0, action_dim), dtype=np.float32)
    # Copies: a policy may keep its arguments, and must not reach into the idle rows.
    actions = np.asarray(policy(observations.copy(), noise.copy()), dtype=np.float32)
    if actions.ndim != 2 or len(actions) != len(observations):
        raise InputError(
            f"the policy gives actions of shape {actions.shape} for {len(observations)} "
            f"observations of environment {env_id!r}; give one row of numbers per observation"
        )
    chosen = actions[steps]
    if not np.isfinite(chosen).all():
        if not np.isfinite(observations[steps]).all():
            raise InputError(
                f"environment {env_id!r} gives an observation that is not finite (NaN or infinite) "
                "in the course of an episode; mend it"
            )
        raise InputError(
            f"the policy gives an action that is not finite (NaN or infinite) in environment "
            f"{env_id!r}; evaluate an earlier checkpoint"
        )
    if actions.shape[1] != action_dim:
        raise InputError(
            f"the policy gives actions of {actions.shape[1]} numbers where environment {env_id!r} "
            f"takes {action_dim}; evaluate a policy that was trained on a dataset of this "
            "environment"
        )
    return np.clip(chosen, -1.0, 1.0)
