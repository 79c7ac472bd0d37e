"""Where a run's progress goes."""

from dataclasses import dataclass
from typing import Any, Protocol


class Reporter(Protocol):
    """Where a run's progress goes; the command line draws it, a test may keep it."""

    def started(self, title: str, steps: int) -> None:
        """A stage of `steps` units begins."""
        ...

    def advanced(self, step: int, title: str = "training") -> None:
        """The stage with this title has reached `step`."""
        ...

    def logged(self, line: dict[str, Any], updates_per_second: float) -> None:
        """A line of metrics was written."""
        ...

    def evaluated(self, line: dict[str, Any]) -> None:
        """A policy was scored."""
        ...

    def noted(self, sentence: str) -> None:
        """There is something the user should know."""
        ...


class SilentReporter:
    """Reports nothing."""

    def started(self, title: str, steps: int) -> None:
        """Ignore."""

    def advanced(self, step: int, title: str = "training") -> None:
        """Ignore."""

    def logged(self, line: dict[str, Any], updates_per_second: float) -> None:
        """Ignore."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """Ignore."""

    def noted(self, sentence: str) -> None:
        """Ignore."""


@dataclass(frozen=True)
class SeedReporter:
    """Reports one of several seeds that train at once."""

    reporter: Reporter
    seed: int

    def started(self, title: str, steps: int) -> None:
        """A stage of this seed begins."""
        self.reporter.started(self._title(title), steps)

    def advanced(self, step: int, title: str = "training") -> None:
        """A stage of this seed has reached `step`."""
        self.reporter.advanced(step, self._title(title))

    def logged(self, line: dict[str, Any], updates_per_second: float) -> None:
        """A line of this seed's metrics was written."""
        self.reporter.logged({**line, "seed": self.seed}, updates_per_second)

    def evaluated(self, line: dict[str, Any]) -> None:
        """A policy of this seed was scored."""
        self.reporter.evaluated({**line, "seed": self.seed})

    def noted(self, sentence: str) -> None:
        """There is something the user should know about this seed."""
        self.reporter.noted(self._title(sentence))

    def _title(self, title: str) -> str:
        return f"seed {self.seed}: {title}"
