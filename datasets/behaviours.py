"""Scripted behaviour policies, which collect OGBench episodes with OGBench's own oracles.

    family                          kind       policy
    pointmaze-*                     navigate   walk to one random goal after another
                                    stitch     walk to a cell four steps away and stay there
    cube-*, scene, puzzle-*         play       follow smooth, noisy plans (open loop)
                                    noisy      closed loop, Gaussian action noise, random actions

An episode is a function of its seed alone: OGBench draws from NumPy's global generator as well as
from the environment's, so both are seeded for each episode, and nothing is carried over from the
previous episode.

Source: Park et al., "OGBench" (https://arxiv.org/abs/2410.20092), and its `locomaze.maze` and
`manipspace.oracles`.
"""

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tql_offline.temporary import environment_files_removed

Columns = dict[str, NDArray[np.generic]]
Cell = tuple[int, int]
EpisodeKey = tuple[int, int, int]
"""What determines an episode: (seed, split, index of the episode in its split)."""

_DTYPES = {"terminals": np.dtype(bool), "button_states": np.dtype(np.int64)}
_BLOCK_Y, _BLOCK_Z = 15, 16
"""Columns of qpos that hold the y and z of the scene's block."""
_EDITED_MODEL_ARRAYS = ("dof_damping", "site_pos")
"""Arrays of the model that OGBench's environments change during episodes, besides colours."""

_NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
"""Action noise on x, y, z, yaw and gripper, relative to that on x."""


@dataclass(frozen=True, kw_only=True)
class MazeBehaviour:
    """A point that follows the shortest path to its goal, with noise.

    Attributes:
        env_id: Gymnasium name of the environment.
        goals: "many" (a new goal whenever one is reached) or "near" (one, `goal_distance` away).
        goal_distance: cells between start and goal along the shortest path, for "near".
        action_noise: standard deviation of the noise on each action, whose range is [-1, 1].
    """

    env_id: str
    goals: str
    goal_distance: int = 4
    action_noise: float = 0.5


@dataclass(frozen=True, kw_only=True)
class ManipulationBehaviour:
    """A robot arm that carries out one random sub-task after another.

    Attributes:
        env_id: Gymnasium name of the environment.
        oracle: "plan" (open loop) or "markov" (closed loop).
        p_random_action: probability of a uniformly random action at each step.
        p_stack: range of the per-episode probability of stacking one block on another.
        plan_noise: noise level of the plans.
        plan_noise_smoothing: width of the filter that correlates it in time, in steps.
        max_action_noise: range of the closed-loop oracle's per-episode action noise.
        min_norm: smallest position error the closed-loop oracle acts on, in metres.
        gripper_always_closed: press buttons with a closed gripper.
        keep_block_visible: discard episodes in which the block leaves the camera's view.
    """

    env_id: str
    oracle: str
    p_random_action: float
    p_stack: tuple[float, float]
    plan_noise: float = 0.1
    plan_noise_smoothing: float = 0.5
    max_action_noise: float = 0.1
    min_norm: float = 0.4
    gripper_always_closed: bool = False
    keep_block_visible: bool = False


Behaviour = MazeBehaviour | ManipulationBehaviour
EpisodeRunner = Callable[[EpisodeKey], Columns]


def maze_behaviours() -> dict[str, Behaviour]:
    """Behaviours of all pointmaze datasets, by dataset name."""
    return {
        f"pointmaze-{size}-{kind}-v0": MazeBehaviour(env_id=f"pointmaze-{size}-v0", goals=goals)
        for size in ("medium", "large", "giant", "teleport")
        for kind, goals in (("navigate", "many"), ("stitch", "near"))
    }


