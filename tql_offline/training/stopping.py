"""Stopping a run cleanly: Ctrl-C and the signals that end a job as requests."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers

SAME_STOP_SECONDS = 2.0
ENDING = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # the last as clusters are often told to
    if hasattr(signal, name)
]
ENDS_WITH_INPUT = "TQL_OFFLINE_ENDS_WITH_INPUT"
"""Set where standard input is a pipe whose other end the starting program holds."""
CAN_END_WITH_INPUT = os.name == "posix"
"""Whether a run that does so leaves a checkpoint: elsewhere `os.kill` ends a process at once."""


class Stopped(Exception):  # noqa: N818 - it is not an error
    """A run was stopped cleanly: its checkpoint is written."""


class Stop:
    """A request to stop by one of `ENDING`, honoured where weights and metrics are consistent.

    An update is finished first; an evaluation, which changes no weights, is abandoned at once, and
    so is everything at a second request. One stop may arrive as two signals: a terminal's Ctrl-C
    reaches a sweep and its runs, and a cluster ends all processes of a job, upon which the sweep
    ends its runs. So what follows within `SAME_STOP_SECONDS` is the same request.
    """

    def __init__(self) -> None:
        self.requested = False
        self.at_once = False
        self._first = 0.0

    def request(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Note the request; the signature is that of a signal handler.

        Raises:
            KeyboardInterrupt: the request need not wait.
        """
        del number, frame
        if self.requested and time.monotonic() < self._first + SAME_STOP_SECONDS:
            return
        forced, self.requested = self.at_once or self.requested, True
        self._first = time.monotonic()
        if forced:
            raise KeyboardInterrupt

    def handling(self) -> AbstractContextManager[None]:
        """Treat `ENDING` as requests while a block runs, in the main thread."""
        # nohup ignores SIGHUP, which then stays so; shells let background jobs ignore SIGINT.
        always = (signal.SIGINT, signal.SIGTERM)
        heard = (n for n in ENDING if n in always or signal.getsignal(n) is not signal.SIG_IGN)
        return handled(heard, self.request)


@contextmanager
def handled(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Have signals handled while the block runs, if it does so in the main thread, as it must."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_with_input() -> None:
    """Where `ENDS_WITH_INPUT` is set, end as by SIGTERM once the program that started this is gone.

    Its end of the pipe is closed even if it was killed.
    """
    if os.environ.pop(ENDS_WITH_INPUT, ""):
        threading.Thread(target=_end_after_input, daemon=True).start()


def _end_after_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
