"""Whether a run's policies can be scored in an environment."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tql_offline.config import Config, DataConfig
from tql_offline.errors import InputError, listed, shown
from tql_offline.eval import protocol as protocols
from tql_offline.eval.bounds import check_bounds
from tql_offline.eval.environments import PROBE_STEPS, TRIAL_STEPS, describe, try_out
from tql_offline.eval.protocol import Protocol
from tql_offline.eval.references import Reference, reference_for

_MAX_KEYS = 8
"""Most keys of an environment's `info` that a message lists."""


def scale_of_scores(protocol: Protocol, data: DataConfig) -> Reference | None:
    """The reference scores for a run's data, if its protocol normalises by any.

    Raises:
        InputError: there are none, or the protocol is not one for the policies of a run.
    """
    if protocol.goals:
        raise InputError(
            f"protocol {protocol.name!r} scores policies that are given a goal, which those of a "
            "run are not; use it from Python (docs/evaluation.md), or choose ogbench-singletask"
        )
    return reference_for(protocol, data.name, data.path)


def fitting_environment(
    env_id: str,
    config: Config,
    observation_dim: int,
    action_dim: int,
    *,
    whose: str,
    bounds: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Describe, for a run's record, an environment that its policies can be scored in.

    Args:
        env_id: id of the environment.
        config: gives protocol and success timing.
        observation_dim: n_s of the policies.
        action_dim: n_a of the policies.
        whose: what these dims belong to, for the message.
        bounds: least and greatest actions that the data were scaled from; None where they are ±1.

    Raises:
        InputError: its dims or action bounds differ, it fails or gives numbers that are not finite
            in a short trial, or it does not report what the protocol scores.
    """
    described = describe(env_id, config.evaluation.success_timing or None)
    for what, have, want in (
        ("observation", observation_dim, described["observation_dim"]),
        ("action", action_dim, described["action_dim"]),
    ):
        if have != want:
            raise InputError(
                f"{whose} has {have} {what} dims where {env_id} has {want}; "
                "give the environment the data came from"
            )
    protocol = protocols.get(config.evaluation.protocol)
    scale_of_scores(protocol, config.dataset)
    space = check_bounds(env_id, action_dim, bounds, whose)
    needs_success = protocol.score == "success"
    instead = try_out(env_id, PROBE_STEPS if needs_success else TRIAL_STEPS)
    if needs_success and instead is not None:
        raise _without_success(env_id, protocol, instead)
    if bounds is None or space is None:
        return described
    own = {"action_bounds": [space.low.tolist(), space.high.tolist()]}
    return described | own | {"action_dtype": str(space.dtype)}


def _without_success(env_id: str, protocol: Protocol, instead: Sequence[str]) -> InputError:
    """The error for an environment whose `info` lacks success, by what it has instead."""
    _, colon, number = protocol.name.partition(":")
    has = f"it has: {listed([*map(shown, instead)], _MAX_KEYS)}" if instead else "it is empty"
    return InputError(
        f"the info of environment {env_id!r} tells no 'success' in an episode of zero actions "
        f"({has}), which protocol {protocol.name!r} scores; report it under that name at every "
        f"step, or give --protocol quick-return{colon}{number}, which scores the return"
    )


def endless(environment: Mapping[str, Any] | None) -> Iterator[str]:
    """A note if episodes have no step limit, so that scoring may never end."""
    if environment is not None and environment["max_episode_steps"] is None:
        yield (
            f"note: environment {environment['env_id']!r} has no step limit, so an episode "
            "that does not end by itself runs forever; register it with max_episode_steps"
        )
