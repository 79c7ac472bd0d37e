"""The run folder: the contract between `train`, `eval` and `report`.

    runs/<name>/
      config.toml           everything needed to repeat the run
      provenance.json       versions, device, git commit, dataset name and sha256, success timing
      metrics.jsonl         one line per log step: losses, Q, entropies; no wall clock: repeatable
      timing.jsonl          one line per log step: seconds and updates/s
      warnings.jsonl        one line per thing that went wrong (training/watch.py), if any did
      ended.json            why a run ended early, if its own numbers did it: not finite, or a rule
      evaluations.jsonl     one line per evaluation: every episode's return, length, success, seed
      ope.jsonl             one line per estimate from data alone, where `eval --ope` was run
      checkpoints/<step>/   *.safetensors and state.json
      inspect/              attention maps, entropies and Q landscapes, where `inspect` was run
      videos/               best, median and worst episode, where `eval --video` was run
      wandb-id              the run's id at Weights & Biases, where that is the tracker
      .lock                 held while a process trains here
      .scoring.lock         held while a process scores here
      result.json           the finished run in one versioned document (docs/result-schema.md)
      result-of-<steps>.json                 the same from before it was given more updates

Nothing in it is ever unpickled. Files are written under other names and renamed, so that a
reader never sees half of one.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tql_offline.documents import require_plain
from tql_offline.errors import InputError
from tql_offline.files import read_json
from tql_offline.locks import locked

RESULT_SCHEMA = "tql-offline/result/1"
MODEL_DOCUMENT = "model.json"
"""The file by which an exported model's folder is recognised (sharing/model.py)."""
RUNS_ELSEWHERE = "choose another folder for --runs"
"""Advice where the file system of a folder of runs has no locks."""


class Inside:
    """A file or folder of this name in a folder that has a `path`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: Any, _: object) -> Path:
        return Path(folder.path, self._name)


@dataclass(frozen=True)
class RunFolder:
    """Names of the files inside one run folder."""

    path: Path
    config = Inside("config.toml")
    provenance = Inside("provenance.json")
    wandb_id = Inside("wandb-id")
    metrics = Inside("metrics.jsonl")
    timing = Inside("timing.jsonl")
    warnings = Inside("warnings.jsonl")
    ended = Inside("ended.json")
    evaluations = Inside("evaluations.jsonl")
    off_policy = Inside("ope.jsonl")
    checkpoints = Inside("checkpoints")
    result = Inside("result.json")
    inspection = Inside("inspect")
    videos = Inside("videos")

    def is_finished(self) -> bool:
        """Whether the run has a result that can be read; a copy may be cut short."""
        try:
            read_json(self.result)
        except InputError:
            return False
        return True

    def has_only_begun(self) -> bool:
        """Whether the folder has nothing but what a run begins with: no checkpoint, line or file.

        A tracker's folder is its own record of the lines.
        """
        trackers = {"tensorboard", "wandb", self.wandb_id.name}
        begun = {self.config.name, self.provenance.name, *trackers}
        return all(
            path.name in begun or path.name.startswith(".") or _is_empty(path)
            for path in self.path.iterdir()
        )

    def checkpoint_steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        names = (p.name for p in self.checkpoints.iterdir() if (p / "state.json").is_file())
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def refuse_links(self) -> None:
        """Check that no file of the run is a link, through which a command would write elsewhere.

        Raises:
            InputError: one of them is a symbolic link, a pipe or a device.
        """
        steps = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        for path in (*self.path.iterdir(), *steps):
            if not path.is_dir():
                require_plain(path)
            if path.is_symlink():
                raise InputError(
                    f"{path} is a link, through which other files would be written; put the file "
                    "itself there, or link the whole run folder"
                )


def _is_empty(path: Path) -> bool:
    return not any(path.iterdir()) if path.is_dir() else not path.stat().st_size


_BEGUN = {RunFolder(Path()).config.name, RunFolder(Path()).ended.name}
"""Files that tell of a run without a result."""


def find_runs(paths: list[Path]) -> list[RunFolder]:
    """Run folders at or below the given paths, sorted by path, without exported models.

    Raises:
        InputError: a path does not exist, or no run lies below any of them.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give a run folder or a folder of runs")
        below = (p for p in _below(path) if p.is_dir() and not p.name.startswith("."))
        candidates = [path, *below] if path.is_dir() else []
        found.update(p for p in candidates if _may_be_run(RunFolder(p)))
    runs = [folder for folder in map(RunFolder, sorted(found)) if not _is_model(folder)]
    if not runs:
        names = ", ".join(str(p) for p in paths)
        but = ", only exported models" if found else ""
        raise InputError(
            f"no run folder (one with a config.toml) lies in {names}{but}; give a run that `train` "
            "or `sweep` wrote, or a folder of such runs"
        )
    return runs


