"""A sweep: the runs of a suite (suite.py), each trained in its own process.

    runs/
      .sweep/<name>.lock  held by the sweep that trains a run
      <name>/             a run's folder (tql_offline/runs.py)
      <name>.log          what its processes printed

A sweep keeps no state of its own: a run is finished when its folder holds a result with the
settings that the suite gives it, so a stopped sweep continues when it is started again, and several
sweeps may share a folder: each takes the next run that no other process trains.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, TypeVar

from tql_offline.config import Config
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.load import kind_of
from tql_offline.datasets.slices import slice_paths, slices_sha256
from tql_offline.documents import is_whole
from tql_offline.errors import InputError, quoted
from tql_offline.files import discard_folder, read_json, writing
from tql_offline.locks import BusyError, locked
from tql_offline.runs import RUNS_ELSEWHERE, RunFolder, claimed
from tql_offline.setting_effects import (
    CHANGE_NO_RESULT,
    first_unlike,
    flat_settings,
    idle_settings,
)
from tql_offline.training.provenance import SWEEP_COMMAND
from tql_offline.training.result import open_run, read_provenance
from tql_offline.training.stopping import (
    CAN_END_WITH_INPUT,
    ENDING,
    ENDS_WITH_INPUT,
    SAME_STOP_SECONDS,
    handled,
)
from tql_offline.training.suite import PlannedRun, cores_each

POLL_SECONDS = 0.1
LOOKS = 3
"""How often a run is looked at before it counts as another process's, or as no run."""
LOG_TAIL_BYTES = 2**16

State = Literal["finished", "ended", "extended", "damaged", "unfinished", "to do"]
"""`ended`: by its own numbers, which it would come to again. `extended`: it was finished, and has
not come to the end of more updates that it was given by hand. `damaged`: its result is there and
cannot be read.
"""
DONE: tuple[State, ...] = ("finished", "ended", "extended")
"""States in which nothing is left that the suite asks for."""
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run's process ended.

    Attributes:
        run: the run.
        folder: its folder, if the process made one.
        log: what the run's processes printed.
        said: what this one said last; empty if it printed nothing.
        code: its exit code, negative for a signal.
        seconds: time from its start to its end.
    """

    run: PlannedRun
    folder: RunFolder
    log: Path
    said: str
    code: int
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether the run is finished."""
        return self.code == 0 and self.folder.is_finished()


# How far runs have come.


def state_of(run: PlannedRun, runs: Path) -> State:
    """How far a run has come.

    Raises:
        InputError: its folder holds a run with other settings or data, or no run.
    """
    # Another sweep may just be beginning it anew.
    return _in_some_looks(lambda: _state_of(run, runs / run.name), OSError, InputError)


def _state_of(run: PlannedRun, path: Path) -> State:
    if not path.exists():
        return "to do"
    if path.is_dir() and all(map(_is_passing, path.iterdir())):
        return "unfinished"  # ended before its settings were written
    folder, now = open_run(path)
    config = before_more(folder, now, run.config)
    is_moved = moved_data(folder, config, run.config) is not None
    if difference := first_difference(config, run.config, is_moved=is_moved):
        raise InputError(
            f"run {path} has {difference}; move it away, or choose another --runs or another label"
        )
    if data := changed_data(folder, run.config):
        raise InputError(
            f"run {path} was trained on other content than {data} has now (another SHA-256); "
            "choose another --runs, or move the run away, or restore that content"
        )
    if folder.is_finished():
        return "finished"
    if folder.result.exists():
        return "damaged"
    if folder.ended.exists():
        return "ended"
    return "unfinished" if config is now else "extended"


def before_more(folder: RunFolder, have: Config, want: Config) -> Config:
    """A run's settings or, where it was given more updates than the suite's, the ones before.

    Going on with it is nothing that the suite asks for.
    """
    length = want.optimizer.schedule_steps
    optimizer = have.optimizer.model_copy(update={"schedule_steps": length})
    before = have.model_copy(update={"steps": want.steps, "optimizer": optimizer})
    was_finished = (folder.path / f"result-of-{want.steps}.json").is_file()
    is_longer = have.steps > want.steps and have.schedule_steps == before.schedule_steps
    return before if was_finished and is_longer else have


def _in_some_looks(look: Callable[[], Result], *passing: type[Exception]) -> Result:
    """Do something that may fail for a moment, `LOOKS` times at most."""
    for _ in range(LOOKS - 1):
        with suppress(*passing):
            return look()
        time.sleep(POLL_SECONDS)
    return look()


