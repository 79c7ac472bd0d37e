"""Execution of orders by a group of environments, in a worker process or in the caller's.

Numbers go through arrays with one row per slot, which a pool and its workers share. An order says
only which slots begin an episode and which take a step, and the answer only that it is done:

    pool     actions[steps] = ...   order ->                                    reads the rows
    worker                                    resets, steps, writes the rows    -> answer

So each row has one writer at a time, and the pipe between them says whose turn it is.
"""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError, one_line
from tql_offline.eval.environments import SeededEnvironment, describe, kept_global_state, make


class EnvironmentFailedError(RuntimeError):
    """An environment raised an error, or its process died repeatedly; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings needed to make a group's environments and to lay out their rows.

    Attributes:
        env_id: as for `environments.make`.
        success_timing: as for `environments.make`.
        slots: number of slots of the whole pool.
        observation_dim: n_s.
        action_dim: n_a.
    """

    env_id: str
    success_timing: str | None
    slots: int
    observation_dim: int
    action_dim: int

    def row(self) -> np.dtype[np.void]:
        """Layout of a slot's row."""
        fields = [
            ("observations", np.float32, (self.observation_dim,)),
            ("actions", np.float32, (self.action_dim,)),
            ("rewards", np.float64),
            ("success", np.float64),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
        ]
        return np.dtype(fields, align=True)


@dataclass(frozen=True, kw_only=True)
class SlotArrays:
    """The arrays that pool and environments exchange, one row per slot.

    Attributes:
        observations: `(slots, n_s)`.
        actions: `(slots, n_a)`.
        rewards: `(slots,)`, 0 for a reset.
        success: `(slots,)` 1, 0, or NaN if the environment reports none.
        terminated: `(slots,)` whether the task ended.
        truncated: `(slots,)` whether the episode was cut off.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float64]
    success: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    @classmethod
    def over(cls, memory: Any, settings: Settings) -> Self:
        """Arrays over memory of at least `slots` rows."""
        row = settings.row()
        rows = np.frombuffer(memory, dtype=row, count=settings.slots)
        return cls(**{name: rows[name] for name in row.names or ()})

    def ended(self, slots: Any) -> NDArray[np.bool_]:
        """Whether each of these slots ended its episode, for any reason."""
        ended: NDArray[np.bool_] = self.terminated[slots] | self.truncated[slots]
        return ended


@dataclass(frozen=True)
class Order:
    """The work of one group in one tick; the actions of `steps` are in the arrays.

    Attributes:
        resets: slot → seed of the episode that it begins.
        steps: slots that take a step.
    """

    resets: dict[int, int] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)

    @property
    def slots(self) -> list[int]:
        """All slots of the order."""
        return [*self.resets, *self.steps]

    def split(self) -> "Iterator[Order]":
        """Equivalent orders of one slot each."""
        yield from (Order(resets={slot: seed}) for slot, seed in self.resets.items())
        yield from (Order(steps=[slot]) for slot in self.steps)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error on its way from a worker to the caller."""

    message: str
    is_input_error: bool

    def error(self) -> InputError | EnvironmentFailedError:
        """The error to raise in the caller."""
        return (InputError if self.is_input_error else EnvironmentFailedError)(self.message)


def failure(env_id: str, error: Exception) -> Failure:
    """Make a `Failure` from an environment's error, ready to be sent."""
    if isinstance(error, InputError):
        return Failure(message=str(error), is_input_error=True)
    trace = "".join(traceback.format_exception(error))
    said = f"environment {env_id!r} failed: {type(error).__name__}: {one_line(error)}"
    return Failure(message=f"{said}\n{trace}", is_input_error=False)


class Environments:
    """The environments of a group's slots, each made when its slot first begins an episode."""

    def __init__(self, settings: Settings, arrays: SlotArrays) -> None:
        self._settings = settings
        self._arrays = arrays
        self._of_slot: dict[int, SeededEnvironment] = {}

    def carry_out(self, order: Order) -> float | Failure:
        """Begin the order's episodes, take its steps, and write the slots' rows.

        Returns:
            The seconds it took, or the error that an environment raised.
        """
        started = time.perf_counter()
        try:
            self._carry_out(order)
        except Exception as error:
            return failure(self._settings.env_id, error)
        return time.perf_counter() - started

    def _carry_out(self, order: Order) -> None:
        for slot, seed in order.resets.items():
            observation = self._environment(slot).reset(seed)
            self._write(slot, observation, 0.0, False, False, float("nan"))
        for slot in order.steps:
            # A copy: the environment may keep it, and the row will be overwritten.
            action = self._arrays.actions[slot].copy()
            self._write(slot, *self._of_slot[slot].step(action))

    def close(self) -> None:
        """Free the environments."""
        while self._of_slot:
            self._of_slot.popitem()[1].close()

    def _environment(self, slot: int) -> SeededEnvironment:
        """The slot's environment, made at its first use."""
        if slot not in self._of_slot:
            with kept_global_state():
                env = make(self._settings.env_id, success_timing=self._settings.success_timing)
            self._of_slot[slot] = SeededEnvironment(env)
        return self._of_slot[slot]

    def _write(
        self,
        slot: int,
        observation: NDArray[np.float32],
        reward: float,
        terminated: bool,
        truncated: bool,
        success: float,
    ) -> None:
        arrays = self._arrays
        arrays.observations[slot] = observation
        arrays.rewards[slot] = reward
        arrays.terminated[slot] = terminated
        arrays.truncated[slot] = truncated
        arrays.success[slot] = success


def serve(connection: "Connection[Any, Any]", memory: Any, settings: dict[str, Any]) -> None:
    """Main loop of a worker: answer orders until the other end of the pipe is closed.

    An order is a pair of `resets` and `steps`; the answer is the seconds it took, or a `Failure`.
    """
    known = Settings(**settings)
    environments = Environments(known, SlotArrays.over(memory, known))
    try:
        while True:
            # A plain pair: the class of an object would be looked up at every tick.
            resets, steps = connection.recv()
            connection.send(environments.carry_out(Order(resets, steps)))
    except (EOFError, OSError):
        return


def tell(connection: "Connection[Any, Any]", env_id: str, success_timing: str | None) -> None:
    """Send the description of an environment, or a `Failure`."""
    try:
        connection.send(describe(env_id, success_timing))
    except Exception as error:
        connection.send(failure(env_id, error))