def manipulation_behaviours() -> dict[str, Behaviour]:
    """Behaviours of all cube, scene and puzzle datasets, by dataset name."""
    p_stack = {
        "cube-single": (0.0, 0.0),
        "cube-double": (0.0, 0.25),
        "cube-triple": (0.05, 0.35),
        "cube-quadruple": (0.1, 0.5),
    }
    puzzles = ("puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6")
    p_random_action = dict.fromkeys((*p_stack, "scene"), 0.1) | dict.fromkeys(puzzles, 0.2)
    return {
        f"{family}-{kind}-v0": ManipulationBehaviour(
            env_id=f"{family}-v0",
            oracle="plan" if kind == "play" else "markov",
            p_random_action=0.0 if kind == "play" else p_random_action[family],
            p_stack=p_stack.get(family, (0.5, 0.5)),
            gripper_always_closed=family in puzzles,
            keep_block_visible=family == "scene",
        )
        for family in p_random_action
        for kind in ("play", "noisy")
    }


def episode_runner(behaviour: Behaviour, *, rows: int) -> EpisodeRunner:
    """Make the environment once and return the function that collects an episode in it.

    Args:
        behaviour: the policy and its environment.
        rows: observations per episode, one more than its transitions.

    Returns:
        A function of the episode's key; equal keys give bit-identical columns of `rows` rows:
        `observations` (rows, n_s) before each step, `actions` (rows, n_a), `terminals` (rows,) true
        on the last row, `qpos`, `qvel` and, if the environment has buttons, `button_states`.
    """
    env = make_environment(behaviour, rows=rows)
    if isinstance(behaviour, MazeBehaviour):
        return partial(_maze_episode, env, behaviour, _subgoal_oracle(env.unwrapped))
    return partial(_manipulation_episode, env, behaviour, _restorer(env.unwrapped))


def make_environment(behaviour: Behaviour, *, rows: int) -> Any:
    """OGBench's environment, set up for collection: it ends only after `rows` steps."""
    options = {} if isinstance(behaviour, MazeBehaviour) else {"mode": "data_collection"}
    with warnings.catch_warnings(), environment_files_removed():
        # Without a display, importing the environments warns that nothing can be drawn.
        warnings.simplefilter("ignore")
        import gymnasium
        import ogbench  # noqa: F401  (registers the environments)

        env: Any = gymnasium.make(
            behaviour.env_id,
            terminate_at_goal=False,
            max_episode_steps=rows,
            disable_env_checker=True,
            **options,
        )
    return env


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, and restore its state afterwards."""
    # OGBench's environments and oracles draw from the global generator; there is no other way in.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _words(sequence: np.random.SeedSequence, count: int) -> list[int]:
    """Independent 32-bit seeds."""
    return [int(child.generate_state(1)[0]) for child in sequence.spawn(count)]


def _columns(rows: list[dict[str, Any]]) -> Columns:
    """Stack an episode's rows into columns of the file's dtypes."""
    return {
        name: np.asarray([row[name] for row in rows], dtype=_DTYPES.get(name, np.dtype(np.float32)))
        for name in rows[0]
    }


def _executable(action: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip an action and round it to the file's float32: the stored one is the executed one."""
    return np.clip(action, -1, 1).astype(np.float32).astype(np.float64)


# Mazes.


def free_cells(maze_map: NDArray[np.int_]) -> list[Cell]:
    """Cells without a wall, row by row."""
    return [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]


def vertex_cells(maze_map: NDArray[np.int_]) -> list[Cell]:
    """Free cells that are not hallways: ends, corners and crossings.

    Args:
        maze_map: `(rows, columns)`, 1 for a wall; its border is all wall.

    >>> vertex_cells(np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]))
    [(1, 1), (1, 3)]
    """
    return [cell for cell in free_cells(maze_map) if not _is_hallway(maze_map, cell)]


def _is_hallway(maze_map: NDArray[np.int_], cell: Cell) -> bool:
    i, j = cell
    vertical = (int(maze_map[i - 1, j]), int(maze_map[i + 1, j]))
    horizontal = (int(maze_map[i, j - 1]), int(maze_map[i, j + 1]))
    return (vertical, horizontal) in (((0, 0), (1, 1)), ((1, 1), (0, 0)))


def cells_at_distance(maze_map: NDArray[np.int_], start: Cell, distance: int) -> list[Cell]:
    """Free cells whose shortest path from `start` has exactly `distance` steps."""
    free = set(free_cells(maze_map))
    steps = {start: 0}
    queue = deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
            if cell in free and cell not in steps:
                steps[cell] = steps[i, j] + 1
                queue.append(cell)
    return [cell for cell, count in steps.items() if count == distance]


