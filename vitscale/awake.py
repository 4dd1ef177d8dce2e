"""Time in which this process could run.  A process that is stopped and continued, or a machine that sleeps, has not been slow."""

import time


class Awake:
    """A clock for whoever looks again and again: of the time between two looks at most `longest_s` counts.

    SIGSTOP and SIGCONT, `scontrol suspend`, Ctrl-Z and `fg`, a frozen container: time.monotonic() goes on meanwhile, and every deadline
    by it is over at the moment of waking up, though nothing was late.  Nobody tells a process that it was stopped; but it did not look.
    """

    def __init__(self, longest_s: float) -> None:
        """`longest_s`: more than usually lies between two looks, also on a machine under load; a suspension counts as that much."""
        self.longest_s = longest_s
        self._last_s = time.monotonic()
        self.seconds = 0.0          # at the last look

    def look(self) -> float:
        """Seconds since this clock was made, without those in which the process was suspended."""
        now_s = time.monotonic()
        self.seconds += min(now_s - self._last_s, self.longest_s)
        self._last_s = now_s
        return self.seconds
