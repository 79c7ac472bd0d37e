"""Small environments for tests of rollouts; worker processes import this module by name.

`rollout_environments:Uneven-v0` makes one: pytest puts this folder on `sys.path`, which spawned
processes inherit.
"""

import os
import time
from pathlib import Path

import gymnasium
import numpy as np

LENGTHS = (1, 2, 3, 5, 60)
MARKER = "TEST_ROLLOUT_MARKER"
"""Environment variable with a file's path: mischief is done only while that file is missing."""


class Uneven(gymnasium.Env):
    """Episodes of very unequal length; every source of randomness OGBench uses is used.

    The observation is (start, global draw, unseeded draw, steps so far). The reward tells whether
    the right action reached the right environment. Starts above 0.5 succeed with their last step
    and terminate; the others are truncated, and succeed at every step but the last.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,))

    @property
    def action_space(self):
        return gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.start = self.np_random.random()
        self.shared = np.random.uniform()  # noqa: NPY002  (as OGBench does)
        self.unseeded = self.action_space.sample()[0]
        self.length = LENGTHS[int(self.np_random.integers(len(LENGTHS)))]
        self.steps = 0
        return self.observe(), {}

    def observe(self):
        return np.array([self.start, self.shared, self.unseeded, self.steps])

    def step(self, action):
        self.steps += 1
        self.shared = np.random.randn()  # noqa: NPY002
        last = self.steps == self.length
        won = last and self.start > 0.5
        reward = float(action @ [1.0, 10.0]) * self.start + self.steps + self.shared
        success = won if self.start > 0.5 else not last
        return self.observe(), reward, won, last and not won, {"success": success}


class CrashOnce(Uneven):
    """Takes its whole process down in the third step of some episode, once."""

    def step(self, action):
        if self.steps == 2 and once():
            os._exit(17)
        return super().step(action)


class HangOnce(Uneven):
    """Hangs in the third step of some episode, once."""

    def step(self, action):
        if self.steps == 2 and once():
            time.sleep(600)
        return super().step(action)


class Lasting(Uneven):
    """Each step takes its time, and leaves the marker as it begins."""

    def step(self, action):
        if MARKER in os.environ:
            Path(os.environ[MARKER]).touch()
        time.sleep(0.05)
        return super().step(action)


class CrashAlways(Uneven):
    def step(self, action):  # noqa: ARG002
        os._exit(17)


class Raises(Uneven):
    def step(self, action):  # noqa: ARG002
        raise ValueError("the gripper is on fire")


class Drawn(Uneven):
    """Frames as bright as four times the steps so far, in an odd size."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  (as Gymnasium's)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((15, 21, 3), 4 * self.steps, dtype=np.uint8)


class DrawnOtherwise(Drawn):
    """An episode that terminates has another reward where it is drawn."""

    def step(self, action):
        observation, reward, terminated, *rest = super().step(action)
        return observation, reward + bool(terminated and self.render_mode), terminated, *rest


class DrawnLonger(Drawn):
    """Episodes do not end where they are drawn."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        drawn = self.render_mode is not None
        return observation, reward, terminated and not drawn, truncated and not drawn, info


class DrawnByOsmesa(Drawn):
    """Ends its process under EGL, as a broken driver does."""

    def render(self):
        if os.environ["MUJOCO_GL"] != "osmesa":
            os._exit(11)
        return super().render()


class Undrawable(Drawn):
    def render(self):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")


class LacksPackage(Drawn):
    def render(self):
        raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip install`")


class DrawsNothing(Drawn):
    def render(self):
        return None


class HasNoRender(Drawn):
    """It takes a render mode, and Gymnasium's own `render` raises NotImplementedError."""

    render = gymnasium.Env.render


class DrawnUntilItDies(Drawn):
    """Ends its process in the fourth frame of an episode."""

    def render(self):
        if self.steps == 3:
            os._exit(11)
        return super().render()


class DrawnUntilItHangs(Drawn):
    """Hangs in the fourth frame of an episode."""

    def render(self):
        if self.steps == 3:
            time.sleep(600)
        return super().render()


