"""Environments in processes of their own, stepped together.

A pool has a fixed number of slots, split into contiguous groups, two to each worker process. A
group gets one order at a time, to begin episodes in some of its slots and to take a step in others.
While the caller handles one group's answer, the worker carries out the other's order:

    caller    policy->A  policy->B     .     policy->A    .    policy->B    ...
    worker          [ steps A's slots ][ steps B's slots ][ steps A's slots ][ steps B's ...

A worker process that dies or hangs is replaced, and its slots are reported as lost: since an
episode is a function of its seed and the policy, the caller begins those episodes again and nothing
is dropped. An error that an environment raises is not retried but raised in the caller.

A pool may be used from any thread, by one at a time. A step of an environment swaps state that all
threads of its process share (NumPy's global generator, Gymnasium's seeding, warning filters), so
environments live in the calling process only if that is wanted (one process) and its main thread
calls; any other thread gets a worker process, so that its process is not affected.
"""

import dataclasses
import select
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import monotonic, perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tql_offline.errors import InputError
from tql_offline.eval import worker_start
from tql_offline.eval.environments import describe, kept_normal_cache
from tql_offline.eval.stepping import (
    EnvironmentFailedError,
    Environments,
    Failure,
    Order,
    Settings,
    SlotArrays,
)

__all__ = ["MAX_LOSSES", "EnvironmentFailedError", "EnvironmentPool", "Outcome"]

MAX_LOSSES = 3
"""Losses of a process in a row, without a finished episode, after which its slots are given up."""

GROUPS_PER_WORKER = 2
"""Two, so that one is stepped while the caller computes the other's actions."""

_CHECK_SECONDS = 0.1
"""Longest time between two checks of whether the caller still wants the answer."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a group's order; the numbers are in the pool's arrays.

    Attributes:
        order: the order.
        seconds: seconds that it took; None if the group was lost (its process died or hung) and
            has to begin its episodes again.
    """

    order: Order
    seconds: float | None

    @property
    def lost(self) -> bool:
        """Whether the group was lost before the order was done."""
        return self.seconds is None


@dataclass(frozen=True, kw_only=True)
class _Timeouts:
    """Seconds that a group may take, see `EnvironmentPool`."""

    step: float
    start: float


class _Pace:
    """Estimate of how many groups should have answered before the policy is called again.

    A policy call takes P seconds, for one group or all G, and a group's step takes E. If each group
    gets its own calls, a tick takes G P, but no less than P + E, the time from one order to the
    next, nor less than a worker's time for all its groups. So there is time for
    max(P + E, groups of a worker · E) / P calls in a tick; with more, groups would wait longer than
    if they shared calls. Both times are exponential moving averages.
    """

    def __init__(self) -> None:
        self._policy = self._step = 0.0
        self._since: float | None = None

    def handed_out(self, outcomes: Sequence[Outcome]) -> None:
        """Note that the caller has outcomes to work on."""
        self._since = perf_counter()
        for outcome in outcomes:
            # Resets are far slower than steps, and rare.
            if outcome.seconds is not None and not outcome.order.resets:
                self._step += 0.1 * (outcome.seconds - self._step)

    def handed_in(self) -> None:
        """Note that the caller has sent new orders."""
        if self._since is not None:
            self._policy += 0.1 * (perf_counter() - self._since - self._policy)

    def quorum(self, groups: int) -> int:
        """Number of answers to wait for when this number of groups is working."""
        tick = max(self._policy + self._step, GROUPS_PER_WORKER * self._step)
        calls = int(tick / self._policy) if self._policy else groups
        return ceil(groups / max(1, min(groups, calls)))


