"""Making environments, and making their episodes functions of a seed.

OGBench's authors call its environments non-deterministic, for two reasons: they draw from NumPy's
global generator (initial positions and teleports of mazes), and their manipulation resets take
random actions from an action space that is rebuilt, unseeded, at each access. `SeededEnvironment`
gives each environment both sources of its own, so that an episode depends only on the environment,
its seed and the actions.
"""

import importlib.metadata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from tql_offline.datasets.names import MINARI_PREFIX
from tql_offline.errors import InputError, one_line
from tql_offline.eval.protocol import goal_of_seed
from tql_offline.eval.unit_actions import in_unit_actions
from tql_offline.own_code import code_of
from tql_offline.temporary import environment_files_removed
from tql_offline.version import installed_version

_SUCCESS_TIMINGS = (None, "pre", "post")
_PACKAGES = ("ogbench", "mujoco", "gymnasium")
PROBE_STEPS = 2000
"""Most steps of an episode that is to show whether success is reported."""
TRIAL_STEPS = 10
"""Steps that show whether an environment works at all."""
GOALS_PREFIX = "goals:"
"""Prefix of a goal-conditioned environment's id, to play each of its goals in turn."""


def make(
    env_id: str,
    *,
    success_timing: str | None = None,
    draws: bool = False,
    unit_actions: bool = True,
) -> gymnasium.Env[Any, Any]:
    """Make an environment.

    Args:
        env_id: an OGBench id, another id registered with Gymnasium, or `module:id`; prefixed with
            `goals:`, an OGBench environment whose goals are to be reached in turn; prefixed with
            `minari:`, a Minari dataset or its folder, whose environment is recovered.
        success_timing: whether OGBench judges success, reward and end on the state before ("pre")
            or after ("post") the action; None keeps the environment's default. Since ogbench 1.2.0
            that is "pre" for singletask environments; FQL's published numbers are from ogbench
            1.1.0, which judged "post".
        draws: whether `render` should return frames.
        unit_actions: whether to rescale actions from [-1, 1] to the environment's own bounds.

    Raises:
        InputError: the id is unknown, or the environment has no such success timing or frames.
    """
    if success_timing not in _SUCCESS_TIMINGS:
        raise InputError(f"success timing {success_timing!r} is unknown; use 'pre' or 'post'")
    if env_id.startswith(GOALS_PREFIX):
        name = env_id[len(GOALS_PREFIX) :]
        return GoalConditioned(make(name, success_timing=success_timing, draws=draws))
    if env_id.startswith(MINARI_PREFIX):
        from tql_offline.eval.recover import recover

        if success_timing is not None:
            raise InputError(f"environment {env_id!r} has no success timing; leave the setting out")
        with quiet(), environment_files_removed():
            return recover(env_id[len(MINARI_PREFIX) :], draws=draws)
    options: dict[str, Any] = {} if success_timing is None else {"success_timing": success_timing}
    if draws:
        options["render_mode"] = "rgb_array"
    try:
        with quiet(), environment_files_removed():
            import ogbench  # noqa: F401  (registers its environments)

            env = _flat(gymnasium.make(env_id, disable_env_checker=True, **options))
            return in_unit_actions(env) if unit_actions else env
    except InputError:
        raise
    except TypeError as error:
        if "render_mode" in str(error):
            raise no_frames(env_id) from error
        if "success_timing" not in str(error):
            raise _unmakeable(env_id, error) from error
        raise InputError(
            f"environment {env_id!r} has no success timing; leave the setting out"
        ) from error
    except Exception as error:  # any error from the environment's own code
        raise _unmakeable(env_id, error) from error


def _unmakeable(env_id: str, error: Exception) -> InputError:
    module = env_id.partition(":")[0]
    lacking = getattr(error.__cause__ or error, "name", None)  # Gymnasium re-raises it
    if isinstance(error, ModuleNotFoundError) and module != env_id and lacking == module:
        # The working directory is not searched by default: a foreign run names what to import.
        return InputError(
            f"environment {env_id!r} cannot be made (no module {module!r}); install it, or, where "
            "it lies in the working directory, set PYTHONPATH=. before the command"
        )
    return InputError(
        f"environment {env_id!r} cannot be made ({one_line(error)}); check its name, and that the "
        "package that registers it is installed, or name the module that does so, `module:id`"
    )


def no_frames(env_id: str) -> InputError:
    """Make the error for an environment that cannot draw frames."""
    return InputError(
        f"environment {env_id!r} draws no frames (render_mode='rgb_array'), so there can be no "
        "video of it; leave --video out"
    )


def _flat(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Flatten observations that are a Dict or a Tuple, as for a Minari dataset."""
    if not isinstance(env.observation_space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return env
    from tql_offline.eval.recover import flat_observations  # imports the readers

    return flat_observations(env)


class FlatObservations(gymnasium.wrappers.TransformObservation[Any, Any, Any]):
    """An environment with flattened observations.

    Attributes:
        flattened: the space that they are flattened from.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], space: gymnasium.Space[Any]) -> None:
        self.flattened = space
        super().__init__(
            env,
            lambda observation: gymnasium.spaces.flatten(space, observation),
            gymnasium.spaces.flatten_space(space),
        )


