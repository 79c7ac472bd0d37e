"""A sweep: the runs of a grid that one TOML file describes, each trained in its own process.

    runs/
      .sweep/<name>.lock  held by the sweep that trains a run
      <name>/             a run's folder (tql_offline/runs.py)
      <name>.log          what its processes printed

A sweep keeps no state of its own: a run is finished when its folder holds a result with the
settings that the suite gives it, so a stopped sweep continues when it is started again, and several
sweeps may share a folder: each takes the next run that no other process trains.
"""

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, reduce
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

from tql_offline.config import Config, DataConfig, read_toml, resolve
from tql_offline.cores import usable_cores
from tql_offline.datasets.digests import file_sha256
from tql_offline.datasets.load import find_data, kind_of
from tql_offline.datasets.names import collected_folder, downloaded_folder, parse_name
from tql_offline.errors import InputError, shown
from tql_offline.eval.environments import TRIAL_STEPS, reports_success
from tql_offline.eval.run_records import flatten
from tql_offline.eval.variants import idle_settings
from tql_offline.files import BusyError, locked, read_json, writing
from tql_offline.presets import DEFAULT_DATASET, merge
from tql_offline.runs import RunFolder, claimed
from tql_offline.training.new_run import check
from tql_offline.training.provenance import SWEEP_COMMAND
from tql_offline.training.result import open_run, read_provenance
from tql_offline.training.stopping import ENDING, ENDS_WITH_INPUT

MAX_RUNS = 100_000
MAX_NAME = 200
"""Most characters of a run's name: file systems allow 255, including what the run appends."""
POLL_SECONDS = 0.1
LOG_TAIL_BYTES = 2**16

_SUITES = Path(__file__).resolve().parent.parent / "suites"
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")

_CHANGE_NO_RESULT = ("evaluation.processes", "keep_checkpoints")

State = Literal["finished", "unfinished", "to do"]
Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite file as read.

    Attributes:
        path: the file.
        seeds: every combination of labels is trained with each.
        collect: dataset → training episodes to collect where it is not installed.
        settings: settings of every run.
        axes: axis → label → settings of every run with that label, in the file's order.
    """

    path: Path
    seeds: tuple[int, ...]
    collect: dict[str, int]
    settings: Settings
    axes: dict[str, dict[str, Settings]]


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a sweep: the name of its folder, and all its settings."""

    name: str
    config: Config


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


# The suite file.


def find_suite(name: Path) -> Path:
    """Find a suite file, or the one of that name that comes with the package.

    Raises:
        InputError: there is neither; the message lists those that come with it.
    """
    shipped = {path.stem: path for path in sorted(_SUITES.glob("*.toml"))}
    if not name.is_file() and not name.suffix and len(name.parts) == 1:
        if str(name) not in shipped:
            listed = ", ".join(shipped)
            raise InputError(f"there is no suite {shown(str(name))}; give a file, or {listed}")
        return shipped[str(name)]
    return name


def read_suite(path: Path) -> Suite:
    """Read a suite file; its settings are checked by `expand`.

    Raises:
        InputError: it is missing, not TOML, or has invalid keys, seeds, labels or episodes.
    """
    document = read_toml(path)
    unknown = [key for key in document if key not in ("seeds", "collect", "settings", "axis")]
    if unknown:
        raise InputError(
            f"unknown key {shown(unknown[0])} at the top of suite {path}; it may have seeds, "
            "collect, settings and axis"
        )
    axes = _table(document, "axis", path)
    return Suite(
        path=path,
        seeds=_seeds(document.get("seeds", [0]), path),
        collect=_collect(_table(document, "collect", path), path),
        settings=_table(document, "settings", path),
        axes={axis: _labels(axes, axis, path) for axis in axes},
    )


def _table(document: Mapping[str, Any], key: str, path: Path) -> Settings:
    table = document.get(key, {})
    if not isinstance(table, dict):
        raise InputError(f"{shown(key)} in suite {path} is {shown(table)}; make it a table")
    return table


def _seeds(seeds: Any, path: Path) -> tuple[int, ...]:
    numbers = seeds if isinstance(seeds, list) else []
    fit = all(_is_whole(seed) and 0 <= seed < 2**32 for seed in numbers)
    if not numbers or not fit or len(set(numbers)) < len(numbers):
        raise InputError(
            f"seeds of suite {path} are {shown(seeds)}; list different whole numbers from 0 to "
            f"{2**32 - 1}"
        )
    return tuple(numbers)


def _collect(episodes: Settings, path: Path) -> dict[str, int]:
    for name, number in episodes.items():
        with _naming(f"suite {path}, [collect]"):
            parse_name(name)
            if not _is_whole(number) or not 0 < number < 2**32:
                raise InputError(f"{name} is {shown(number)}; give a whole number of episodes")
    return episodes


