"""Actions in [-1, 1], as policies give them, to the bounds of an environment."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers.utils import rescale_box
from numpy.typing import NDArray


def in_unit_actions(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Let an environment with other bounds take actions in [-1, 1]."""
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
        return env
    if (space.low == -1).all() and (space.high == 1).all():
        return env
    unit, scaled = from_unit_actions(space)
    return gymnasium.wrappers.TransformAction(env, scaled, unit)


def from_unit_actions(
    space: gymnasium.spaces.Box,
) -> tuple[gymnasium.spaces.Box, Callable[[Any], NDArray[Any]]]:
    """The space of actions in [-1, 1], and the function that scales them to another's bounds.

    The numbers are those of `gymnasium.wrappers.RescaleAction`, which is what users scale by, and
    of the space's type.
    """
    one = space.dtype.type(1)
    unit, _, scaled = rescale_box(space, -one, one)

    def clipped(actions: Any) -> NDArray[Any]:
        # Rounding may put a scaled action beyond the bounds, which an environment may refuse.
        within_bounds: NDArray[Any] = np.clip(scaled(actions), space.low, space.high)
        return within_bounds

    return unit, clipped


def within(low: NDArray[np.float64], high: NDArray[np.float64], dtype: str) -> gymnasium.spaces.Box:
    """The space of a type within these bounds, where rounding leads inward."""
    least, most = low.astype(dtype), high.astype(dtype)
    least = np.where(least < low, np.nextafter(least, most), least)
    most = np.where(most > high, np.nextafter(most, least), most)
    return gymnasium.spaces.Box(least, most, dtype=np.dtype(dtype).type)
