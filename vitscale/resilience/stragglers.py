"""Which ranks are slower than the others, step after step, before they are dead.  Pure: takes times, gives names."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_TINY_S = 1e-6


@dataclass(frozen=True)
class Notice:
    """What is to be said of one rank."""

    rank: int
    kind: Literal["slow", "still slow", "recovered"]
    own_s: float        # median of its own time over the window
    others_s: float     # median of that of the other ranks
    ratio: float


class Stragglers:
    """A rank is slow if the median of its own times over `window` looks is more than `ratio` times the median of the other ranks', and
    what it takes longer is more than `share` of the step: times of no account differ many times over without costing anything.

    Medians on both sides: one long wait is no straggler, and neither are the others when one is slow.  It has recovered when one of the
    excesses has fallen by half.  Either is said once it has been so for `after_s` seconds without a break, and that a rank is still slow
    every `again_s` seconds.
    """

    def __init__(self, ratio: float, *, share: float = 0.05, window: int = 10, after_s: float = 5.0, again_s: float = 1800.0) -> None:
        self.ratio, self.share, self.after_s, self.again_s = ratio, share, after_s, again_s
        self._own: deque[NDArray[np.float64]] = deque(maxlen=window)
        self._steps: deque[float] = deque(maxlen=window)
        self._said_s: dict[int, float] = {}     # ranks that were said to be slow, and when
        self._since_s: dict[int, float] = {}    # ranks that seem to have become slow, or to have recovered, and since when

    def look(self, own_s: Sequence[float], step_s: float, now_s: float) -> list[Notice]:
        """Take in the seconds that each rank took by itself, and those of the step; returns what is new."""
        self._own.append(np.asarray(own_s, np.float64))
        self._steps.append(step_s)
        if len(self._own) < (self._own.maxlen or 0):
            return []
        own, others = self._medians()
        ratio, excess = own / others, (own - others) / max(float(np.median(self._steps)), _TINY_S)
        slow, well = (ratio > self.ratio) & (excess > self.share), (ratio < (1 + self.ratio) / 2) | (excess < self.share / 2)
        notices = []
        for rank in range(len(own)):
            said_s = self._said_s.get(rank)
            if not (slow if said_s is None else well)[rank]:
                self._since_s.pop(rank, None)
                if said_s is not None and now_s - said_s >= self.again_s:
                    self._said_s[rank] = now_s
                    notices.append(self._notice(rank, "still slow", own, others))
            elif now_s - self._since_s.setdefault(rank, now_s) >= self.after_s:
                del self._since_s[rank]
                if said_s is None:
                    self._said_s[rank] = now_s
                else:
                    del self._said_s[rank]
                notices.append(self._notice(rank, "slow" if said_s is None else "recovered", own, others))
        return notices

    @property
    def skew(self) -> float:
        """The slowest rank's own time over the median of the other ranks', 1 or more; 1 before the first look."""
        if not self._own:
            return 1.0
        own, others = self._medians()
        return max(float((own / others).max()), 1.0)

    @property
    def slowest(self) -> int:
        """The rank with the longest own time over the window."""
        return int(np.argmax(self._medians()[0]))

    def _medians(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of each rank over the window, and of all other ranks' such medians, which leaving one out hardly moves in a large world."""
        own = np.median(np.stack(self._own), axis=0)
        ranked = np.sort(own)
        place = np.searchsorted(ranked, own)
        size = len(own) - 1                     # of the others
        low, high = (size - 1) // 2, size // 2
        # without the one at `place`, everything from there on moves down by one
        return own, np.maximum((ranked[low + (place <= low)] + ranked[high + (place <= high)]) / 2, _TINY_S)

    def _notice(self, rank: int, kind: Literal["slow", "still slow", "recovered"], own: NDArray[np.float64],
                others: NDArray[np.float64]) -> Notice:
        return Notice(rank, kind, float(own[rank]), float(others[rank]), float(own[rank] / others[rank]))