def _choose(cells: list[Cell], rng: np.random.Generator) -> Cell:
    return cells[rng.integers(len(cells))]


def _first_goal(
    behaviour: MazeBehaviour,
    maze_map: NDArray[np.int_],
    start: Cell,
    rng: np.random.Generator,
) -> Cell:
    if behaviour.goals == "many":
        return _choose(vertex_cells(maze_map), rng)
    return _choose(cells_at_distance(maze_map, start, behaviour.goal_distance) or [start], rng)


def _subgoal_oracle(maze: Any) -> Callable[[], NDArray[np.float64]]:
    """Make the function that gives the next cell's centre on the way to the current goal.

    OGBench's oracle searches the whole maze at every step, though its answer depends only on the
    two cells, so each pair is asked for only once.
    """
    known: dict[tuple[Cell, Cell], NDArray[np.float64]] = {}

    def subgoal() -> NDArray[np.float64]:
        here, goal = maze.get_xy(), maze.cur_goal_xy
        cells = (maze.xy_to_ij(here), maze.xy_to_ij(goal))
        if cells not in known:
            known[cells] = np.asarray(maze.get_oracle_subgoal(here, goal)[0], dtype=np.float64)
        return known[cells]

    return subgoal


def _set_goal(maze: Any, cell: Cell) -> None:
    # Given only a cell, OGBench's set_goal moves the goal's marker to an undefined place.
    maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(cell)))


