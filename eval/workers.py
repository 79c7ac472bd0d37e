"""Environments in processes of their own, stepped together.

A pool has a fixed number of slots, split into contiguous groups. In one tick every busy slot either
begins an episode or takes one step; each group gets one order and gives one outcome. With a single
process the one group lives in the calling process, without pipes, through the same code.

A worker process that dies or hangs is replaced, and its slots are reported as lost: since an
episode is a function of its seed and the policy, the caller begins those episodes again and nothing
is dropped. An error that an environment raises is not repeated but raised in the caller.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from time import monotonic
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError
from tql_offline.eval.environments import SeededEnvironment, describe, kept_global_state, make

MAX_LOSSES = 3
"""A group that loses its process this often without finishing an episode will not finish one."""


class EnvironmentFailedError(RuntimeError):
    """An environment raised an error, or its process died again and again; the message has both."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one group does in one tick.

    Attributes:
        resets: seed of the episode that each of these slots begins.
        steps: slots that take a step.
        actions: `(len(steps), n_a)` float32, their actions.
    """

    resets: dict[int, int]
    steps: list[int]
    actions: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an order, one row per slot.

    Attributes:
        slots: the slots that began an episode, then those that took a step.
        observations: `(len(slots), n_s)` float32.
        rewards: `(len(slots),)`, 0 for a reset.
        terminated: `(len(slots),)` whether the task ended.
        truncated: `(len(slots),)` whether the episode was cut off.
        success: `(len(slots),)` 1, 0, or NaN where the environment reports none.
    """

    slots: list[int]
    observations: NDArray[np.float32]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    success: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Failure:
    """An error on its way from a worker to the caller."""

    message: str
    is_input_error: bool


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What a group needs to know to make its environments, and how long to wait for them."""

    env_id: str
    success_timing: str | None
    step_timeout: float
    start_timeout: float


class _Group(Protocol):
    """Some of a pool's slots, wherever their environments live."""

    def send(self, order: Order) -> None:
        """Hand over one tick's order."""

    def receive(self) -> Outcome | None:
        """The order's outcome; None if the group was lost and has to begin its episodes again."""

    def stop(self) -> None:
        """Free the environments; the next order makes new ones."""


