"""Metrics that stay on the device until a log step."""

import math
from typing import Any

import torch
from torch import Tensor

from tql_offline.errors import InputError

DECIMALS = 7
"""Significant digits written: more than float32 holds."""


class MetricsWindow:
    """Running sums of an update's metrics, averaged over the updates since the last log step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add one update's metrics without leaving the device."""
        if self._count == 0:
            self._sums = {name: value.clone() for name, value in metrics.items()}
        else:
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))
        self._count += 1

    def means(self) -> dict[str, Any]:
        """Means since the last flush as floats and nested lists (a device sync)."""
        means = {name: (value / self._count).tolist() for name, value in self._sums.items()}
        return {name: _round(value) for name, value in means.items()}

    def flush(self) -> dict[str, Any]:
        """The means; what is added later counts anew."""
        means = self.means()
        self._sums, self._count = {}, 0
        return means


def _round(value: Any) -> Any:
    if isinstance(value, list):
        return [_round(item) for item in value]
    return float(f"{value:.{DECIMALS}g}")


def check_finite(line: dict[str, Any], step: int, last_checkpoint: str) -> None:
    """Stop a run whose losses are no longer numbers.

    Raises:
        InputError: names the metric, the step and the last good checkpoint.
    """
    for name, value in line.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise diverged(f"{name} became {value}", step, last_checkpoint)


def diverged(what: str, step: int, last_checkpoint: str) -> InputError:
    """The error of a run that cannot go on; `last_checkpoint` is empty where there is none."""
    last = f"is {last_checkpoint}" if last_checkpoint else "does not exist"
    return InputError(
        f"{what} by update {step}; the last good checkpoint {last}, "
        "so lower optimizer.critic_lr or raise batch_size"
    )
