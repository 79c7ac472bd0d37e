"""Curves of `metrics.jsonl`, and the seconds that `timing.jsonl` adds up to."""

import math
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tql_offline.documents import MAX_KEY
from tql_offline.eval.record_files import MAX_NUMBERS, Reading, count, number, read_lines

MAX_CURVES = 500

LAYERED = tuple(
    of + name for of in ("", "value_") for name in ("entropy", "entropy_target", "temperature")
)
"""Metrics with one pair per layer, the [VALUE] query's number and the other queries'; of the
critic, and of V if it is a transformer."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A logged number over training: `values[i]` (NaN where it was not finite) at `steps[i]`."""

    steps: Sequence[int]
    values: Sequence[float]


def read_curves(
    path: Path, reading: Reading, wanted: Collection[str] | None
) -> tuple[dict[str, Curve], int]:
    """Logged numbers by name, and the last step; of a step that is repeated, the later line wins.

    A resumed run repeats steps.
    """
    points: dict[str, dict[int, float]] = {}
    left, last = MAX_NUMBERS, 0
    for line_number, line in read_lines(path, reading):
        step = count(line.get("step"))
        if step is None:
            reading.warn(f"{path.name} line {line_number} has no count 'step' and was left out")
            continue
        last = max(last, step)
        for name, value in _numbers(line, wanted):
            if name in points or len(points) < MAX_CURVES:
                points.setdefault(name, {})[step] = value
        left -= len(line)
        if left < 0:
            reading.warn(f"{path.name} is too long; what follows line {line_number} was left out")
            break
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # most curves have the same steps
    return {name: _curve(points[name], shared) for name in sorted(points)}, last


def read_seconds(path: Path, reading: Reading) -> float:
    """Seconds spent in updates; of a step that a resumed run repeats, the later line wins.

    Updates between a line and a stop were not timed: they are counted at the rate of the rest.
    """
    spent: dict[int, tuple[float, float]] = {}
    for _, line in read_lines(path, reading):
        seconds, rate = number(line.get("seconds")), number(line.get("updates_per_second"))
        spent[count(line.get("step")) or 0] = seconds, seconds * rate
        if len(spent) > MAX_NUMBERS:
            return math.nan
    if not spent:
        return math.nan
    seconds = math.fsum(seconds for seconds, _ in spent.values())
    timed = math.fsum(updates for _, updates in spent.values())
    return seconds * max(spent) / timed if timed > 0 else seconds


def _numbers(line: dict[str, Any], wanted: Collection[str] | None) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if wanted is not None and key not in wanted:
            continue
        if key in LAYERED and isinstance(value, list):
            yield from _layer_numbers(key, value)
        elif key != "step" and (value is None or isinstance(value, int | float)):
            yield key[:MAX_KEY], number(value)


def _layer_numbers(key: str, layers: list[Any]) -> Iterator[tuple[str, float]]:
    for layer, groups in enumerate(layers):
        if isinstance(groups, list) and len(groups) == 2:
            for group, value in enumerate(groups):
                yield f"{key}/{layer}/{group}", number(value)


def _curve(points: dict[int, float], shared: dict[tuple[int, ...], tuple[int, ...]]) -> Curve:
    steps = tuple(sorted(points))
    values = array("d", [points[step] for step in steps])  # a quarter of a tuple's memory
    return Curve(steps=shared.setdefault(steps, steps), values=values)