class GoalConditioned(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An OGBench environment with several goals, chosen by an episode's seed.

    Observations are the environment's and the goal's, concatenated: `(2·n_s,)`.

    Attributes:
        goals: number of goals.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        name = env.spec.id if env.spec else str(env)
        self.goals = int(getattr(env.unwrapped, "num_tasks", 0))
        if not self.goals or getattr(env.unwrapped, "_reward_task_id", None) is not None:
            raise InputError(
                f"environment {name!r} has no goals to choose of; give a goal-conditioned one, "
                "such as goals:cube-double-v0"
            )
        with quiet():
            dim = vector_dim(name, "observation", env.observation_space)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2 * dim,), np.float64)
        self._goal = np.zeros(dim)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; its goal is `goal_of_seed`, or without a seed the first."""
        goal = {"task_id": goal_of_seed(seed or 0, self.goals)}
        observation, info = self.env.reset(seed=seed, options=(options or {}) | goal)
        self._goal = np.asarray(info["goal"])
        return self._beside_goal(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._beside_goal(observation), reward, terminated, truncated, info

    def _beside_goal(self, observation: Any) -> NDArray[Any]:
        return np.concatenate([np.asarray(observation), self._goal])


def describe(env_id: str, success_timing: str | None = None) -> dict[str, Any]:
    """Describe an environment as a record must, for its scores to be comparable.

    Args:
        env_id: as for `make`.
        success_timing: as for `make`.

    Returns:
        `env_id`, `max_episode_steps` (None if unlimited), `success_timing` (the one in force, None
        if the environment has none), `goals` (0 unless they are reached in turn),
        `observation_dim`, `action_dim`, and under `versions` those of ogbench, mujoco,
        gymnasium and the environment's own package; of one that is in no package, `code` has the
        name and SHA-256 of its class's file; where the environment's own observations are not
        vectors, `flattened` is the space that they are flattened from, as text.

    Raises:
        InputError: it cannot be made, or its observations or actions are not vectors.
    """
    env = make(env_id, success_timing=success_timing)
    try:
        with quiet():
            observation_dim = vector_dim(env_id, "observation", env.observation_space)
            action_dim = vector_dim(env_id, "action", env.action_space)
        return {
            "env_id": env_id,
            "max_episode_steps": None if env.spec is None else env.spec.max_episode_steps,
            "success_timing": getattr(env.unwrapped, "_success_timing", success_timing),
            "goals": env.goals if isinstance(env, GoalConditioned) else 0,
            "observation_dim": observation_dim,
            "action_dim": action_dim,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES}
            | _own_version(env),
            **_own_code(env_id, env),
            **_flattened(env),
        }
    finally:
        env.close()


def _own_version(env: gymnasium.Env[Any, Any]) -> dict[str, str]:
    """The version of the package that an environment comes from, if it is installed as one."""
    package = type(env.unwrapped).__module__.partition(".")[0]
    version = installed_version(package)
    return {} if version is None else {package: version}  # none: a module of the user's own


def _own_code(env_id: str, env: gymnasium.Env[Any, Any]) -> dict[str, dict[str, str]]:
    """Name and SHA-256 of the file that makes an environment of one's own; nothing of a package's.

    Of the class's file, or, where the class is of a package, whose version tells its code, of the
    module that registers it; see `code_of`.
    """
    named = env_id.removeprefix(GOALS_PREFIX).rpartition(":")[0]
    for module in (type(env.unwrapped).__module__, named):
        code = code_of(module)
        if code["sha256"] and installed_version(module.partition(".")[0]) is None:
            return {"code": code}
    return {}


def _flattened(env: gymnasium.Env[Any, Any]) -> dict[str, str]:
    """The space that observations are flattened from, on one line; nothing if they are not."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, FlatObservations):
            return {"flattened": " ".join(str(env.flattened).split())}
        env = env.env
    return {}


def action_space(env_id: str) -> gymnasium.spaces.Box:
    """An environment's own action space, of vectors."""
    env = make(env_id, unit_actions=False)
    try:
        with quiet():
            space = env.action_space
        vector_dim(env_id, "action", space)
        return cast(gymnasium.spaces.Box, space)
    finally:
        env.close()


def try_out(env_id: str, steps: int) -> list[str] | None:
    """Try an environment out: whether its `info` reports success during an episode.

    Plays one episode of zero actions, at most this many steps long; an environment that has not
    ended by then is given the benefit of the doubt.

    Returns:
        None, or, where no step reported success, what its last `info` has instead.

    Raises:
        InputError: the environment cannot be made, fails, or gives a number that is not finite.
    """
    env = SeededEnvironment(make(env_id))
    try:
        return _probed(env, steps)
    except Exception as error:  # any error from the environment's own code
        raise InputError(
            f"environment {env_id!r} fails in an episode of zero actions ({one_line(error)}); "
            "mend it"
        ) from error
    finally:
        env.close()


