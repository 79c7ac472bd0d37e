"""Metrics that stay on the device until a log step."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tql_offline.errors import InputError

DIGITS = 7
"""Significant digits written, of the six to nine that float32 holds."""


class MetricsWindow:
    """Running sums of metrics, each averaged over the updates since the last log step that gave it.

    A delayed policy gives its metrics only in every other update.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one update's metrics without leaving the device."""
        self._add(metrics, dict.fromkeys(metrics, 1))

    def merge(self, other: "MetricsWindow") -> None:
        """Add all that another window holds, leaving that one unchanged."""
        self._add(other._sums, other._counts)

    def _add(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        known = [name for name in sums if name in self._sums]
        if known:
            torch._foreach_add_([self._sums[n] for n in known], [sums[n] for n in known])
        self._sums |= {n: value.clone() for n, value in sums.items() if n not in self._sums}
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def tensors(self) -> dict[str, Tensor]:
        """All sums and counts by name, for a checkpoint."""
        counts = {f"count.{name}": torch.tensor(count) for name, count in self._counts.items()}
        return {f"sum.{name}": value for name, value in self._sums.items()} | counts

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `tensors` of another window returned.

        Raises:
            KeyError: a sum has no count.
            ValueError: a sum is not finite or has more than two dims, or a count is not a positive
                int64 scalar.
        """
        sums = {k.removeprefix("sum."): v for k, v in tensors.items() if k.startswith("sum.")}
        self._counts = {name: _count(tensors[f"count.{name}"], name) for name in sums}
        for name, value in sums.items():
            if value.ndim > 2 or not torch.isfinite(value).all():
                raise ValueError(f"the sum of {name} is not finite or not a metric's")
        self._sums = {name: value.to(device) for name, value in sums.items()}

    def means(self) -> dict[str, Any]:
        """Means since the last flush as floats and nested lists, by name (a device sync)."""
        # Sorted, since a window that was restored has no order of its own.
        sums = sorted(self._sums.items())
        means = {name: (total / self._counts[name]).tolist() for name, total in sums}
        return {name: _round(value) for name, value in means.items()}

    def flush(self) -> dict[str, Any]:
        """Return the means and start a new window."""
        means = self.means()
        self._sums, self._counts = {}, {}
        return means


def _count(tensor: Tensor, name: str) -> int:
    if tensor.dtype != torch.int64 or tensor.shape != () or tensor < 1:
        raise ValueError(f"the count of {name} is not a positive int64 scalar")
    return int(tensor)


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(item) for item in value]
    return float(f"{value:.{DIGITS}g}")


DIVERGED = "diverged"
"""What `EndedError.rule` is where a number is no longer finite."""


class EndedError(InputError):
    """A run that its own numbers ended; the command line takes it for bad input.

    Attributes:
        rule: `DIVERGED`, or the rule of `watch` that stopped it.
        step: the update by which it did.
        sentence: what holds of its numbers.
    """

    def __init__(self, message: str, *, rule: str, step: int, sentence: str) -> None:
        super().__init__(message)
        self.rule, self.step, self.sentence = rule, step, sentence

    def record(self) -> dict[str, Any]:
        """The contents of `ended.json`."""
        return {"step": self.step, "rule": self.rule, "sentence": self.sentence}


def check_finite(line: dict[str, Any], step: int, last_checkpoint: str, mend: str) -> None:
    """Stop a run whose losses are no longer finite.

    Raises:
        EndedError: names the metric, a loss before others, the step and the last good checkpoint.
    """
    for name in sorted(line, key=lambda name: not name.endswith("loss")):
        for number in _numbers(line[name]):
            if not math.isfinite(number):
                raise divergence_error(f"{name} became {number}", step, last_checkpoint, mend)


def _numbers(value: Any) -> Iterator[float]:
    """A metric's numbers: itself, or those of nested lists."""
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    else:
        yield value


def divergence_error(what: str, step: int, last_checkpoint: str, mend: str) -> EndedError:
    """The error of a run that cannot go on; `last_checkpoint` is empty if there is none."""
    message = f"{what} by update {step}; {checkpoint_told(last_checkpoint)}, so {mend}"
    return EndedError(message, rule=DIVERGED, step=step, sentence=what)


def checkpoint_told(last: str) -> str:
    """What a stopped run leaves: its last good checkpoint, or none where `last` is empty."""
    return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