class EnvironmentPool:
    """Slots that hold one environment each, kept alive across evaluations.

    Environments are made when a slot first begins an episode. Use it as a context manager: leaving
    it, even by an exception or Ctrl-C, ends its processes.

    Args:
        env_id: as for `environments.make`.
        slots: environments stepped together.
        processes: worker processes; 1 keeps the environments in this process if its main thread
            calls.
        success_timing: as for `environments.make`.
        step_timeout: seconds that a group may take for one step of all its slots.
        start_timeout: seconds that a group may take for a tick in which episodes begin, which may
            include starting its process and making its environments.

    Attributes:
        slots: number of slots.
        description: see `environments.describe`.
        arrays: arrays of all slots; a group owns its rows from `send` until `receive` returns it.

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
        self._timeouts = _Timeouts(step=step_timeout, start=start_timeout)
        self.description = _describe(env_id, success_timing, start_timeout)
        self._settings = Settings(
            env_id=env_id,
            success_timing=success_timing,
            slots=slots,
            observation_dim=self.description["observation_dim"],
            action_dim=self.description["action_dim"],
        )
        # An unlinked file: there is no name to clean up, no matter which process dies first.
        self._memory = worker_start.CONTEXT.RawArray("B", slots * self._settings.row().itemsize)
        self.arrays = SlotArrays.over(self._memory, self._settings)
        self._processes = min(processes, slots)
        self._groups: list[_Group] = []
        self._working: list[_Group] = []
        self._pace = _Pace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def send(
        self, resets: Mapping[int, int], steps: Sequence[int], actions: NDArray[np.float32]
    ) -> None:
        """Advance slots by one tick, in groups that currently have no order.

        Args:
            resets: slot → seed of the episode that it begins.
            steps: slots that take a step.
            actions: `(len(steps), n_a)` float32, their actions.
        """
        self._make_groups()
        if len(steps):
            self.arrays.actions[steps] = actions
        for index, order in self._split(resets, steps).items():
            self._groups[index].send(order)
            self._working.append(self._groups[index])
        self._pace.handed_in()

    def receive(self, check: Callable[[], None]) -> list[Outcome]:
        """Wait until groups have answered: one, or more if the policy is slow to call.

        Args:
            check: called at least every 0.1 s, to raise if the answer is no longer wanted.

        Returns:
            Their outcomes; these groups no longer have an order.

        Raises:
            EnvironmentFailedError: an environment raised an error, or its process died repeatedly.
        """
        outcomes: list[Outcome] = []
        quorum = self._pace.quorum(len(self._working))
        while len(outcomes) < quorum:
            check()
            for group in _answered(self._working):
                outcomes.append(group.receive(check))
                self._working.remove(group)
        self._pace.handed_out(outcomes)
        return outcomes

    def close(self) -> None:
        """End the processes and free the environments; a later order would start them anew."""
        self._working = []
        for group in self._groups:
            group.stop()

    def _make_groups(self) -> None:
        """Make groups that suit the calling thread, which changes only between rollouts."""
        apart = self._processes > 1 or not _in_main_thread()
        if not self._groups or isinstance(self._groups[0], _ProcessGroup) != apart:
            self.close()
            self._groups = self._groups_apart() if apart else [self._group_here()]

    def _group_here(self) -> "_LocalGroup":
        return _LocalGroup(Environments(self._settings, self.arrays))

    def _groups_apart(self) -> "list[_Group]":
        workers = [_Worker(self._settings, self._memory) for _ in range(self._processes)]
        count = min(GROUPS_PER_WORKER * self._processes, self.slots)
        return [
            _ProcessGroup(workers[index * self._processes // count], self._timeouts, self.arrays)
            for index in range(count)
        ]

    def _split(self, resets: Mapping[int, int], steps: Sequence[int]) -> dict[int, Order]:
        """The orders by group; idle groups get none."""
        orders: defaultdict[int, Order] = defaultdict(Order)
        for slot, seed in resets.items():
            orders[self._group_of(slot)].resets[slot] = seed
        for slot in steps:
            orders[self._group_of(slot)].steps.append(slot)
        return orders

    def _group_of(self, slot: int) -> int:
        """The group of a slot; groups are contiguous and nearly equal in size."""
        return slot * len(self._groups) // self.slots


class _LocalGroup:
    """A group whose environments live in this process."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments
        self._order = Order()

    def send(self, order: Order) -> None:
        """Keep the order."""
        self._order = order

    def receive(self, check: Callable[[], None]) -> Outcome:
        """Carry out the order slot by slot, so that it can be abandoned in between."""
        with kept_normal_cache():
            seconds = [self._carry_out(part, check) for part in self._order.split()]
        return Outcome(order=self._order, seconds=sum(seconds))

    def stop(self) -> None:
        """Free the environments."""
        self._environments.close()

    def _carry_out(self, order: Order, check: Callable[[], None]) -> float:
        check()
        seconds: float = _unwrap(self._environments.carry_out(order))
        return seconds