def _may_be_run(folder: RunFolder) -> bool:
    """Whether a folder is a run's or a model's; a run that lost its settings is not passed over."""
    return folder.config.is_file() or folder.provenance.is_file()


def _is_model(folder: RunFolder) -> bool:
    """Whether `export` wrote this folder: it has a run's settings, and no trace of training."""
    return (folder.path / MODEL_DOCUMENT).is_file() and not folder.provenance.exists()


def find_results(paths: list[Path]) -> list[Path]:
    """The first of what `find_others` returns."""
    return find_others(paths)[0]


def find_others(paths: list[Path]) -> tuple[list[Path], list[RunFolder]]:
    """Others' sorted result files, and their run folders that hold none.

    The files are those given, and in given folders those named like `result.json`. A name may say
    whose result it is: `alice-result.json` is found, `provenance.json` is not. Runs without one
    are unfinished, or ended early.

    Raises:
        InputError: a path does not exist, or neither a result nor a run without one lies below it.
    """
    results, begun = set[Path](), set[Path]()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give a result.json or a folder of such files")
        here, without = ({path}, set[Path]()) if path.is_file() else _results_and_begun(path)
        if not here and not without:
            raise InputError(f"no file named like result.json lies in {path}")
        results |= here
        begun |= without
    lacking = begun - {file.parent for file in results}
    return sorted(results), [RunFolder(folder) for folder in sorted(lacking)]


def _results_and_begun(path: Path) -> tuple[set[Path], set[Path]]:
    """Results below a folder, and folders of runs that were begun, without exported models."""
    results, begun = set[Path](), set[Path]()
    for file in _below(path):
        if _is_result(file):
            results.add(file)
        elif file.name in _BEGUN and file.is_file() and not _is_model(RunFolder(file.parent)):
            begun.add(file.parent)
    return results, begun


def _is_result(path: Path) -> bool:
    is_named = path.name.endswith("result.json") and not path.name.startswith(".")
    # A link in someone else's folder may point to any of the reader's files.
    return is_named and path.is_file() and not path.is_symlink()


def _below(path: Path) -> Iterator[Path]:
    """Everything below a folder, in no order; links and unreadable folders are not entered."""
    waiting = [path]
    while waiting:
        with suppress(OSError):
            for entry in waiting.pop().iterdir():
                yield entry
                if entry.is_dir() and not entry.is_symlink():
                    waiting.append(entry)


def claimed(folder: RunFolder) -> AbstractContextManager[None]:
    """Keep other processes from training in a run folder.

    Raises:
        BusyError: another one does.
        InputError: the folder cannot be written.
    """
    return locked(
        folder.path / ".lock",
        f"another process is training run {folder.path}; wait for its end",
        advice=RUNS_ELSEWHERE,
    )


def claimed_for_scoring(folder: RunFolder) -> AbstractContextManager[None]:
    """Keep other `eval`s from a run; training, which may score it meanwhile, goes on.

    Raises:
        BusyError: another one does.
        InputError: the folder cannot be written.
    """
    return locked(
        folder.path / ".scoring.lock",
        f"another process is scoring run {folder.path}; wait for its end",
        advice="score a copy of the run in another folder",
    )