def _probed(env: "SeededEnvironment", steps: int) -> list[str] | None:
    _require_finite("first observation", env.reset(0))
    action = np.zeros(env.action_dim, dtype=np.float32)
    for _ in range(steps):
        observation, reward, terminated, truncated, success = env.step(action)
        _require_finite("observation", observation)
        _require_finite("reward", reward)
        if not np.isnan(success):
            return None
        if terminated or truncated:
            return [str(key) for key in env.info]
    return None


def _require_finite(what: str, numbers: Any) -> None:
    if not np.isfinite(numbers).all():
        raise ValueError(f"its {what} is NaN or infinite")


class SeededEnvironment:
    """An environment whose episodes are functions of their seed and the actions alone.

    Attributes:
        action_dim: n_a.
        info: what the last step told besides.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._env = env
        with quiet():
            space = env.action_space
        self.action_dim = vector_dim(env.spec.id if env.spec else str(env), "action", space)
        self.info: dict[str, Any] = {}
        self._global_stream = np.random.MT19937()
        self._unseeded = np.random.default_rng()

    def reset(self, seed: int) -> NDArray[np.float32]:
        """Begin the episode with a given seed.

        Args:
            seed: a non-negative integer.

        Returns:
            `(n_s,)` the first observation.
        """
        # Separate streams: seeding all with one number would correlate them.
        shared, unseeded, space = np.random.SeedSequence(seed).spawn(3)
        self._global_stream = np.random.MT19937(shared)
        self._unseeded = np.random.default_rng(unseeded)
        with quiet(), _own_randomness(self._global_stream, self._unseeded):
            self._env.action_space.seed(int(space.generate_state(1)[0]))
            observation, _info = self._env.reset(seed=seed)
        return np.asarray(observation, dtype=np.float32)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, float]:
        """Take one action.

        Args:
            action: `(n_a,)`.

        Returns:
            The next observation `(n_s,)`, the reward, whether the task ended (terminated), whether
            the episode was cut off (truncated), and success: 1, 0, or NaN if the environment
            reports none.
        """
        with _own_randomness(self._global_stream, self._unseeded):
            observation, reward, terminated, truncated, self.info = self._env.step(action)
        return (
            np.asarray(observation, dtype=np.float32),
            _one_number(reward),
            bool(terminated),
            bool(truncated),
            _success(self.info.get("success")),
        )

    def close(self) -> None:
        """Free the environment's resources."""
        self._env.close()


def _one_number(reward: Any) -> float:
    if np.ndim(reward):
        raise ValueError(f"its reward has shape {np.shape(reward)}; give one number")
    return float(reward)


def _success(flag: Any) -> float:
    """1 or 0; NaN where an environment does not know yet, or reports none."""
    if flag is None:
        return float("nan")
    if isinstance(flag, bool | np.bool_):
        return float(flag)
    # The truth of a number, or an array of one; that of NaN would be true.
    return float("nan") if np.any(flag != flag) else float(bool(flag))


@contextmanager
def kept_global_state() -> Iterator[None]:
    """Leave NumPy's global generator as it was found, to the last bit of its normal cache."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextmanager
def kept_normal_cache() -> Iterator[None]:
    """Leave the normal that NumPy's global generator has cached, if any, as it was found.

    This is the cheaper half of `kept_global_state` and enough around resets and steps: they draw
    from their own streams, and swapping these in only drops the cached normal.
    """
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    try:
        yield
    finally:
        if state["has_gauss"]:
            np.random.set_state(state)  # noqa: NPY002


@contextmanager
def _own_randomness(
    global_stream: np.random.MT19937, unseeded: np.random.Generator
) -> Iterator[None]:
    """Give an environment its own global NumPy generator and its own seeds for unseeded spaces.

    Swapping the bit generator is far cheaper than swapping its state. It drops the cached second
    normal of `np.random.randn`, in the same way at every step; `kept_normal_cache` keeps the
    caller's.
    """
    # NumPy documents both functions, but its stubs leave them out.
    outer = np.random.get_bit_generator()  # type: ignore[attr-defined]
    np_random = seeding.np_random

    def seeded(seed: int | None = None) -> tuple[np.random.Generator, int]:
        return np_random(int(unseeded.integers(2**32)) if seed is None else seed)

    np.random.set_bit_generator(global_stream)  # type: ignore[attr-defined]
    seeding.np_random = seeded
    try:
        yield
    finally:
        seeding.np_random = np_random
        np.random.set_bit_generator(outer)  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence OGBench's warnings (spaces, no display), and Gymnasium's of old environments."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")
        warnings.filterwarnings("ignore", module="glfw")
        # D4RL's environments are old ones, deliberately.
        warnings.filterwarnings("ignore", message=".*is out of date")
        yield


def vector_dim(env_id: str, name: str, space: gymnasium.Space[Any]) -> int:
    """Length of a space's vectors.

    Raises:
        InputError: the space does not hold real vectors.
    """
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise InputError(
            f"environment {env_id!r} has {name}s of {space}, not real vectors; choose an "
            "environment with state observations and continuous actions"
        )
    return int(space.shape[0])