class EnvironmentPool:
    """Slots that hold one environment each, kept alive across evaluations.

    Environments are made when a slot first begins an episode. Use it as a context manager: leaving
    it, also by an exception or Ctrl-C, ends its processes.

    Args:
        env_id: as for `environments.make`.
        slots: environments stepped together.
        processes: worker processes; 1 keeps the environments in this process.
        success_timing: as for `environments.make`.
        step_timeout: seconds that a group may take for one step of all its slots.
        start_timeout: seconds that a group may take for a tick in which episodes begin, which may
            include starting its process and making its environments.

    Raises:
        InputError: the environment cannot be made or has no vector observations and actions, or a
            number is below 1.
    """

    def __init__(
        self,
        env_id: str,
        *,
        slots: int,
        processes: int,
        success_timing: str | None = None,
        step_timeout: float = 60.0,
        start_timeout: float = 300.0,
    ) -> None:
        if slots < 1 or processes < 1:
            raise InputError(
                f"evaluation with {slots} slots in {processes} processes is impossible; "
                "set both to at least 1"
            )
        self.slots = slots
        self.description = describe(env_id, success_timing)
        settings = _Settings(
            env_id=env_id,
            success_timing=success_timing,
            step_timeout=step_timeout,
            start_timeout=start_timeout,
        )
        processes = min(processes, slots)
        self._groups: list[_Group] = (
            [_LocalGroup(settings)]
            if processes == 1
            else [_ProcessGroup(settings) for _ in range(processes)]
        )
        # Slot k belongs to group k * processes // slots: contiguous groups of nearly equal size.
        self._group_of = [slot * processes // slots for slot in range(slots)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def advance(
        self, resets: Mapping[int, int], steps: Sequence[int], actions: NDArray[np.float32]
    ) -> tuple[list[Outcome], list[int]]:
        """Advance every busy slot by one tick.

        Args:
            resets: seed of the episode that each of these slots begins.
            steps: slots that take a step.
            actions: `(len(steps), n_a)` float32, their actions.

        Returns:
            The groups' outcomes, and the lost slots: their group's process died or hung, and their
            episodes have to begin again.

        Raises:
            InputError: the actions don't fit the environment.
            EnvironmentFailedError: an environment raised an error, or its process died repeatedly.
        """
        orders = self._split(resets, steps, actions)
        outcomes: list[Outcome] = []
        lost: list[int] = []
        try:
            for index, order in orders.items():
                self._groups[index].send(order)
            for index, order in orders.items():
                outcome = self._groups[index].receive()
                if outcome is None:
                    lost += [*order.resets, *order.steps]
                else:
                    outcomes.append(outcome)
        except BaseException:
            # Other groups may owe an answer; new processes cannot mistake it for the next one.
            self.close()
            raise
        return outcomes, lost

    def close(self) -> None:
        """End the processes and free the environments; a later tick would start them anew."""
        for group in self._groups:
            group.stop()

    def _split(
        self, resets: Mapping[int, int], steps: Sequence[int], actions: NDArray[np.float32]
    ) -> dict[int, Order]:
        """The tick's orders by group; idle groups get none."""
        orders = {}
        for index in range(len(self._groups)):
            mine = [row for row, slot in enumerate(steps) if self._group_of[slot] == index]
            order = Order(
                resets={k: seed for k, seed in resets.items() if self._group_of[k] == index},
                steps=[steps[row] for row in mine],
                actions=actions[mine],
            )
            if order.resets or order.steps:
                orders[index] = order
        return orders


class _LocalGroup:
    """A group whose environments live in this process."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._environments: dict[int, SeededEnvironment] = {}
        self._order: Order | None = None

    def send(self, order: Order) -> None:
        """Keep the order."""
        self._order = order

    def receive(self) -> Outcome:
        """Carry the order out."""
        assert self._order is not None
        return _unwrap(_answer(self._environments, self._settings, self._order))

    def stop(self) -> None:
        """Free the environments."""
        while self._environments:
            self._environments.popitem()[1].close()


class _ProcessGroup:
    """A group whose environments live in a worker process, started with its first order."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._process: BaseProcess | None = None
        self._connection: Connection[Any, Any] | None = None
        self._order: Order | None = None
        self._deadline = 0.0
        self._losses = 0

    def send(self, order: Order) -> None:
        """Start the worker if there is none, and send it the order."""
        if self._connection is None:
            self._process, self._connection = _start_worker(self._settings)
        wait = self._settings.start_timeout if order.resets else self._settings.step_timeout
        self._order, self._deadline = order, monotonic() + wait
        try:
            self._connection.send(order)
        except OSError:
            # The worker is dead; `receive` finds that too, and is the one place that replaces it.
            return

    def receive(self) -> Outcome | None:
        """Wait for the outcome until the deadline; end a dead or hanging worker."""
        answer = self._poll()
        if answer is None:
            self._count_loss()
            return None
        outcome = _unwrap(answer)
        if (outcome.terminated | outcome.truncated).any():
            self._losses = 0
        return outcome

    def stop(self) -> None:
        """Kill the worker: it holds nothing worth saving, and may hang."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None:
            process.kill()
            process.join()
            process.close()

    def _poll(self) -> Outcome | _Failure | None:
        """The worker's answer, or None if it died or hangs."""
        assert self._connection is not None
        try:
            if not self._connection.poll(max(0.0, self._deadline - monotonic())):
                return None
            answer: Outcome | _Failure = self._connection.recv()
        except (EOFError, OSError):
            return None
        return answer

    def _count_loss(self) -> None:
        """End the lost worker.

        Raises:
            EnvironmentFailedError: it is the last of `MAX_LOSSES` in a row.
        """
        assert self._process is not None
        assert self._order is not None
        # A pipe ends a moment before its process does.
        self._process.join(0.2)
        how = "hung" if self._process.is_alive() else f"died (exit code {self._process.exitcode})"
        slots = [*self._order.resets, *self._order.steps]
        self.stop()
        self._losses += 1
        if self._losses == MAX_LOSSES:
            self._losses = 0
            raise EnvironmentFailedError(
                f"the process of slots {slots} of environment {self._settings.env_id!r} {how}, the "
                f"{MAX_LOSSES}rd loss without a finished episode; use fewer slots if memory ran "
                "out, or processes=1 to see the error"
            )