def _labels(axes: Settings, axis: str, path: Path) -> dict[str, Settings]:
    labels = _table(axes, axis, path)
    if not labels:
        raise InputError(
            f"axis {shown(axis)} of suite {path} has no labels; add a table [axis.NAME.LABEL]"
        )
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise InputError(
                f"label {shown(label)} of axis {shown(axis)} of suite {path} is part of folder "
                "names; use letters and digits, with '.', '_' and '-' between them"
            )
    return {label: _table(labels, label, path) for label in labels}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say in the block's errors where they come from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


# The runs.


def expand(suite: Suite, over: Mapping[str, Any], processes: int) -> list[PlannedRun]:
    """All runs of a suite: one per combination of labels and seed, seeds varying fastest.

    Args:
        suite: its settings override a preset's; axes override both, a later axis an earlier one.
        over: nested settings that override all of these.
        processes: runs that train at once, which share the machine's cores.

    Raises:
        InputError: a run's settings cannot be used, two runs have the same name, or there are too
            many.
    """
    count = math.prod(len(labels) for labels in suite.axes.values()) * len(suite.seeds)
    if count > MAX_RUNS:
        raise InputError(f"suite {suite.path} has {count:,} runs; leave at most {MAX_RUNS:,}")
    # Lowest in precedence: how many processes play episodes changes no result, only the load.
    settings = merge({"evaluation": {"processes": cores_each(processes)}}, suite.settings)
    runs = []
    for combination in product(*(labels.items() for labels in suite.axes.values())):
        layers = [settings, *(above for _, above in combination), over]
        for seed in suite.seeds:
            name = "-".join([*(label for label, _ in combination), f"s{seed}"])
            with _naming(f"suite {suite.path}, run {shown(name)[1:-1]}"):
                runs.append(PlannedRun(name=name, config=_resolve(reduce(merge, layers), seed)))
    _check_names(runs, suite.path)
    return runs


def select(
    runs: Sequence[PlannedRun], patterns: Sequence[str], suite: Suite
) -> tuple[list[PlannedRun], dict[str, int]]:
    """Runs whose names match any of some shell patterns, and what is to be collected for them.

    Raises:
        InputError: a pattern matches no run.
    """
    for pattern in patterns:
        if not any(fnmatchcase(run.name, pattern) for run in runs):
            raise InputError(
                f"--only {shown(pattern)} matches no run of suite {suite.path}; --list without "
                "--only names them"
            )
    chosen = [run for run in runs if any(fnmatchcase(run.name, p) for p in patterns)]
    files = {_ogbench_file(run.config.dataset) for run in chosen}
    collect = {name: n for name, n in suite.collect.items() if parse_name(name).file in files}
    return chosen, collect


def _ogbench_file(data: DataConfig) -> str:
    """The file of an OGBench dataset that is given by name; empty for all other data."""
    try:
        return "" if data.path else parse_name(data.name).file
    except InputError:
        return ""


