"""Drawing of an environment in a process of its own.

Whether a machine can draw without a display shows only when it draws: libraries that are missing,
or present without a device, fail at import, at the first frame, or by ending their process. So the
process is started with one renderer after another, and the first to produce a frame is kept.
"""

import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError, one_line
from tql_offline.eval import worker_start
from tql_offline.eval.environments import SeededEnvironment, make, no_frames
from tql_offline.eval.stepping import Failure

Frame = NDArray[np.uint8]

DEFAULT_FPS = 30.0
"""Frames per second if an environment does not state its own pace."""
_START_TIMEOUT = 300.0
"""Seconds that the process may take until its first frame."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """The result of a reset or a step.

    Attributes:
        frame: `(height, width, 3)` uint8 image of the state after it.
        observation: `(n_s,)` float32.
        reward: reward of the step, 0 for a reset.
        ended: whether the episode has ended.
        success: 1, 0, or NaN if the environment reports none.
    """

    frame: Frame
    observation: NDArray[np.float32]
    reward: float = 0.0
    ended: bool = False
    success: float = float("nan")


class Drawing:
    """An environment's process; use it as a context manager.

    Args:
        env_id: as for `environments.make`.
        success_timing: as for `environments.make`.
        step_timeout: seconds that a reset or a step and its frame may take.

    Attributes:
        env_id: as given.
        renderer: the value of MUJOCO_GL that works; empty for the simulator's own choice.
        fps: the environment's frames per second.

    Raises:
        InputError: the environment draws no frames, or nothing here can draw them.
    """

    def __init__(
        self,
        env_id: str,
        *,
        success_timing: str | None = None,
        step_timeout: float = 60.0,
    ) -> None:
        self.env_id = env_id
        self._step_timeout = step_timeout
        self._arguments = (env_id, success_timing)
        self.renderer, self.fps = self._first_that_draws(renderers())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def reset(self, seed: int) -> Shot:
        """Begin the episode with a given seed.

        Raises:
            InputError: the environment failed, or its process died or hung.
        """
        return self._ask(("reset", seed))

    def step(self, action: NDArray[np.float32]) -> Shot:
        """Take one action, `(n_a,)`.

        Raises:
            InputError: the environment failed, or its process died or hung.
        """
        return self._ask(("step", action))

    def close(self) -> None:
        """Kill the process: it holds nothing worth saving, and may hang."""
        worker_start.end(self._process, self._connection)

    def _first_that_draws(self, candidates: Sequence[str]) -> tuple[str, float]:
        refusals = []
        for renderer in candidates:
            self._start(renderer)
            try:
                answer = self._answer(_START_TIMEOUT)
            except BaseException:
                self.close()
                raise
            if isinstance(answer, float):
                return renderer or os.environ.get("MUJOCO_GL", ""), answer
            self.close()
            if answer.is_input_error:
                raise answer.error()
            refusals.append(f"{_named(renderer)}: {answer.message}")
        raise InputError(
            f"environment {self.env_id!r} cannot be drawn here ({'; '.join(refusals)}); "
            f"{_mend()}, or leave --video out"
        )

    def _start(self, renderer: str) -> None:
        self._process, self._connection = worker_start.start(
            worker_start.draw, renderer, *self._arguments
        )

    def _ask(self, question: tuple[str, Any]) -> Shot:
        try:
            self._connection.send(question)
            answer = self._answer(self._step_timeout)
        except OSError:
            answer = Failure(message="its process died", is_input_error=False)
        if isinstance(answer, Failure):
            raise InputError(
                f"environment {self.env_id!r} failed while it was drawn ({answer.message}); "
                "leave --video out"
            )
        shot: Shot = answer
        return shot

    def _answer(self, timeout: float) -> Any:
        """The process's answer, or a `Failure` if it sends nothing."""
        try:
            if self._connection.poll(timeout):
                return self._connection.recv()
            how = f"it hung for {timeout:g} s"
        except (EOFError, OSError):
            self._process.join(1.0)
            how = f"its process died (exit code {self._process.exitcode})"
        return Failure(message=how, is_input_error=False)


def renderers() -> tuple[str, ...]:
    """Values of MUJOCO_GL to try, in this order; empty leaves it to the user or the simulator.

    EGL draws on a GPU without a display, OSMesa on the CPU; both are for Linux.
    """
    if os.environ.get("MUJOCO_GL") or platform.system() != "Linux":
        return ("",)
    return ("egl", "osmesa")


def serve(connection: "Connection[Any, Any]", env_id: str, success_timing: str | None) -> None:
    """Main loop of the process: draw one frame, send the frames per second, then follow orders."""
    try:
        with warnings.catch_warnings():
            # OGBench's manipulation environments draw, but list no render modes.
            warnings.simplefilter("ignore")
            stage = _Stage(env_id, success_timing)
            stage.reset(0)
        connection.send(stage.fps())
        while True:
            name, argument = connection.recv()
            connection.send(getattr(stage, name)(argument))
    except gymnasium.error.DependencyNotInstalled as error:
        # The error says what to install, and no other renderer would help.
        mend = "install what is missing, or leave --video out"
        why = f"environment {env_id!r} cannot be drawn here ({one_line(error)}); {mend}"
        _send(connection, InputError(why))
    except NotImplementedError:  # from Gymnasium's base class: there is no `render`
        _send(connection, no_frames(env_id))
    except Exception as error:
        _send(connection, error)


def _send(connection: "Connection[Any, Any]", error: Exception) -> None:
    is_input_error = isinstance(error, InputError)
    text = str(error) if is_input_error else f"{type(error).__name__}: {one_line(error)}"
    try:
        connection.send(Failure(message=text, is_input_error=is_input_error))
    except OSError:
        return  # the other end is gone


class _Stage:
    """The environment, drawn at each of its states."""

    def __init__(self, env_id: str, success_timing: str | None) -> None:
        self._env_id = env_id
        self._env = make(env_id, success_timing=success_timing, draws=True)
        self._seeded = SeededEnvironment(self._env)

    def fps(self) -> float:
        """Frames per second at which the environment runs at its own pace."""
        own = self._env.metadata.get("render_fps")
        if own is None and hasattr(self._env.unwrapped, "control_timestep"):
            own = (
                1 / self._env.unwrapped.control_timestep()
            )  # in OGBench's manipulation environments, in seconds
        return float(own or DEFAULT_FPS)

    def reset(self, seed: int) -> Shot:
        observation = self._seeded.reset(seed)
        return Shot(frame=self._frame(), observation=observation)

    def step(self, action: NDArray[np.float32]) -> Shot:
        observation, reward, terminated, truncated, success = self._seeded.step(action)
        return Shot(
            frame=self._frame(),
            observation=observation,
            reward=reward,
            ended=terminated or truncated,
            success=success,
        )

    def _frame(self) -> Frame:
        frame: Any = self._env.render()
        is_image = isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3
        if not is_image or frame.dtype != np.uint8:
            raise no_frames(self._env_id)
        return np.ascontiguousarray(frame)


def _mend() -> str:
    if platform.system() != "Linux":  # MuJoCo itself draws there, by one way alone
        return "leave MUJOCO_GL unset"
    return "install libegl1 or libosmesa6, set MUJOCO_GL to a renderer that works"


def _named(renderer: str) -> str:
    """`MUJOCO_GL=egl`, as a user would write it."""
    return f"MUJOCO_GL={renderer or os.environ.get('MUJOCO_GL', '')}".rstrip("=")
