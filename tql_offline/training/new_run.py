"""Where a new run goes, and what can be refused before it begins."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from tql_offline.config import Config
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.checks_of_numbers import NO_ENCODER
from tql_offline.errors import InputError, shown
from tql_offline.eval import protocol as protocols
from tql_offline.files import nearest_existing
from tql_offline.own_code import brought
from tql_offline.runs import RunFolder
from tql_offline.training.compile import check_execution
from tql_offline.training.device import pick_device
from tql_offline.training.trackers import check_tracker

MAX_RUN_NAMES = 10_000
MAX_NAME_BYTES = 240
"""Most bytes of a run's name: file systems allow 255, including what is appended."""


def check(config: Config, runs: Path, name: str) -> None:
    """Refuse what can be refused before any data are collected or loaded.

    Raises:
        InputError: there is no such device, tracker or protocol, the data are images, there can be
            no such folder of runs, the run's name is taken or invalid, or the run would lie with
            code that it names.
    """
    check_place(runs)
    check_execution(config, pick_device(config.device))
    check_tracker(config.tracker)
    protocols.get(config.evaluation.protocol)
    if suite_of(config.dataset.name) == "ogbench-visual":
        raise InputError(f"{config.dataset.name} holds images, {NO_ENCODER}")
    if name and not _is_folder_name(name):
        raise InputError(
            f"run name {shown(name)} must be one plain folder name; choose another --name"
        )
    if name and (runs / name).exists():
        raise InputError(f"run folder {runs / name} exists already; choose another --name")
    for named in (config.objective, config.dataset.env_id):
        if place := brought(named, runs / (name or run_stem(config))):
            raise InputError(
                f"runs in {runs} would lie in {place}, as does {shown(named)}, which is not "
                "imported to open a run that it lies with; choose another --runs"
            )


def check_place(runs: Path) -> None:
    """Refuse a folder of runs that can be no folder; nothing is written to find that out.

    Raises:
        InputError: it is or lies in a file, or in a link that leads nowhere.
    """
    above = (runs.absolute(), *runs.absolute().parents)
    nearest = next(place for place in above if os.path.lexists(place))
    if not nearest.is_dir():
        what = "no folder" if nearest.exists() else "a link that leads nowhere"
        raise InputError(
            f"there can be no folder of runs {runs}, since {nearest} is {what}; "
            "choose another --runs, or move that away"
        )


def check_writable(runs: Path) -> None:
    """Refuse a folder of runs, which may not be made yet, that nothing can be written to.

    Raises:
        InputError: nothing can.
    """
    try:
        with TemporaryFile(dir=nearest_existing(runs)):
            pass
    except OSError as error:
        raise InputError(
            f"nothing can be written to the folder of runs {runs} ({error.strerror or error}); "
            "choose another --runs"
        ) from error


def seed_names(name: str, seeds: Sequence[int]) -> list[str]:
    """The names of several seeds' run folders; empty if they are to be derived.

    >>> seed_names("mine", [0, 3]), seed_names("mine", [3])
    (['mine-s0', 'mine-s3'], ['mine'])
    """
    return [f"{name}-s{seed}" if name and len(seeds) > 1 else name for seed in seeds]


def _is_folder_name(name: str) -> bool:
    plain = Path(name).name == name and not name.startswith(".") and name.isprintable()
    return plain and len(name.encode()) <= MAX_NAME_BYTES


def new_run_folder(runs: Path, config: Config, name: str) -> RunFolder:
    """Create the run's folder: a given name as it is, a derived one with the next free number.

    Raises:
        InputError: a run of the given name exists, or the name would leave `runs`.
    """
    if name:
        check(config, runs, name)
        if not _claim(runs / name):  # taken by another process since the check
            raise InputError(f"run folder {runs / name} exists already; choose another --name")
        return RunFolder(runs / name)
    stem = run_stem(config)
    for number in range(1, MAX_RUN_NAMES):
        path = runs / (stem if number == 1 else f"{stem}-{number}")
        if _claim(path):
            return RunFolder(path)
    raise InputError(f"{runs} holds {MAX_RUN_NAMES} runs named {stem}; give a --name")


def run_stem(config: Config) -> str:
    """Dataset, objective, size and seed, and anything else that is not TQL's own choice."""
    critic, entropy = config.critic, config.entropy.mode
    parts = [Path(config.dataset.name).stem, config.objective.rpartition(":")[2], *_variant(config)]
    if not config.has_critic:
        return "-".join([*parts, f"s{config.seed}"])
    parts += [critic.kind] if critic.kind != "transformer" else []
    parts += [entropy] if critic.kind == "transformer" and entropy != "layerwise" else []
    return "-".join([*parts, critic.size, f"s{config.seed}"])


def _variant(config: Config) -> list[str]:
    """What sets a method apart from the other one of the same objective."""
    is_other = {
        "implicit": config.implicit.extraction == "best-of-n",
        "conservative": config.conservative.calibrated,
        "cloning": config.cloning.policy == "flow",
    }
    names = {"implicit": "best-of-n", "conservative": "calibrated", "cloning": "flow"}
    return [names[config.objective]] if is_other.get(config.objective) else []


def _claim(path: Path) -> bool:
    """Make a folder that no other process has made; False if it exists."""
    try:
        # What is in the place of the folder of runs is no run whose name is taken.
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir()
            return True
    except OSError as error:
        raise InputError(
            f"run folder {path} cannot be created ({error.strerror}); choose another --runs"
        ) from error
    return False