def _is_passing(file: Path) -> bool:
    """Whether a file is no run's own: a lock, a part, or what a file browser left."""
    return file.name.startswith(".") or file.suffix == ".part"


def moved_data(folder: RunFolder, have: Config, want: Config) -> Path | None:
    """Where the data file of a run is now, if the suite names another place for the same bytes."""
    old, new = (Path(config.dataset.path or config.dataset.name) for config in (have, want))
    if old == new or old.name != new.name or not (new.is_file() and folder.provenance.is_file()):
        return None
    return new if read_provenance(folder)["dataset"]["sha256"] == _digest(new) else None


def changed_data(folder: RunFolder, want: Config) -> Path | None:
    """The data file or folder of slices that the suite names, if a run was trained on other bytes.

    None where that cannot be told: the file or the run's record of it is missing, or it is Minari's
    storage. Data that were downloaded or collected go by their name alone.
    """
    data = want.dataset
    path = Path(data.path or data.name)
    if not (data.path or kind_of(data.name) == "own") or not path.exists():
        return None
    with suppress(InputError, OSError):
        recorded = read_provenance(folder)["dataset"]["sha256"]
        return path if recorded != _digest(path, data.slices) else None
    return None


def _digest(path: Path, slices: int = 0) -> str:
    """The digest of a file or of a folder's slices as a run records it."""
    files = slice_paths(path, slices) if path.is_dir() else [path]
    states = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _sha256(states, is_folder=path.is_dir())


@cache
def _sha256(states: tuple[tuple[Path, int, int], ...], *, is_folder: bool) -> str:
    """The digest of files in a state, which many runs of a sweep share."""
    files = [file for file, _, _ in states]
    return slices_sha256(files) if is_folder else file_sha256(*files)


def first_difference(have: Config, want: Config, *, is_moved: bool = False) -> str:
    """The first setting that makes two configs train different runs, with both values, or "".

    Where the data `is_moved`, the paths of the file are not compared.

    >>> first_difference(Config(steps=5), Config(steps=6))
    'steps 5 where the suite gives 6'
    """
    old, new = flat_settings(have), flat_settings(want)
    without_effect = (*idle_settings(want.objective, new), *CHANGE_NO_RESULT)
    if is_moved:
        are_paths = all(kind_of(config.dataset.name) == "own" for config in (have, want))
        without_effect += ("dataset.path", *(["dataset.name"] if are_paths else []))
    after, before = (
        {key: value for key, value in flat.items() if not key.startswith(without_effect)}
        for flat in (new, old)
    )
    if unlike := first_unlike(after, before):
        key, now, then = unlike
        return f"{key} {then!r} where the suite gives {now!r}"
    return ""


def can_go_on(run: PlannedRun, runs: Path) -> bool:
    """Whether an unfinished run can be resumed: its provenance was written."""
    return RunFolder(runs / run.name).provenance.is_file()


def discard(run: PlannedRun, runs: Path) -> None:
    """Remove the folder of a run that ended before it trained.

    Raises:
        InputError: it cannot be removed.
    """
    with writing(runs / run.name):
        discard_folder(runs / run.name)


@contextmanager
def taken(run: PlannedRun, runs: Path) -> Iterator[None]:
    """Keep other sweeps from a run.

    Raises:
        BusyError: another sweep, or a training by hand, is at it.
        InputError: the folder cannot be written.
    """
    with locked(_lock_of(run, runs), "another sweep trains it", advice=RUNS_ELSEWHERE):
        if (runs / run.name).is_dir():
            with claimed(RunFolder(runs / run.name)):
                pass
        yield


def _lock_of(run: PlannedRun, runs: Path) -> Path:
    return runs / ".sweep" / f"{run.name}.lock"


def is_taken(run: PlannedRun, runs: Path) -> bool:
    """Whether another process trains a run."""
    if not _lock_of(run, runs).exists() and not (runs / run.name).is_dir():
        return False  # nothing is written to find that out
    try:
        with taken(run, runs):
            return False
    except BusyError:
        return True
    except InputError:  # a folder that may only be read
        return False


# Training.