def _start_worker(settings: _Settings) -> tuple[BaseProcess, "Connection[Any, Any]"]:
    """Start a worker process and return it with this process's end of its pipe."""
    # Not fork: a forked child would share CUDA, thread pools and random state with its parent.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
    with _one_thread_per_child():
        process.start()
    # With our copy closed, a dead worker's pipe reads as ended instead of silent.
    theirs.close()
    return process, ours


@contextmanager
def _one_thread_per_child() -> Iterator[None]:
    """Have new processes use one thread each; they are as many as the cores they may use."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _serve(connection: "Connection[Any, Any]", settings: _Settings) -> None:
    """A worker's life: answer orders until the other end of the pipe is closed."""
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environments: dict[int, SeededEnvironment] = {}
    while True:
        try:
            order = connection.recv()
        except (EOFError, OSError):
            return
        answer = _answer(environments, settings, order)
        try:
            connection.send(answer)
        except OSError:
            return


def _answer(
    environments: dict[int, SeededEnvironment], settings: _Settings, order: Order
) -> Outcome | _Failure:
    """Carry out an order, or say what error came of it."""
    try:
        with kept_global_state():
            return _carry_out(environments, settings, order)
    except InputError as error:
        return _Failure(message=str(error), is_input_error=True)
    except Exception:
        return _Failure(
            message=f"environment {settings.env_id!r} failed:\n{traceback.format_exc()}",
            is_input_error=False,
        )


def _unwrap(answer: Outcome | _Failure) -> Outcome:
    """An answer's outcome.

    Raises:
        InputError: what the worker raised.
        EnvironmentFailedError: with the text of any other error that the worker raised.
    """
    if isinstance(answer, Outcome):
        return answer
    raise (InputError if answer.is_input_error else EnvironmentFailedError)(answer.message)


def _carry_out(
    environments: dict[int, SeededEnvironment], settings: _Settings, order: Order
) -> Outcome:
    """Begin the order's episodes and take its steps."""
    rows = [
        (_environment(environments, settings, slot).reset(seed), 0.0, False, False, float("nan"))
        for slot, seed in order.resets.items()
    ]
    for slot, action in zip(order.steps, order.actions, strict=True):
        environment = environments[slot]
        if len(action) != environment.action_dim:
            raise InputError(
                f"the policy gives actions of {len(action)} numbers where environment "
                f"{settings.env_id!r} takes {environment.action_dim}; evaluate a policy that was "
                "trained on a dataset of this environment"
            )
        rows.append(environment.step(action))
    observations, rewards, terminated, truncated, success = zip(*rows, strict=True)
    return Outcome(
        slots=[*order.resets, *order.steps],
        observations=np.stack(observations),
        rewards=np.array(rewards),
        terminated=np.array(terminated),
        truncated=np.array(truncated),
        success=np.array(success),
    )


def _environment(
    environments: dict[int, SeededEnvironment], settings: _Settings, slot: int
) -> SeededEnvironment:
    """The slot's environment, made at its first use."""
    if slot not in environments:
        env = make(settings.env_id, success_timing=settings.success_timing)
        environments[slot] = SeededEnvironment(env)
    return environments[slot]
