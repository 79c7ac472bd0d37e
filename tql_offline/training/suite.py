"""A suite: the grid of runs that one TOML file describes, and what it is refused for.

seeds, [collect], [settings]      of every run
[axis.AXIS.LABEL]                 settings of every run with that label
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

from tql_offline.config import Config, DataConfig, read_toml, resolve
from tql_offline.cores import usable_cores
from tql_offline.datasets.load import find_data, kind_of
from tql_offline.datasets.names import collected_folder, downloaded_folder, parse_name
from tql_offline.documents import is_whole
from tql_offline.errors import InputError, shown
from tql_offline.eval.environments import TRIAL_STEPS, try_out
from tql_offline.files import read_json
from tql_offline.number_lists import parse_numbers
from tql_offline.presets import DEFAULT_DATASET, layered, merge
from tql_offline.training.new_run import check

MAX_RUNS = 100_000
MAX_NAME = 200
"""Most characters of a run's name: file systems allow 255, including what the run appends."""

_SUITES = Path(__file__).resolve().parent.parent / "suites"
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")

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
    if isinstance(seeds, str) and seeds:
        return parse_numbers(seeds, f"'seeds' of suite {path}")
    numbers = seeds if isinstance(seeds, list) else []
    fit = all(is_whole(seed, 0, 2**32 - 1) for seed in numbers)
    if not numbers or not fit or len(set(numbers)) < len(numbers):
        raise InputError(
            f"seeds of suite {path} are {shown(seeds)}; list different whole numbers from 0 to "
            f"{2**32 - 1}, or write '0-7'"
        )
    return tuple(numbers)


def _collect(episodes: Settings, path: Path) -> dict[str, int]:
    for name, number in episodes.items():
        with _naming(f"suite {path}, [collect]"):
            parse_name(name)
            if not is_whole(number, 1, 2**32 - 1):
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
                runs.append(PlannedRun(name=name, config=_resolve(reduce(layered, layers), seed)))
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
            try_out(env_id, TRIAL_STEPS)


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
