"""Which settings of one's own a method reads, to name those that it was given in vain."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import PrivateAttr

from tql_offline.config import Config, OwnConfig
from tql_offline.errors import did_you_mean, listed

_MAX_NAMED = 6
"""Most settings that a sentence lists."""


class WatchedOwn(OwnConfig):
    """Settings of one's own with the same values, which remembers what was asked for.

    Compiled code asks unseen, since a compiler follows no such memory.
    """

    _asked: set[str] = PrivateAttr(default_factory=set)

    @property
    def unread(self) -> tuple[str, ...]:
        """The settings that were given and never asked for."""
        return tuple(name for name in self.__pydantic_extra__ or () if name not in self._asked)

    @property
    def asked(self) -> tuple[str, ...]:
        """What was asked for, given or not."""
        return tuple(sorted(self._asked))

    @property
    def missed(self) -> tuple[str, ...]:
        """What was asked for and not given."""
        return tuple(name for name in self.asked if name not in (self.__pydantic_extra__ or ()))

    def forget(self) -> None:
        """Take nothing as asked for."""
        self._asked.clear()

    def __getitem__(self, name: str) -> Any:
        """A setting's value."""
        self._ask(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any) -> Any:
        """A setting's value, or `default` if it was not given."""
        self._ask(name)
        return super().get(name, default)

    if not TYPE_CHECKING:  # so that mypy still knows what is no attribute

        def __getattr__(self, name: str) -> Any:
            """`own.beta`, which pydantic allows."""
            value = super().__getattr__(name)
            if name in (self.__pydantic_extra__ or ()):
                self._ask(name)
            return value

    # Who takes them all may read any.

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that were given."""
        self._ask_all()
        return super().names

    @property
    def model_extra(self) -> dict[str, Any] | None:
        """The settings by name."""
        self._ask_all()
        return super().model_extra

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The settings by name."""
        self._ask_all()
        return super().model_dump(**options)

    def __iter__(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]  # as pydantic's own
        """Yield the settings, as `dict(own)` takes them."""
        self._ask_all()
        return super().__iter__()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself, which is frozen, so that what is asked of a copy is remembered here."""
        return self

    # What was asked for makes no two of them differ.

    def __eq__(self, other: object) -> bool:
        """Whether the settings are the same."""
        return isinstance(other, OwnConfig) and self.__pydantic_extra__ == other.__pydantic_extra__

    def __hash__(self) -> int:
        """As of the settings."""
        return super().__hash__()

    def _ask(self, name: str) -> None:
        if not torch.compiler.is_compiling():
            self._asked.add(name)

    def _ask_all(self) -> None:
        if not torch.compiler.is_compiling():
            self._asked.update(self.__pydantic_extra__ or ())


def watched(config: Config) -> Config:
    """The same settings; those of one's own remember what is asked for."""
    own = WatchedOwn(**(config.own.__pydantic_extra__ or {}))
    own.forget()  # its own checks
    return config.model_copy(update={"own": own})


def unread_notes(config: Config, updates: int) -> Iterator[str]:
    """A note for each setting of one's own that was given and not read, with what was meant.

    Args:
        config: as `watched` returns it.
        updates: how many were done since.
    """
    own = config.own
    if not isinstance(own, WatchedOwn):
        return
    done = "its first update" if updates == 1 else f"its first {updates} updates"
    for name in own.unread:
        reads = listed([f"own.{other}" for other in own.asked], _MAX_NAMED)
        near = did_you_mean(name, own.missed, prefix="own.")
        advice = near or f"it has read {reads or 'none'}"
        yield f"note: {config.objective} has not read own.{name} by the end of {done}; {advice}"