def cores_each(processes: int) -> int:
    """Cores for each of `processes` runs at once."""
    return max(1, usable_cores() // processes)


def _resolve(settings: Mapping[str, Any], seed: int) -> Config:
    if "seed" in settings:
        raise InputError("'seed' is among its settings; list seeds under 'seeds' alone")
    config = resolve(merge(settings, {"seed": seed}), flags_are="its settings")
    check(config, Path(), "")
    return config


def _check_names(runs: Sequence[PlannedRun], path: Path) -> None:
    seen: set[str] = set()
    for run in runs:
        # Some file systems ignore case.
        name = run.name.lower()
        if name in seen:
            raise InputError(
                f"two runs of suite {path} are named {shown(run.name)}; change a label"
            )
        if len(name) > MAX_NAME:
            raise InputError(
                f"run {shown(run.name)} of suite {path} has a name of {len(name)} characters; "
                f"shorten its labels to {MAX_NAME} in all"
            )
        seen.add(name)


def check_data(run: PlannedRun, suite: Suite) -> None:
    """Check that a run's data are installed, or will be when it starts.

    Raises:
        InputError: they are not; the message names the commands that install them.
    """
    wanted = run.config.dataset
    collected = _ogbench_file(wanted) in {parse_name(name).file for name in suite.collect}
    if collected or (wanted.name == DEFAULT_DATASET and not wanted.path):
        return
    with _naming(f"suite {suite.path}, run {run.name}"):
        path = Path(wanted.path) if wanted.path else None
        find_data(wanted.name, path, allow_broken=wanted.allow_broken)


def check_environments(runs: Iterable[PlannedRun], suite: Suite) -> None:
    """Try out the environments that runs name, each once.

    Raises:
        InputError: one cannot be made or fails; the message names the first run that is scored in
            it.
    """
    named: dict[str, PlannedRun] = {}
    for run in runs:
        if run.config.dataset.env_id and run.config.evaluation.enabled:
            named.setdefault(run.config.dataset.env_id, run)
    for env_id, run in named.items():
        with _naming(f"suite {suite.path}, run {run.name}"):
            reports_success(env_id, TRIAL_STEPS)


def has_no_environment(run: PlannedRun) -> bool:
    """Whether a run's data are a file that names no environment, so that nothing is scored."""
    wanted = run.config.dataset
    return kind_of(wanted.name) == "own" and not wanted.env_id and run.config.evaluation.enabled


def check_collected(suite: Suite) -> None:
    """Check that the suite's datasets that are installed are what the suite collects.

    Raises:
        InputError: a collected file holds another number of episodes, or a download would be used
            instead.
    """
    for name, episodes in suite.collect.items():
        file = parse_name(name).file
        download = downloaded_folder() / f"{file}.npz"
        if download.is_file() and download.parent != collected_folder():
            raise InputError(
                f"{download} would be taken where suite {suite.path} collects its own; set "
                "OGBENCH_DATA to another folder, or take the dataset out of [collect]"
            )
        manifest = collected_folder() / f"{file}.json"
        have = read_json(manifest).get("episodes") if manifest.is_file() else episodes
        if have != episodes:
            raise InputError(
                f"{manifest} is of {shown(have)} episodes where suite {suite.path} collects "
                f"{episodes}; set TQL_OFFLINE_DATA to another folder"
            )


def state_of(run: PlannedRun, runs: Path) -> State:
    """How far a run has come.

    Raises:
        InputError: its folder holds a run with other settings, or no run.
    """
    path = runs / run.name
    if not path.exists():
        return "to do"
    if path.is_dir() and all(map(_is_passing, path.iterdir())):
        return "unfinished"  # ended before its settings were written
    folder, config = open_run(path)
    is_moved = moved_data(folder, config, run.config) is not None
    if difference := first_difference(config, run.config, is_moved=is_moved):
        raise InputError(
            f"run {path} has {difference}; move it away, or choose another --runs or another label"
        )
    return "finished" if folder.is_finished() else "unfinished"


def _is_passing(file: Path) -> bool:
    return file.suffix == ".part" or file.name == ".lock"


def moved_data(folder: RunFolder, have: Config, want: Config) -> Path | None:
    """Where the data file of a run is now, if the suite names another place for the same bytes."""
    old, new = (Path(config.dataset.path or config.dataset.name) for config in (have, want))
    if old == new or old.name != new.name or not (new.is_file() and folder.provenance.is_file()):
        return None
    recorded = read_provenance(folder)["dataset"]
    state = new.stat()
    same = recorded["sha256"] == _sha256(new, state.st_mtime_ns, state.st_size)
    return new if same else None


@lru_cache
def _sha256(path: Path, _mtime: int, _size: int) -> str:
    """The digest of a file, which many runs of a sweep share."""
    return file_sha256(path)


def first_difference(have: Config, want: Config, *, is_moved: bool = False) -> str:
    """The first setting that makes two configs train different runs, with both values, or "".

    Where the data `is_moved`, the paths of the file are not compared.

    >>> first_difference(Config(steps=5), Config(steps=6))
    'steps 5 where the suite gives 6'
    """
    old, new = (flatten(config.model_dump(mode="json")) for config in (have, want))
    without_effect = (*idle_settings(want.objective, new), *_CHANGE_NO_RESULT)
    if is_moved:
        are_paths = all(kind_of(config.dataset.name) == "own" for config in (have, want))
        without_effect += ("dataset.path", *(["dataset.name"] if are_paths else []))
    for key, value in new.items():
        if not key.startswith(without_effect) and old[key] != value:
            return f"{key} {old[key]!r} where the suite gives {value!r}"
    return ""


def can_go_on(run: PlannedRun, runs: Path) -> bool:
    """Whether an unfinished run can be resumed: its provenance was written."""
    return RunFolder(runs / run.name).provenance.is_file()


def discard(run: PlannedRun, runs: Path) -> None:
    """Remove the folder of a run that ended before it trained.

    Raises:
        InputError: it cannot be removed.
    """
    path, aside = runs / run.name, runs / f".{run.name}.removed"
    with writing(path):
        # Renamed first: half a folder would be mistaken for someone else's run.
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
        shutil.rmtree(aside)


@contextmanager
def taken(run: PlannedRun, runs: Path) -> Iterator[None]:
    """Keep other sweeps from a run.

    Raises:
        BusyError: another sweep, or a training by hand, is at it.
        InputError: the folder cannot be written.
    """
    with locked(runs / ".sweep" / f"{run.name}.lock", "another sweep trains it"):
        if (runs / run.name).is_dir():
            with claimed(RunFolder(runs / run.name)):
                pass
        yield


def is_taken(run: PlannedRun, runs: Path) -> bool:
    """Whether another process trains a run."""
    if not (runs / ".sweep" / f"{run.name}.lock").exists() and not (runs / run.name).is_dir():
        return False  # nothing is written to find that out
    try:
        with taken(run, runs):
            return False
    except BusyError:
        return True


# Training.

GOES_ON = "finished runs are kept, and the same command goes on"


@dataclass(frozen=True, kw_only=True)
class _Child:
    run: PlannedRun
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

    def ended(self, end: Ended) -> None:
        """A run's process has ended."""


def train_runs(
    runs: Collection[PlannedRun], folder: Path, *, processes: int, reporter: SweepReporter
) -> None:
    """Train runs, some at a time, each in its own process; one that fails stops no other.

    A run that another process trains, or has finished meanwhile, is passed over. An exception,
    Ctrl-C or a signal that ends this program ends the processes, too, each with a checkpoint.

    Args:
        runs: runs that were not finished.
        folder: folder of runs.
        processes: runs at a time.
        reporter: told of each run.

    Raises:
        InputError: a log cannot be written, or a folder holds another run.
    """
    waiting = deque(runs)
    children: list[_Child] = []
    threads = threads_each(processes)
    with TemporaryDirectory(prefix="tql-offline-") as configs, _raised_signals():
        try:
            while waiting or children:
                while waiting and len(children) < processes:
                    run = waiting.popleft()
                    with ExitStack() as claim:
                        try:
                            reporter.begun(run, _prepare(run, folder, claim))
                        except BusyError as error:
                            reporter.passed(run, str(error))
                            continue
                        children.append(_start(run, folder, Path(configs), threads, claim))
                for child in [c for c in children if c.process.poll() is not None]:
                    children.remove(child)
                    reporter.ended(_ended(child, folder))
                time.sleep(POLL_SECONDS)
        finally:
            for child in children:
                child.process.terminate()
            for child in children:
                _wait(child)


def _prepare(run: PlannedRun, folder: Path, claim: ExitStack) -> str:
    """Claim a run for this sweep, and clear away what cannot go on.

    Returns:
        How the run begins; "" for a new one.

    Raises:
        BusyError: another process trains the run, or has finished it meanwhile.
    """
    claim.enter_context(taken(run, folder))
    state = state_of(run, folder)
    if state == "finished":
        raise BusyError("another sweep has finished it")
    if state == "to do":
        return ""
    if can_go_on(run, folder):
        return "was not finished, goes on"
    discard(run, folder)
    return "was not finished, starts again from nothing"


def threads_each(processes: int) -> int:
    """PyTorch's threads of a run: its share of the cores, and no more than the user has set."""
    own = os.environ.get("OMP_NUM_THREADS", "")
    share = cores_each(processes)
    return min(int(own), share) if own.isascii() and own.isdecimal() and int(own) else share


def _threads_before(run: PlannedRun, folder: Path) -> int | None:
    """Those that an unfinished run began with, which its last bits depend on."""
    path = RunFolder(folder / run.name).provenance
    if not (can_go_on(run, folder) and path.is_file()):
        return None
    threads: Any = read_json(path).get("threads")
    return int(threads) if _is_whole(threads) and int(threads) > 0 else None


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


def _start(run: PlannedRun, folder: Path, configs: Path, threads: int, claim: ExitStack) -> _Child:
    threads = _threads_before(run, folder) or threads
    environment = {
        "OMP_NUM_THREADS": str(threads),
        SWEEP_COMMAND: _command_to_record(run),
        ENDS_WITH_INPUT: "1",
    }
    config, log = configs / f"{run.name}.toml", folder / f"{run.name}.log"
    config.write_text(run.config.to_toml(), encoding="utf-8")
    with writing(log), log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            _command(run, config, folder),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    return _Child(
        run=run,
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


@contextmanager
def _raised_signals() -> Iterator[None]:
    """Raise SystemExit where a signal would end this process at once and orphan its children."""
    caught = [n for n in ENDING if signal.getsignal(n) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        caught = []  # Python lets no other thread catch signals
    for number in caught:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


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
            f"`tql-offline eval {folder.path}`"
        )
    learned = [line for line in lines if line["policy"] == "learned"]
    return max(learned, key=lambda line: int(line["step"]), default=None)


def _is_summary(line: Any) -> bool:
    return isinstance(line, dict) and "policy" in line and _is_whole(line.get("step"))
