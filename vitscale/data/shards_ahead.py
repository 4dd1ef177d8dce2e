"""Fetch remote shards into the node's cache before they are wanted: those that come next for a rank, a few and no more."""

import logging
from collections.abc import Iterator
from threading import Condition, Thread

import numpy as np
from numpy.typing import NDArray

from vitscale.data.reader import ShardReader

log = logging.getLogger(__name__)
_MOST = 2           # shards that were fetched and that no plan wants yet
_FAR = 1 << 12      # plans looked ahead at most; a lane is through with a shard of 10,000 samples after 10,000 at the latest


class ShardsAhead:
    """Follows the plans of a rank in a thread of its own: as soon as fewer than two shards wait, the next one is fetched that no plan under
    way wants.  What fails is tried again by whoever wants that shard, and told only then.
    """

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self._state = Condition()
        self._wants: Iterator[tuple[int, int]] = iter(())       # (plan, shard)
        self._looked, self._reached = 0, -1         # the plan up to which `_wants` was gone through; the last one under way
        self._waiting: dict[int, tuple[int, object]] = {}       # shard -> the plan that will want it, what keeps it in the cache
        self._over = self._closed = False
        self._thread: Thread | None = None

    def follow(self, shards: Iterator[NDArray[np.int64]]) -> None:
        """From now on: the shards of each plan, in the order of the plans.  The thread goes through them, so they may share nothing."""
        with self._state:
            self._wants = ((plan, shard) for plan, some in enumerate(shards) for shard in np.unique(some).tolist())
            self._looked, self._reached, self._over = 0, -1, False
            self._waiting.clear()

    def reached(self, plan: int) -> None:
        """The plans up to this one, counted from 0, are under way."""
        with self._state:
            self._reached = plan
            self._waiting = {shard: entry for shard, entry in self._waiting.items() if entry[0] > plan}
            if self._thread is None:
                self._thread = Thread(target=self._run, name="shards-ahead", daemon=True)
                self._thread.start()
            self._state.notify()

    def close(self) -> None:
        """End the thread; the reader's `stopping` ends what it waits for."""
        with self._state:
            self._closed = True
            self._state.notify()
        if self._thread:
            self._thread.join()
        self._waiting.clear()

    def _run(self) -> None:
        while True:
            with self._state:
                while not self._closed and (self._over or len(self._waiting) >= _MOST or self._looked - self._reached > _FAR):
                    self._state.wait()
                if self._closed:
                    return
                wants = self._wants
            found = next(wants, None)               # takes its time, and nobody has to wait for it
            with self._state:
                if wants is not self._wants:        # other plans are followed by now
                    continue
                if found is None:
                    self._over = True
                    continue
                plan, shard = found
                self._looked = plan
                if plan <= self._reached or shard in self._waiting or self.reader.is_open(shard):
                    continue
                self._waiting[shard] = plan, None
            try:
                kept = self.reader.fetch(shard)
            except Exception as error:              # whatever it is, it is nobody's trouble yet
                log.debug("%s was not fetched ahead: %s", self.reader.index.paths[shard], error)
                continue
            with self._state:
                if self._waiting.get(shard) == (plan, None):
                    self._waiting[shard] = plan, kept
            del kept
