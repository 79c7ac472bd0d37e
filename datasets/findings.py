"""What is or looks wrong with data: one sentence each, found by readers and checks."""

from dataclasses import dataclass
from typing import Literal


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


def warnings_first(found: list[Finding]) -> list[Finding]:
    """Findings in their order, notes after warnings."""
    return sorted(found, key=lambda finding: finding.level == "note")
