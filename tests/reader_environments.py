"""A registered environment whose numbers say where they come from."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple

LENGTH = 4


class Counting(gymnasium.Env):
    """Observation: 100 times the episode, plus the step. Odd episodes terminate, even ones do not.

    Reward: 10 times the step, plus the first action.
    """

    def __init__(self, nested=False, bound=2.0):
        self.action_space = Box(-bound, bound, (2,), np.float32)
        number = Box(-np.inf, np.inf, (1,), np.float64)
        pair = Box(-np.inf, np.inf, (1, 2), np.float64)
        self.nested = nested
        # Not in the order of their names: gymnasium sorts them.
        spaces = {"z": number, "b": Tuple((pair, Discrete(3))), "a": Dict({"y": number})}
        self.observation_space = Dict(spaces) if nested else number
        self.episode = -1

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.observe(), {}

    def observe(self):
        count = float(100 * self.episode + self.steps)
        number = np.array([count])
        if not self.nested:
            return number
        pair = np.array([[count + 0.25, count + 0.5]])
        return {"z": number, "b": (pair, self.steps % 3), "a": {"y": -number}}

    def step(self, action):
        self.steps += 1
        last = self.steps == LENGTH
        ends = last and self.episode % 2 == 1
        reward = 10.0 * self.steps + float(action[0])
        return self.observe(), reward, ends, last and not ends, {"success": bool(ends)}


for name, nested in (("Counting-v0", False), ("CountingDict-v0", True)):
    gymnasium.register(
        name, "reader_environments:Counting", max_episode_steps=100, kwargs={"nested": nested}
    )
gymnasium.register(
    "ShortHopper-v0", "gymnasium.envs.mujoco.hopper_v4:HopperEnv", max_episode_steps=50
)
gymnasium.register("CountingUnit-v0", "reader_environments:Counting", kwargs={"bound": 1.0})
gymnasium.register(
    "CountingByDim-v0",
    "reader_environments:Counting",
    kwargs={"bound": np.array([2.0, 5.0], np.float32)},
)
