"""A request to stop in good order: TERM (preemption) and USR2 (the time limit is near) set a flag that the step boundary reads."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType

log = logging.getLogger(__name__)
STOPPING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class StopFlag:
    """Set by a signal.  The second interrupt from a keyboard ends the program at once."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name


@contextlib.contextmanager
def listening() -> Iterator[StopFlag]:
    """A StopFlag fed by signals for the length of a `with` block.  Main thread only."""
    flag = StopFlag()
    previous = {number: signal.signal(number, flag._receive) for number in STOPPING}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