class _Worker:
    """A process with the environments of some groups; it answers their orders one by one.

    Attributes:
        queue: groups whose orders have no answer yet, in the order of their answers.
        life: number of the current process; the environments of earlier ones are gone.
        losses: number of processes lost since an episode was last finished.
    """

    def __init__(self, settings: Settings, memory: Any) -> None:
        self.settings, self._memory = settings, memory
        self.queue: deque[_ProcessGroup] = deque()
        self.life = self.losses = 0
        self._process: BaseProcess | None = None
        self._connection: Connection[Any, Any] | None = None

    @property
    def connection(self) -> "Connection[Any, Any]":
        """Our end of the pipe to the process."""
        assert self._connection is not None
        return self._connection

    def send(self, group: "_ProcessGroup", order: Order) -> None:
        """Queue a group's order, starting the process if there is none."""
        if self._connection is None:
            task = (self._memory, dataclasses.asdict(self.settings))
            self._process, self._connection = worker_start.start(worker_start.run, "serve", *task)
        self.queue.append(group)
        try:
            self._connection.send((order.resets, order.steps))
        except OSError:
            # The process is dead; `answer` notices that too, and only there is it replaced.
            return

    def answer(self, *, surely: bool) -> Any:
        """The answer to the first group of the queue, or None if there is none.

        Args:
            surely: whether there is one, or the pipe has ended, so that polling is unnecessary.
        """
        try:
            return self.connection.recv() if surely or self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        """Kill the process: it holds nothing worth saving, and may hang."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        self.life += 1
        self.queue.clear()
        if process is not None and connection is not None:
            worker_start.end(process, connection)

    def end(self) -> str:
        """Stop a process that died or hangs, and return a text that says which."""
        assert self._process is not None
        # A pipe ends a moment before its process does.
        self._process.join(0.2)
        how = "hung" if self._process.is_alive() else f"died (exit code {self._process.exitcode})"
        self.stop()
        return how


class _ProcessGroup:
    """A group whose environments live in a worker process, started with its first order."""

    def __init__(self, worker: _Worker, timeouts: _Timeouts, arrays: SlotArrays) -> None:
        self.worker, self._timeouts, self._arrays = worker, timeouts, arrays
        self._order = Order()
        self._life = -1
        self._deadline = 0.0

    @property
    def is_next(self) -> bool:
        """Whether the worker's next answer is this group's."""
        return bool(self.worker.queue) and self.worker.queue[0] is self

    @property
    def is_stranded(self) -> bool:
        """Whether the process that had the order, or the episodes it continues, is gone."""
        return self._life != self.worker.life

    @property
    def late(self) -> bool:
        """Whether the order has taken too long."""
        return monotonic() >= self._deadline

    def send(self, order: Order) -> None:
        """Send the worker the order, unless its episodes are lost."""
        self._order = order
        if self.is_stranded and order.steps:
            return
        self._life = self.worker.life
        self.worker.send(self, order)
        if self.is_next:
            self.begin_waiting()

    def begin_waiting(self) -> None:
        """Set the deadline: the worker begins the order now."""
        timeout = self._timeouts.start if self._order.resets else self._timeouts.step
        self._deadline = monotonic() + timeout

    def receive(self, _check: Callable[[], None]) -> Outcome:
        """Take the answer that has arrived, or end a dead or hanging worker."""
        if self.is_stranded:
            self._life = self.worker.life  # its next order begins the episodes again
            return Outcome(order=self._order, seconds=None)
        # `_answered` returns a group that is not late only if its pipe can be read.
        answer = self.worker.answer(surely=not self.late)
        if answer is None:
            self._count_loss()
            return Outcome(order=self._order, seconds=None)
        self.worker.queue.popleft()
        if self.worker.queue:
            self.worker.queue[0].begin_waiting()
        outcome = Outcome(order=self._order, seconds=_unwrap(answer))
        if self.worker.losses and self._arrays.ended(self._order.slots).any():
            self.worker.losses = 0
        return outcome

    def stop(self) -> None:
        """Kill the worker."""
        self.worker.stop()

    def _count_loss(self) -> None:
        """End the lost worker.

        Raises:
            EnvironmentFailedError: this is the last of `MAX_LOSSES` losses in a row.
        """
        worker = self.worker
        how = worker.end()
        self._life = worker.life  # this group knows; its next order begins the episodes again
        worker.losses += 1
        if worker.losses == MAX_LOSSES:
            worker.losses = 0
            raise EnvironmentFailedError(
                f"the process of slots {self._order.slots} of environment "
                f"{worker.settings.env_id!r} {how}, the {MAX_LOSSES}rd loss without a finished "
                "episode; use fewer slots if memory ran out, or processes=1 to see the error"
            )


_Group = _LocalGroup | _ProcessGroup


def _answered(groups: Sequence[_Group]) -> list[_Group]:
    """Groups that have an answer or have timed out, after waiting briefly for the first."""
    apart = [group for group in groups if isinstance(group, _ProcessGroup)]
    stranded = [group for group in apart if group.is_stranded]
    if stranded or not apart:
        return [*(stranded or groups)]
    first = {group.worker.connection: group for group in apart if group.is_next}
    answers = _readable(list(first), _CHECK_SECONDS)
    return [group for pipe, group in first.items() if pipe in answers or group.late]


def _readable(pipes: Sequence["Connection[Any, Any]"], seconds: float) -> Container[object]:
    """The pipes that can be read, as from `multiprocessing.connection.wait`."""
    if not hasattr(select, "poll"):
        return wait(pipes, timeout=seconds)
    # `wait` does the same but takes four times as long, which matters at every tick.
    poller = select.poll()
    pipe_of = {pipe.fileno(): pipe for pipe in pipes}
    for number in pipe_of:
        poller.register(number, select.POLLIN)
    return {pipe_of[number] for number, _event in poller.poll(1000 * seconds)}


def _describe(env_id: str, success_timing: str | None, timeout: float) -> dict[str, Any]:
    """Describe an environment, in a process of its own unless this is the main thread.

    Raises:
        InputError: see `environments.describe`.
        EnvironmentFailedError: making the environment raised another error or took too long.
    """
    if _in_main_thread():
        return describe(env_id, success_timing)
    process, connection = worker_start.start(worker_start.run, "tell", env_id, success_timing)
    try:
        answer = connection.recv() if connection.poll(timeout) else None
    except EOFError:
        answer = None
    finally:
        worker_start.end(process, connection)
    if answer is None:
        raise EnvironmentFailedError(
            f"the process that was to describe environment {env_id!r} died, or hung for "
            f"{timeout:g} s; make the environment by itself to see why"
        )
    description: dict[str, Any] = _unwrap(answer)
    return description


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _unwrap(answer: Any) -> Any:
    """An answer that is not a failure.

    Raises:
        InputError: the worker raised one.
        EnvironmentFailedError: the worker raised any other error, whose text it has.
    """
    if isinstance(answer, Failure):
        raise answer.error()
    return answer