GOES_ON = "finished runs are kept, and the same command goes on"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of the machine a run gets.

    Attributes:
        threads: of PyTorch.
        gpu: the one GPU that it sees, as CUDA_VISIBLE_DEVICES names it; empty for all.
    """

    threads: int
    gpu: str = ""


@dataclass(frozen=True, kw_only=True)
class _Child:
    run: PlannedRun
    share: Share
    log: Path
    log_begin: int
    process: subprocess.Popen[bytes]
    started: float
    claim: ExitStack


class SweepReporter(Protocol):
    """Is told how a sweep proceeds."""

    def begun(self, run: PlannedRun, how: str) -> None:
        """A run begins; `how` is empty for a new one."""

    def passed(self, run: PlannedRun, why: str) -> None:
        """A run is passed over."""

    def refused(self, run: PlannedRun, why: str) -> None:
        """A run cannot be begun."""

    def ended(self, end: Ended) -> None:
        """A run's process has ended."""


def train_runs(
    runs: Iterable[PlannedRun],
    folder: Path,
    *,
    processes: int,
    reporter: SweepReporter,
    gpus: Sequence[str] = (),
) -> list[PlannedRun]:
    """Train runs, some at a time, each in its own process; one that fails stops no other.

    A run that another process trains, or has finished meanwhile, is looked at again at the end, and
    then passed over. An exception, Ctrl-C or a signal that ends this program ends the processes,
    too, each with a checkpoint once it trains.

    Args:
        runs: runs that were not finished.
        folder: folder of runs.
        processes: runs at a time.
        reporter: told of each run.
        gpus: GPUs as CUDA_VISIBLE_DEVICES names them; a run sees only the one with the fewest runs.

    Returns:
        The runs that are left to other processes.
    """
    with _raised_signals():
        busy = _train_round(runs, folder, processes, gpus, reporter)
        left = _train_round([run for run, _ in busy], folder, processes, gpus, reporter)
    for run, why in left:
        reporter.passed(run, why)
    return [run for run, _ in left]


def _train_round(
    runs: Iterable[PlannedRun],
    folder: Path,
    processes: int,
    gpus: Sequence[str],
    reporter: SweepReporter,
) -> list[tuple[PlannedRun, str]]:
    """Train the runs that no other process trains; returns the others, each with what holds it."""
    waiting, busy = deque(runs), list[tuple[PlannedRun, str]]()
    children: list[_Child] = []
    with TemporaryDirectory(prefix="tql-offline-") as configs:
        try:
            while waiting or children:
                while waiting and len(children) < processes:
                    run = waiting.popleft()
                    gpu = freest(gpus, [child.share.gpu for child in children])
                    share = Share(threads=threads_each(processes), gpu=gpu)
                    try:
                        child = _begin(run, folder, Path(configs), share, reporter)
                    except BusyError as error:
                        busy.append((run, str(error)))
                        continue
                    except (InputError, OSError) as error:
                        reporter.refused(run, str(error))
                        continue
                    children += [child] if child else []
                for child in [c for c in children if c.process.poll() is not None]:
                    children.remove(child)
                    reporter.ended(_ended(child, folder))
                time.sleep(POLL_SECONDS)
        finally:
            _end(children)
    return busy


def _end(children: Iterable[_Child]) -> None:
    """End processes, and wait for them; what stops this one may come twice (see `Stop`)."""
    for child in children:
        child.process.terminate()
    patience = time.monotonic() + SAME_STOP_SECONDS
    with handled(ENDING, signal.SIG_IGN):
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, patience - time.monotonic()))
    for child in children:
        _wait(child)


def _begin(
    run: PlannedRun, folder: Path, configs: Path, share: Share, reporter: SweepReporter
) -> _Child | None:
    """Claim a run and start its process; returns None if another sweep has finished it meanwhile.

    Raises:
        BusyError: another process trains the run.
        InputError: its folder holds something else, or cannot be written, or its log cannot.
    """
    with ExitStack() as claim:
        # By a sweep that only looks, as `--list` does, it is held for a moment.
        _in_some_looks(lambda: claim.enter_context(taken(run, folder)), BusyError)
        state = state_of(run, folder)
        if state in DONE:
            reporter.passed(run, f"another sweep has {state} it")
            return None
        how = ""
        if state == "damaged":
            how = "has a damaged result.json, which is written again from the last checkpoint"
        elif state == "unfinished" and can_go_on(run, folder):
            how = "was not finished, goes on"
        elif state == "unfinished":
            discard(run, folder)
            how = "was not finished, starts again from nothing"
        reporter.begun(run, how)
        return _start(run, folder, configs, share, claim)


