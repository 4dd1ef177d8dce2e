"""A request to stop in good order, by any signal that a person or a system sends for it, sets a flag that the step boundary reads."""

import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from vitscale.errors import EXIT_REQUEUE
from vitscale.stopping import STOPPING, heard

log = logging.getLogger(__name__)
UNWIND_S = 3.0      # after the second interrupt, to close what is open


class StopFlag:
    """Set by a signal.  Before `begin()` there is nothing to save, and the process ends at once with EXIT_REQUEUE; `farewell`, if there is
    one, is called with the signal's name first.  After it the second interrupt from a keyboard ends the program at once: `cut_short` is
    true from then on, and `last_word`, if there is one, is called before what is open is closed."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.farewell: Callable[[str], None] | None = None
        self.last_word: Callable[[], None] | None = None
        self.cut_short = False
        self._begun = False
        self._said = threading.Event()

    def __bool__(self) -> bool:
        return self.reason is not None

    def begin(self) -> None:
        """From now on somebody reads this flag."""
        self._begun = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason is not None:
            if self._begun and self.last_word is not None:
                self._said.wait(UNWIND_S)       # unwinding closes what it needs; not for ever: this thread may hold a lock that it needs
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def _leave_early(self, pipe: int) -> None:
        """A thread of its own: the main one may be waiting for other ranks inside a library, where no handler of Python's runs."""
        asked = False
        while numbers := os.read(pipe, 1):
            if self._begun and asked and numbers[0] == signal.SIGINT and self.last_word is not None and not self.cut_short:
                self.cut_short = True
                try:
                    self.last_word()
                    self._said.set()
                    time.sleep(UNWIND_S)        # the main thread ends the program, unless it is stuck inside a library
                finally:
                    os._exit(EXIT_REQUEUE)
            asked = asked or numbers[0] in STOPPING
            if not self._begun and numbers[0] in STOPPING:
                sent = signal.Signals(numbers[0]).name
                log.info("asked to stop by %s before the first step", sent)
                try:
                    if self.farewell is not None:
                        self.farewell(sent)
                finally:
                    os._exit(EXIT_REQUEUE)
        os.close(pipe)


@contextlib.contextmanager
def listening() -> Iterator[StopFlag]:
    """A StopFlag fed by signals for the length of a `with` block.  Main thread only.

    After the block a request comes too late and is ignored: the program is about to end with an exit code of its own.
    """
    flag = StopFlag()
    numbers = heard()
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    threading.Thread(target=flag._leave_early, args=(ours,), name="signals", daemon=True).start()
    os.register_at_fork(after_in_child=functools.partial(_ignore, numbers))    # a request to a forked helper is none to us
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)     # the number of each signal is written there at once
    for number in numbers:
        signal.signal(number, flag._receive)
    try:
        yield flag
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        os.close(theirs)


def _ignore(numbers: Sequence[signal.Signals]) -> None:
    signal.set_wakeup_fd(-1)
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