def _maze_action(
    maze: Any, subgoal: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A step of full length towards the subgoal, with Gaussian noise."""
    direction = subgoal - maze.get_xy()
    direction = direction / (np.linalg.norm(direction) + 1e-6)
    return _executable(direction + rng.normal(0, noise, direction.shape))


def _maze_episode(
    env: Any,
    behaviour: MazeBehaviour,
    subgoal: Callable[[], NDArray[np.float64]],
    key: EpisodeKey,
) -> Columns:
    """Collect one pointmaze episode."""
    sequence = np.random.SeedSequence([*key, 0])
    draws, numpy_seed, env_seed, space_seed = _words(sequence, 4)
    rng = np.random.default_rng(draws)
    maze = env.unwrapped
    start = _choose(free_cells(maze.maze_map), rng)
    task = {"init_ij": start, "goal_ij": _first_goal(behaviour, maze.maze_map, start, rng)}
    # The reset takes a few random actions.
    env.action_space.seed(space_seed)
    with numpy_seeded(numpy_seed):
        observation, _ = env.reset(seed=env_seed, options={"task_info": task})
        rows: list[dict[str, Any]] = []
        done = False
        while not done:
            action = _maze_action(maze, subgoal(), behaviour.action_noise, rng)
            following, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            rows.append(_row(observation, action, done, info))
            if info["success"] and behaviour.goals == "many":
                _set_goal(maze, _choose(vertex_cells(maze.maze_map), rng))
            observation = following
    return _columns(rows)


def _row(
    observation: NDArray[np.float64],
    action: NDArray[np.float64],
    done: bool,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    row = {
        "observations": observation,
        "actions": action,
        "terminals": done,
        "qpos": info["prev_qpos"],
        "qvel": info["prev_qvel"],
    }
    if "prev_button_states" in info:
        row["button_states"] = info["prev_button_states"]
    return row


# Manipulation.


def _plan_oracles(env: Any, behaviour: ManipulationBehaviour) -> dict[str, Any]:
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    noise = {
        "env": env,
        "noise": behaviour.plan_noise,
        "noise_smoothing": behaviour.plan_noise_smoothing,
    }
    return {
        "cube": CubePlanOracle(**noise),
        "button": ButtonPlanOracle(gripper_always_closed=behaviour.gripper_always_closed, **noise),
        "drawer": DrawerPlanOracle(**noise),
        "window": WindowPlanOracle(**noise),
    }


def _markov_oracles(env: Any, behaviour: ManipulationBehaviour) -> dict[str, Any]:
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

    common = {"env": env, "min_norm": behaviour.min_norm}
    return {
        # OGBench gives the scene's block 100 steps, but the oracle's own reset puts back 200.
        "cube": CubeMarkovOracle(max_step=100, **common),
        "button": ButtonMarkovOracle(
            gripper_always_closed=behaviour.gripper_always_closed, **common
        ),
        "drawer": DrawerMarkovOracle(**common),
        "window": WindowMarkovOracle(**common),
    }


def _manipulation_oracles(env: Any, behaviour: ManipulationBehaviour) -> dict[str, Any]:
    """The oracle of every sub-task, by the environment's name for the sub-task."""
    make = _plan_oracles if behaviour.oracle == "plan" else _markov_oracles
    return make(env, behaviour)


def _manipulation_episode(
    env: Any, behaviour: ManipulationBehaviour, restore: Callable[[], None], key: EpisodeKey
) -> Columns:
    """Collect one cube, scene or puzzle episode, retrying with the next seed while unusable."""
    for attempt in itertools.count():
        sequence = np.random.SeedSequence([*key, attempt])
        restore()
        rows = _manipulation_attempt(env, behaviour, sequence)
        qpos = np.asarray([row["qpos"] for row in rows])
        if not behaviour.keep_block_visible or block_stays_visible(qpos):
            break
    return _columns(rows)


def block_stays_visible(qpos: NDArray[np.float64]) -> bool:
    """Whether the scene's block stays on the table or in the drawer, from `qpos` `(rows, n_q)`.

    Elsewhere it is out of the camera's view, and OGBench repeats the episode.
    """
    y, z = qpos[:, _BLOCK_Y], qpos[:, _BLOCK_Z]
    too_far_right = y >= 0.29
    behind_without_drawer = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
    return not bool(np.any(too_far_right | behind_without_drawer))


def _restorer(manipulation: Any) -> Callable[[], None]:
    """Make the function that undoes what an episode leaves behind in environment and model.

    OGBench's reset keeps changes to the model (the scene's locks are joint damping, its targets are
    sites) and the last targets, which an oracle's first action may still see.
    """
    manipulation.reset(seed=0)
    attributes = {
        name: copy(value)
        for name, value in vars(manipulation).items()
        if name.startswith(("_target_", "_cur_", "_prev_"))
    }
    edited = {name: getattr(manipulation.model, name).copy() for name in _EDITED_MODEL_ARRAYS}

    def restore() -> None:
        for name, value in attributes.items():
            setattr(manipulation, name, copy(value))
        for name, value in edited.items():
            getattr(manipulation.model, name)[:] = value

    return restore


def _noisy_action(
    behaviour: ManipulationBehaviour,
    act: Callable[[], NDArray[np.float64]],
    scale: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A random action, during which the oracle does not advance, or the oracle's with noise."""
    if rng.random() < behaviour.p_random_action:
        return _executable(rng.uniform(-1, 1, _NOISE_SHAPE.shape))
    if behaviour.oracle == "markov":
        return _executable(act() + rng.normal(0, scale * _NOISE_SHAPE))
    return _executable(act())


def _manipulation_attempt(
    env: Any, behaviour: ManipulationBehaviour, sequence: np.random.SeedSequence
) -> list[dict[str, Any]]:
    draws, numpy_seed, env_seed = _words(sequence, 3)
    rng = np.random.default_rng(draws)
    p_stack = rng.uniform(*behaviour.p_stack)
    scale = rng.uniform(0, behaviour.max_action_noise)
    oracles = _manipulation_oracles(env, behaviour)
    with numpy_seeded(numpy_seed):
        observation, info = env.reset(seed=env_seed)
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        rows: list[dict[str, Any]] = []
        done = False
        while not done:
            act = partial(oracle.select_action, observation, info)
            action = _noisy_action(behaviour, act, scale, rng)
            following, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            rows.append(_row(observation, action, done, info))
            if oracle.done:
                # As in OGBench, the next action still sees the info from before the new target.
                target = env.unwrapped.set_new_target(p_stack=p_stack)
                oracle = oracles[target[1]["privileged/target_task"]]
                oracle.reset(*target)
            observation = following
    return rows
