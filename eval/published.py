"""Scores that papers print, kept with their sources (`published/`)."""

import csv
import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """One printed score.

    Attributes:
        task: name of the dataset, task included.
        method: the paper's name of it.
        mean: mean success rate, in percent.
        sd: standard deviation over seeds, in percent.
        source: the paper.
        protocol: name of the protocol that it followed.
        note: what a reader must know to compare it.
    """

    task: str
    method: str
    mean: float
    sd: float
    source: str
    protocol: str
    note: str


@dataclass(frozen=True, kw_only=True)
class PublishedSize:
    """One printed point of score against size: mean over tasks, in percent.

    Attributes:
        called_here: name of the method in this package (`Config.method`).
        spread_like: the method whose deviations by task are scaled to stand in for this one's, as
            those are not printed by size.
        note: what the mean is over.
    """

    method: str
    called_here: str
    spread_like: str
    parameters: float
    mean: float
    sd: float
    source: str
    note: str


@functools.cache
def published_scores() -> tuple[Published, ...]:
    """Every printed score of a task, in the papers' order."""
    return tuple(
        Published(
            task=row["task"],
            method=row["method"],
            mean=float(row["success_mean_percent"]),
            sd=float(row["success_std_percent"]),
            source=table["source"],
            protocol=table["protocol"],
            note=table["note"],
        )
        for table, row in _rows("scores")
    )


@functools.cache
def published_sizes() -> tuple[PublishedSize, ...]:
    """Every printed mean over tasks by critic size."""
    return tuple(
        PublishedSize(
            method=row["method"],
            called_here=table["called_here"].get(row["method"], row["method"]),
            spread_like=table["spread_like"].get(row["method"], row["method"]),
            parameters=1e6 * float(row["critic_parameters_millions"]),
            mean=float(row["success_mean_percent"]),
            sd=float(row["success_std_percent"]),
            source=table["source"],
            note=table["note"],
        )
        for table, row in _rows("scaling")
    )


def published_tasks(source: str) -> set[str]:
    """The tasks of a paper's table."""
    return {score.task for score in published_scores() if score.source == source}


def task_deviations(point: PublishedSize) -> dict[str, float]:
    """Each task's standard deviation at a size, if the printed one is their mean.

    They are printed for only one size, and scaled in proportion at the others.
    """
    printed = {
        score.task: score.sd
        for score in published_scores()
        if (score.source, score.method) == (point.source, point.spread_like)
    }
    mean = sum(printed.values()) / len(printed)
    return {task: point.sd * sd / mean for task, sd in printed.items()}


def _rows(kind: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    folder: Traversable = resources.files(__package__).joinpath("published")
    tables = tomllib.loads(folder.joinpath("sources.toml").read_text(encoding="utf-8"))["table"]
    for table in tables:
        if table["kind"] == kind:
            text = folder.joinpath(table["file"]).read_text(encoding="utf-8")
            yield from ((table, row) for row in csv.DictReader(text.splitlines()))