class Even(Uneven):
    """Ten steps an episode; each beginning leaves a line `seed process` in the marker's log."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        self.seed, self.length = seed, 10
        if MARKER in os.environ:
            with Path(os.environ[MARKER]).with_suffix(".log").open("a") as log:
                log.write(f"{seed} {os.getpid()}\n")
        return observation, info

    @property
    def is_last_straw(self):
        """True once, in the sixth step of an episode of a seed that ends in 4."""
        return self.steps == 5 and self.seed % 10 == 4 and once()


class EvenCrashOnce(Even):
    def step(self, action):
        if self.is_last_straw:
            os._exit(17)
        return super().step(action)


class EvenHangOnce(Even):
    def step(self, action):
        if self.is_last_straw:
            time.sleep(600)
        return super().step(action)


class Slow(Even):
    """The third and fourth step of an episode take 0.6 s."""

    def step(self, action):
        time.sleep(0.6 if self.steps in (2, 3) else 0)
        return super().step(action)


class Silent(Uneven):
    """Reports no success."""

    def step(self, action):
        return *super().step(action)[:4], {}


class Unknown(Uneven):
    """Its success is never known, but for that under another name."""

    def step(self, action):
        *others, info = super().step(action)
        return *others, {"success": np.nan, "is_success": info["success"]}


class Dark(Uneven):
    """Its observations become NaN with the second step."""

    def observe(self):
        return super().observe() if self.steps < 2 else np.full(4, np.nan)


class Turning(Uneven):
    """Takes angles of up to 120 degrees."""

    @property
    def action_space(self):
        limit = np.float32(2 * np.pi / 3)
        return gymnasium.spaces.Box(-limit, limit, (2,))


class Unrewarded(Uneven):
    """Its reward is no number."""

    def step(self, action):
        observation, _, *others = super().step(action)
        return observation, float("nan"), *others


def once() -> bool:
    """True for the first caller in any process."""
    try:
        Path(os.environ[MARKER]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Unmakeable(Uneven):
    """Refuses to be made."""

    def __init__(self):
        raise ValueError("no room")


class FailsAtOnce(Uneven):
    """Cannot begin an episode; of the dims of a maze."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    def reset(self, **_options):
        raise RuntimeError("no maze")


class IsNotFinite(Uneven):
    """Its rewards are NaN; of the dims of a maze."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))

    def reset(self, **_options):
        return np.zeros(2, np.float32), {}

    def step(self, _action):
        return np.zeros(2, np.float32), np.nan, False, False, {}


class LosesItsPlace(IsNotFinite):
    """Its observations become NaN."""

    def step(self, _action):
        return np.full(2, np.nan, np.float32), 0.0, False, False, {}


ENVIRONMENTS = (
    Unmakeable, FailsAtOnce, IsNotFinite, LosesItsPlace,
    Uneven, CrashOnce, HangOnce, CrashAlways, Raises, Silent, Unknown, Dark, Turning,
    Unrewarded, Even, EvenCrashOnce, EvenHangOnce, Slow, Lasting,
    Drawn, DrawnOtherwise, DrawnLonger, DrawnByOsmesa, Undrawable,
    LacksPackage, DrawsNothing, HasNoRender, DrawnUntilItDies, DrawnUntilItHangs,
)  # fmt: skip
for environment in ENVIRONMENTS:
    gymnasium.register(f"{environment.__name__}-v0", entry_point=environment)  # type: ignore[arg-type]
gymnasium.register(
    "ShortMaze-v0",
    entry_point="ogbench.locomaze.maze:make_maze_env",
    max_episode_steps=30,
    kwargs={
        "loco_env_type": "point",
        "maze_env_type": "maze",
        "maze_type": "medium",
        "reward_task_id": 1,
        "add_noise_to_goal": False,
        "success_timing": "pre",
    },
)
"""OGBench's pointmaze-medium-singletask-task1-v0 with 30 of its 1,000 steps."""
