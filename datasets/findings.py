"""What is or looks wrong with data: one sentence each, found by readers and checks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

SHOWN = 5
"""Number of findings of one kind that are listed one by one; the others are counted."""

FEW = 3
"""Number of ends of episodes from which on their being alike is no chance."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or looks wrong.

    Attributes:
        level: `warning` if the data cannot be intended as they are, `note` if they may be.
        kind: kind of finding, in one word.
        sentence: what is wrong, where, and the fix.
    """

    level: Literal["warning", "note"]
    kind: str
    sentence: str

    def __str__(self) -> str:
        """Format as `warning: ...`."""
        return f"{self.level}: {self.sentence}"


def noted(sentence: str) -> Finding:
    """A note on how data were read."""
    return Finding("note", "read", sentence)


def warnings_first(found: list[Finding]) -> list[Finding]:
    """Findings in their order, notes after warnings."""
    return sorted(found, key=lambda finding: finding.level == "note")


def limited(found: Iterator[Finding], count: int, what: str) -> Iterator[Finding]:
    """Yield the first findings of a kind, then how many more there are."""
    for number, finding in enumerate(found):
        if number == SHOWN:
            more = count - SHOWN
            yield Finding(finding.level, finding.kind, f"{more:,} more {what}, not listed here")
            return
        yield finding