def threads_each(processes: int) -> int:
    """PyTorch's threads of a run: its share of the cores, and no more than the user has set."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    share = cores_each(processes)
    return min(int(own), share) if own.isascii() and own.isdecimal() and int(own) else share


def freest(gpus: Sequence[str], taken: Sequence[str]) -> str:
    """The GPU on which the fewest runs are, the first of several; empty if there is no choice.

    >>> freest(["0", "1"], ["0"]), freest(["0", "1"], []), freest([], [])
    ('1', '0', '')
    """
    runs = Counter(taken)
    return min(gpus, key=lambda gpu: runs[gpu], default="")


def _threads_before(run: PlannedRun, folder: Path) -> int | None:
    """Those that an unfinished run began with, which its last bits depend on."""
    if not can_go_on(run, folder):
        return None
    threads: Any = read_json(RunFolder(folder / run.name).provenance).get("threads")
    return threads if is_whole(threads, 1) else None


def _command_to_record(run: PlannedRun) -> str:
    """What repeats the run: this sweep's command for it alone, where this is one."""
    arguments = sys.argv[1:]
    if arguments[:1] != ["sweep"]:
        return ""
    words = iter(arguments)
    kept = []
    for word in words:
        if word == "--only":
            next(words, None)
        elif not word.startswith("--only="):
            kept.append(word)
    return shlex.join(["tql-offline", *kept, "--only", run.name])


def _start(run: PlannedRun, folder: Path, configs: Path, share: Share, claim: ExitStack) -> _Child:
    environment = {
        "OMP_NUM_THREADS": str(_threads_before(run, folder) or share.threads),
        SWEEP_COMMAND: _command_to_record(run),
        **({ENDS_WITH_INPUT: "1"} if CAN_END_WITH_INPUT else {}),
        **({"CUDA_VISIBLE_DEVICES": share.gpu} if share.gpu else {}),
    }
    config, log = configs / f"{run.name}.toml", folder / f"{run.name}.log"
    config.write_text(run.config.to_toml(), encoding="utf-8")
    with writing(log), log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            _command(run, config, folder),
            stdin=subprocess.PIPE if CAN_END_WITH_INPUT else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    return _Child(
        run=run,
        share=share,
        log=log,
        log_begin=begin,
        process=process,
        started=time.monotonic(),
        claim=claim.pop_all(),
    )


def _command(run: PlannedRun, config: Path, folder: Path) -> list[str]:
    train = [sys.executable, "-m", "tql_offline", "train"]
    if can_go_on(run, folder):
        path = folder / run.name
        moved = moved_data(*open_run(path), run.config)
        return [*train, "--resume", str(path), *(["--path", str(moved)] if moved else [])]
    return [*train, "--config", str(config), "--runs", str(folder), "--name", run.name]


def _ended(child: _Child, folder: Path) -> Ended:
    return Ended(
        run=child.run,
        folder=RunFolder(folder / child.run.name),
        log=child.log,
        said=last_words(child.log, child.log_begin),
        code=_wait(child),
        seconds=time.monotonic() - child.started,
    )


def _wait(child: _Child) -> int:
    """The exit code, once there is one; the run may then be claimed by others."""
    code = child.process.wait()
    if child.process.stdin is not None:
        child.process.stdin.close()  # not before: a run ends with its input
    child.claim.close()
    return code


def _raised_signals() -> AbstractContextManager[None]:
    """Raise SystemExit where a signal would end this process at once and orphan its children."""
    return handled((n for n in ENDING if signal.getsignal(n) is signal.SIG_DFL), _exit)


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def last_words(log: Path, begin: int = 0) -> str:
    """The last sentence of an error in a log, or else its last line that is not blank, or "".

    A process that the run had before may still write its own lines.
    """
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    errors = [line for line in lines if line.startswith("tql-offline: ")]
    return (errors or lines or [""])[-1]


def last_evaluation(folder: RunFolder) -> dict[str, Any] | None:
    """The learned policy's last evaluation in a finished run's result; None if it has none.

    Raises:
        InputError: the result cannot be read.
    """
    evaluations = read_json(folder.result).get("evaluations")
    lines: list[Any] = evaluations if isinstance(evaluations, list) else [None]
    if not all(_is_summary(line) for line in lines):
        raise InputError(
            f"{folder.result} has no usable 'evaluations'; move run {folder.path} away, or run "
            f"`tql-offline eval {quoted(folder.path)}`"
        )
    learned = [line for line in lines if line["policy"] == "learned"]
    return max(learned, key=lambda line: int(line["step"]), default=None)


def _is_summary(line: Any) -> bool:
    return isinstance(line, dict) and "policy" in line and is_whole(line.get("step"))
