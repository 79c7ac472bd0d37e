"""Commands that outlive their output: a closed pipe or a terminal that is gone ends no run.

A terminal that closes also sends SIGHUP, which stops a run, unless `nohup` has it ignored.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import typer

_GOES_ON = (
    "tql-offline: the output was closed; training goes on without it, and Ctrl-C stops it with a "
    "checkpoint"
)


@contextmanager
def outliving_output() -> Iterator[None]:
    """Let a block, or a function that this decorates, go on when nobody reads its output any more.

    `train | head` leaves a whole run, as under `nohup`; standard error says so. Other commands end.
    """
    output, errors = sys.stdout, sys.stderr
    if errors is not None:  # as it is without a console, on Windows
        sys.stderr = cast(TextIO, _Lasting(errors, lambda: None))
    if output is not None:
        sys.stdout = cast(TextIO, _Lasting(output, lambda: typer.echo(_GOES_ON, err=True)))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = output, errors


class _Lasting:
    """A stream that discards what is written to it once nobody reads it."""

    def __init__(self, stream: TextIO, when_gone: Callable[[], object]) -> None:
        self._stream, self._when_gone = stream, when_gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if anybody reads it."""
        with self._outliving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if anybody reads it."""
        with self._outliving():
            self._stream.flush()

    @contextmanager
    def _outliving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_gone(error):
                raise
            self._discard()
            self._when_gone()

    def _is_gone(self, error: OSError) -> bool:
        """Whether nobody reads: a pipe is closed, a terminal gone. A disk that fails is neither."""
        if error.errno != errno.EIO:
            return error.errno == errno.EPIPE
        try:
            return stat.S_ISCHR(os.fstat(self._stream.fileno()).st_mode)
        except OSError:  # a stand-in without a file
            return False

    def _discard(self) -> None:
        """Send all that follows, and what is still buffered, to nowhere."""
        with suppress(OSError):  # a stand-in without a file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
