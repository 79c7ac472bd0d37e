"""Whether an environment's actions have the bounds that data were scaled from."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from tql_offline.datasets.action_bounds import BOUNDS_SETTING, as_setting
from tql_offline.datasets.names import MINARI_PREFIX
from tql_offline.errors import InputError
from tql_offline.eval.environments import action_space

RESCALED = "scale the data and register it with gymnasium.wrappers.RescaleAction"
"""What to do about an environment whose bounds are not those of the data."""
_MAX_DIMS = 8
"""Most dims of an environment's bounds that a message lists."""


def check_bounds(
    env_id: str,
    action_dim: int,
    bounds: Sequence[Any] | None,
    whose: str,
    told: str = f"train with {BOUNDS_SETTING}",
) -> gymnasium.spaces.Box | None:
    """Check that an environment's action bounds are those that the data were scaled from.

    Those given may be rounded: the environment's own are in the space that is returned.

    Args:
        env_id: id of the environment.
        action_dim: n_a of the data, and of the environment.
        bounds: least and greatest actions that the data were scaled from; None where they are ±1.
        whose: what the data are, for the message.
        told: how the caller is told bounds `{low}` and `{high}`.

    Returns:
        The environment's action space; None of one recovered from Minari's data, whose it is.

    Raises:
        InputError: they differ.
    """
    if env_id.startswith(MINARI_PREFIX):  # recovered and compared with its own data
        return None
    space = action_space(env_id)
    low, high = space.low.tolist(), space.high.tolist()
    want_low, want_high = bounds or ([-1.0] * action_dim, [1.0] * action_dim)
    if np.allclose(low, want_low) and np.allclose(high, want_high):
        return space
    in_its_unit = ""
    if setting := as_setting(low, high):
        in_its_unit = f"if own data are in its unit, {told.format(**setting)}, else "
    raise InputError(
        f"environment {env_id!r} takes actions from {_listed(low)} to {_listed(high)} where "
        f"those of {whose} are from {_listed(want_low)} to {_listed(want_high)}; {in_its_unit}"
        f"{RESCALED}"
    )


def _listed(bounds: Sequence[float]) -> str:
    """Format bounds, as one number where all dims have the same."""
    return ", ".join(f"{bound:g}" for bound in [*dict.fromkeys(bounds)][:_MAX_DIMS])
