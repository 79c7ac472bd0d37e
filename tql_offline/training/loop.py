"""The training loop: update and, at the steps due, log, score and save; one run or several."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from tql_offline.agents import Agent
from tql_offline.config import Config, is_own
from tql_offline.errors import InputError, quoted
from tql_offline.files import append_jsonl, discard_folder, write_json
from tql_offline.runs import RunFolder
from tql_offline.training import checkpoint
from tql_offline.training.compile import Updates
from tql_offline.training.evaluation import RunScorer
from tql_offline.training.metrics import (
    EndedError,
    MetricsWindow,
    check_finite,
    divergence_error,
)
from tql_offline.training.reporters import Reporter
from tql_offline.training.stopping import Stop, Stopped
from tql_offline.training.trackers import Tracker, flatten
from tql_offline.training.watch import Warned, Watch, stop_error


@dataclass(kw_only=True, eq=False)
class Training:
    """One run in memory.

    Attributes:
        config: its settings.
        folder: its run folder, already holding config and provenance.
        agent: the method.
        updates: runs the agent's updates on its data.
        generator: draws every sample and all noise of an update, on the training device.
        state: step reached and the data's dims.
        scorer: scores the agent at a step and writes the line(s).
        evaluation_steps: steps at which to score.
        reporter: where progress goes.
        finished: called when the run has ended, scores included.
        tracker: where metrics go besides metrics.jsonl.
        watch: judges every line of metrics.
        window: the metrics since the last log step.
        stream: GPU stream, so that several runs' work may overlap; None takes the default one.
        clock: seconds by which updates per second are told.
        saved: the step of the checkpoint written last, -1 before the first.
    """

    config: Config
    folder: RunFolder
    agent: Agent
    updates: Updates
    generator: torch.Generator
    state: checkpoint.State
    scorer: RunScorer
    evaluation_steps: frozenset[int]
    reporter: Reporter
    finished: Callable[[], None]
    watch: Watch
    tracker: Tracker = field(default_factory=Tracker)
    window: MetricsWindow = field(default_factory=MetricsWindow)
    stream: torch.cuda.Stream | None = None
    clock: Callable[[], float] = time.perf_counter
    saved: int = -1


def train(trainings: Sequence[Training]) -> None:
    """Run the remaining updates of one run, or of several that take turns on one device.

    A run's numbers don't depend on the other runs, and one that fails does not stop the others.

    Raises:
        Exception: what the first run that failed ended with, once the others have ended.
        InputError: such as a loss or a parameter that is no longer finite (seen at log steps and
            before a checkpoint, where the device is waited for anyway).
        KeyboardInterrupt: Ctrl-C or another signal to stop, after a checkpoint was written, with a
            note that names it and the command that resumes.
    """
    stop = Stop()
    try:
        with stop.handling():
            failures = _take_turns([(t, _train(t, stop, len(trainings))) for t in trainings])
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("; ".join(_how_to_go_on(training.folder) for training in trainings))
        raise
    for failed, error in failures:
        if not isinstance(error, InputError) and _last_checkpoint(failed.folder):
            error.add_note(_how_to_go_on(failed.folder))  # of an environment, a full disk
    if failures:
        first = failures[0][1]
        for failed, error in failures[1:]:
            first.add_note(f"run {failed.folder.path} failed, too: {_told(error)}")
        raise first


def _take_turns(
    runs: list[tuple[Training, Iterator[None]]],
) -> list[tuple[Training, Exception]]:
    """Exhaust iterators in turn, each on its stream; return the runs that failed, and how.

    Of several runs, a failure is reported at once: the others may train for days.

    Raises:
        KeyboardInterrupt: the runs were stopped, each with a checkpoint.
    """
    failures: list[tuple[Training, Exception]] = []
    was_stopped, several = False, len(runs) > 1
    while runs:
        for training, run in list(runs):
            try:
                with torch.cuda.stream(training.stream):
                    next(run)
            except (StopIteration, Stopped) as end:
                runs.remove((training, run))
                was_stopped |= isinstance(end, Stopped)
            except Exception as error:
                runs.remove((training, run))
                failures.append((training, error))
                if isinstance(error, EndedError):
                    with suppress(InputError):  # the error above all
                        write_json(training.folder.ended, error.record())
                if several:
                    training.reporter.noted(f"run {training.folder.path} failed: {_told(error)}")
    if was_stopped:
        raise KeyboardInterrupt
    return failures


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__} {error}"


def _how_to_go_on(folder: RunFolder) -> str:
    last = _last_checkpoint(folder) or "none yet"
    return f"last checkpoint {last}, `tql-offline train --resume {quoted(folder.path)}` goes on"


def _train(training: Training, stop: Stop, runs: int) -> Iterator[None]:
    """Train one of several runs on one device, yielding after each launch of updates.

    Its timing is its own: on a CPU the other runs' turns are not counted; on GPU streams, where all
    run at once, it is charged an equal share of the time.

    Raises:
        Stopped: a stop was requested; a checkpoint was written.
    """
    config, step = training.config, training.state.step
    training.reporter.started("training", config.steps)
    started, since = training.clock(), step
    while step < config.steps:
        step += update(training, step + 1, next_event(training, step) - step)
        if step % config.log_every == 0 or step == config.steps:
            means = training.window.flush()  # waits for the device to finish the updates
            elapsed = (training.clock() - started) / (runs if training.stream else 1)
            log(training, step, means, (step - since) / elapsed, elapsed)
            started, since = training.clock(), step
        evaluates = step in training.evaluation_steps
        if is_saved(training, step):
            save(training, step)
        if stop.requested:
            save(training, step)
            raise Stopped
        if evaluates:
            pause = training.clock()
            with stopping_at_once(stop):
                training.scorer.score(step)
            started += training.clock() - pause
        pause = training.clock()
        yield
        if not training.stream:
            started += training.clock() - pause
    with stopping_at_once(stop):
        training.scorer.wait()
    prune(training)
    training.finished()


def is_saved(training: Training, step: int) -> bool:
    """Whether a step gets a checkpoint."""
    config = training.config
    # Only saved weights can be scored later, or again.
    is_regular = step in training.evaluation_steps or step % config.checkpoint_every == 0
    return is_regular or step == config.steps or _is_tenth(training, step)


def _is_tenth(training: Training, step: int) -> bool:
    """Whether a step ends a tenth of a run that nothing scores and that has few other checkpoints.

    A kill would lose more than half of such a run. The tenths are rounded up to log steps, so that
    updates are launched, and the device is waited for, as without them.
    """
    config = training.config
    if training.scorer.is_scoring or config.steps // config.checkpoint_every >= 2:
        return False
    lines = math.ceil(config.steps / 10 / config.log_every)
    return step % (lines * config.log_every) == 0


def next_event(training: Training, step: int) -> int:
    """The first step after `step` at which there is more to do than an update."""
    config = training.config
    regular = (every - step % every + step for every in (config.log_every, config.checkpoint_every))
    evaluations = (s for s in training.evaluation_steps if s > step)
    return min(*regular, config.steps, min(evaluations, default=config.steps))


@contextmanager
def stopping_at_once(stop: Stop) -> Iterator[None]:
    """Let a stop end what takes long and is made again on resuming: scores.

    The checkpoint that they are of is written before.
    """
    stop.at_once = True
    try:
        if stop.requested:  # just before
            raise Stopped
        yield
    except KeyboardInterrupt as interrupt:
        raise Stopped from interrupt
    finally:
        stop.at_once = False


def update(training: Training, step: int, most: int) -> int:
    """Run update `step` (from 1) and perhaps some after it, `most` in all; returns how many."""
    count = training.updates(step, most)
    training.reporter.advanced(step + count - 1)
    return count


def log(
    training: Training, step: int, means: dict[str, Any], updates_per_second: float, seconds: float
) -> None:
    """Write one line of metrics.jsonl and one of timing.jsonl."""
    line = {"step": step, **means}
    check_finite(line, step, _last_checkpoint(training.folder), _mend(training.config))
    append_jsonl(training.folder.metrics, line)
    heed(training, training.watch.see(line))
    timing = {"step": step, "seconds": seconds, "updates_per_second": updates_per_second}
    append_jsonl(training.folder.timing, timing)
    training.reporter.logged(line, updates_per_second)
    training.tracker.log(flatten({**line, **timing}), step)


def _mend(config: Config) -> str:
    """What may keep a run from diverging."""
    tries = ["lower optimizer.critic_lr", "raise batch_size"]
    tries += [] if config.dataset.normalise else ["set dataset.normalise"]
    tries += [f"mend the losses of {config.method}"] if is_own(config.objective) else []
    return f"{', '.join(tries[:-1])} or {tries[-1]}"


def heed(training: Training, warnings: Sequence[Warned]) -> None:
    """Record and report what a rule found, or stop the run if that is its action.

    Raises:
        InputError: names the rule, the step and the last good checkpoint.
    """
    for warned in warnings:
        append_jsonl(training.folder.warnings, asdict(warned))
        if getattr(training.config.watch, warned.rule) == "stop":
            raise stop_error(warned, _last_checkpoint(training.folder, warned.since))
        training.reporter.noted(f"warning: {warned.sentence}")


def save(training: Training, step: int) -> None:
    """Write a checkpoint of the step just done, unless that is already done.

    Raises:
        InputError: a loss since the last log step, or a parameter, is not finite; every checkpoint
            that exists is a good one.
    """
    if training.saved == step:
        return
    last = _last_checkpoint(training.folder)
    mend = _mend(training.config)
    check_finite(training.window.means(), step, last, mend)
    if parameter := checkpoint.non_finite_parameter(training.agent):
        raise divergence_error(f"parameter {parameter} became NaN or infinite", step, last, mend)
    state = replace(training.state, step=step)
    folder, agent = training.folder.checkpoints, training.agent
    checkpoint.save(folder, agent, training.generator, state, training.window)
    training.saved = step
    prune(training)


def prune(training: Training) -> None:
    """Delete checkpoints older than those to keep, except those whose scores are unwritten.

    A killed run makes these scores again from their checkpoint, and `eval --missing` those that
    were left for later.
    """
    left = frozenset() if training.scorer.is_scoring else training.evaluation_steps
    newest = training.config.keep_checkpoints
    old = training.folder.checkpoint_steps()[:-newest] if newest else []
    for step in old:
        path = training.folder.checkpoints / str(step)
        try:
            if step not in left and not training.scorer.are_unwritten(step):
                discard_folder(path)
        except OSError as error:  # no reason to end a run
            training.reporter.noted(
                f"note: checkpoint {path} cannot be deleted whole ({error.strerror or error})"
            )


def _last_checkpoint(folder: RunFolder, until: float = math.inf) -> str:
    steps = [step for step in folder.checkpoint_steps() if step <= until]
    return str(folder.checkpoints / str(steps[-1])) if steps else ""
