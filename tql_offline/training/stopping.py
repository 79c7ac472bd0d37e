"""Stopping a run cleanly: Ctrl-C and SIGTERM as requests."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818 - it is not an error
    """A run was stopped cleanly: its checkpoint is written."""


class Stop:
    """A request to stop by Ctrl-C or SIGTERM, honoured where weights and metrics are consistent.

    An update is finished first; an evaluation, which changes no weights, is abandoned at once, and
    so is everything at a second request.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False

    def request(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Note the request; the signature is that of a signal handler.

        Raises:
            KeyboardInterrupt: the request need not wait.
        """
        del number, frame
        forced, self.requested = self.at_once or self.requested, True
        if forced:
            raise KeyboardInterrupt

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Treat Ctrl-C and SIGTERM as requests while the block runs, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.signal(n, self.request) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
