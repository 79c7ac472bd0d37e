"""The training loop: sample, update, and at their steps log, evaluate and checkpoint."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch

from tql_offline.agents import Agent
from tql_offline.agents.optimizers import set_learning_rate
from tql_offline.config import Config
from tql_offline.datasets.buffer import Buffer
from tql_offline.runs import RunFolder, append_jsonl
from tql_offline.training import checkpoint
from tql_offline.training.metrics import MetricsWindow, check_finite, diverged
from tql_offline.training.trackers import NoTracker, Tracker, flatten


class Reporter(Protocol):
    """Where a run's progress goes; the command line draws it, a test may keep it."""

    def started(self, title: str, steps: int) -> None:
        """A stage of `steps` units begins."""
        ...

    def advanced(self, step: int) -> None:
        """The stage has reached `step`."""
        ...

    def logged(self, line: dict[str, Any], updates_per_second: float) -> None:
        """A line of metrics was written."""
        ...

    def evaluated(self, line: dict[str, Any]) -> None:
        """A policy was scored."""
        ...


class SilentReporter:
    """Reports nothing."""

    def started(self, title: str, steps: int) -> None:
        """Ignore."""

    def advanced(self, step: int) -> None:
        """Ignore."""

    def logged(self, line: dict[str, Any], updates_per_second: float) -> None:
        """Ignore."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """Ignore."""


@dataclass(kw_only=True)
class Training:
    """One run in memory.

    Attributes:
        config: its settings.
        folder: its run folder, already holding config and provenance.
        agent: the method.
        buffer: its data, on the training device.
        generator: draws every sample and all noise of an update, on the training device.
        state: step reached and the data's dims.
        evaluate: scores the agent at a step and writes the line(s).
        evaluation_steps: when to call it.
        reporter: where progress goes.
        tracker: where metrics go besides metrics.jsonl.
    """

    config: Config
    folder: RunFolder
    agent: Agent
    buffer: Buffer
    generator: torch.Generator
    state: checkpoint.State
    evaluate: Callable[[int], None]
    evaluation_steps: frozenset[int]
    reporter: Reporter
    tracker: Tracker = field(default_factory=NoTracker)
    window: MetricsWindow = field(default_factory=MetricsWindow)
    clock: Callable[[], float] = time.perf_counter


class Stop:
    """A request to stop by Ctrl-C or SIGTERM, taken where weights and metrics belong together.

    An update is brought to its end first; an evaluation, which changes no weights, is left at once,
    and so is everything at a second request.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False

    def request(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Note the request; the signature is that of a signal handler.

        Raises:
            KeyboardInterrupt: it need not wait.
        """
        del number, frame
        if self.at_once or self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as requests while the block runs, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.signal(n, self.request) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(training: Training) -> None:
    """Run the updates that remain.

    Raises:
        InputError: a loss or a parameter is no longer finite (seen at log steps and before a
            checkpoint, where the device is waited for anyway).
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written, with a note that names
            it and the command that goes on.
    """
    stop = Stop()
    try:
        with stop.handling():
            _train(training, stop)
    except KeyboardInterrupt as interrupt:
        folder, last = training.folder, _last_checkpoint(training.folder)
        interrupt.add_note(
            f"last checkpoint {last or 'none yet'}, "
            f"`tql-offline train --resume {folder.path}` goes on"
        )
        raise


def _train(training: Training, stop: Stop) -> None:
    config = training.config
    training.reporter.started("training", config.steps)
    started, since = training.clock(), training.state.step
    for step in range(training.state.step + 1, config.steps + 1):
        update(training, step)
        if step % config.log_every == 0 or step == config.steps:
            elapsed = training.clock() - started
            log(training, step, (step - since) / elapsed, elapsed)
            started, since = training.clock(), step
        if step % config.checkpoint_every == 0 or step == config.steps:
            save(training, step)
        if stop.requested:
            save(training, step)
            raise KeyboardInterrupt
        if step in training.evaluation_steps:
            pause = training.clock()
            evaluate(training, step, stop)
            started += training.clock() - pause


def evaluate(training: Training, step: int, stop: Stop) -> None:
    """Score the agent; a stop leaves a checkpoint of the step, where scoring is taken up again."""
    stop.at_once = True
    try:
        training.evaluate(step)
    except KeyboardInterrupt:
        save(training, step)
        raise
    finally:
        stop.at_once = False


def update(training: Training, step: int) -> None:
    """One update; `step` counts from 1."""
    config, agent = training.config, training.agent
    schedule = (step - 1, config.optimizer.warmup, config.steps)
    set_learning_rate(agent.optimizers, agent.learning_rates, *schedule)
    batch = training.buffer.sample(config.batch_size, training.generator)
    training.window.add(agent.update(batch, training.generator, step))
    training.reporter.advanced(step)


def log(training: Training, step: int, updates_per_second: float, seconds: float) -> None:
    """Write one line of metrics.jsonl and, apart from it, of timing.jsonl."""
    line = {"step": step, **training.window.flush()}
    check_finite(line, step, _last_checkpoint(training.folder))
    append_jsonl(training.folder.metrics, line)
    timing = {"step": step, "seconds": seconds, "updates_per_second": updates_per_second}
    append_jsonl(training.folder.timing, timing)
    training.reporter.logged(line, updates_per_second)
    training.tracker.log(flatten({**line, **timing}), step)


def save(training: Training, step: int) -> None:
    """Write a checkpoint of the step just done.

    Raises:
        InputError: a loss since the last log step, or a parameter, is not finite; every checkpoint
            that exists is a good one.
    """
    last = _last_checkpoint(training.folder)
    check_finite(training.window.means(), step, last)
    if parameter := checkpoint.non_finite_parameter(training.agent):
        raise diverged(f"parameter {parameter} became NaN or infinite", step, last)
    state = checkpoint.State(
        step=step,
        observation_dim=training.state.observation_dim,
        action_dim=training.state.action_dim,
    )
    folder, agent = training.folder.checkpoints, training.agent
    checkpoint.save(folder, agent, training.generator, state, training.window)


def _last_checkpoint(folder: RunFolder) -> str:
    steps = folder.checkpoint_steps()
    return str(folder.checkpoints / str(steps[-1])) if steps else ""
