"""Fetch micro-batches ahead of whoever consumes them: by threads, in order, so many and no more."""

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitscale.data.batch import Fetcher, MicroBatch, ReadReport, SamplePlan
from vitscale.data.shards_ahead import ShardsAhead
from vitscale.errors import EXIT_REQUEUE, DataError

OnBad = Callable[[dict[str, Any]], None]
_CHUNK = 16         # samples of one task at most: enough to drown its overhead, few enough to spread over the threads


class Ahead:
    """`take()` gives the micro-batches of a plan in its order, while up to `depth` of those after it are being fetched.

    Threads, not processes: decoding leaves Python's lock, and nothing has to be copied between them.  Bad samples are counted when they
    are handed out, so the count does not depend on how far ahead the threads are.

    on_request: take() leaves it to peek() to have further ones begun.  What many threads do around decoding takes Python's lock from a host
    that is handing its work to a GPU; once it has, it would only wait.
    """

    def __init__(
        self, fetcher: Fetcher, *, workers: int, depth: int, pin: bool, max_bad_fraction: float, on_bad: OnBad | None,
        on_request: bool = False,
    ) -> None:
        self.fetcher, self.workers, self.depth, self.pin = fetcher, workers, depth, pin
        self._on_request = on_request
        self.max_bad_fraction, self.on_bad = max_bad_fraction, on_bad
        self.fetched = 0                            # tasks that the threads have ended: it grows as long as reading gets on
        self.read = 0                               # samples handed out, replaced and masked ones included
        self.bytes = 0                              # of their image files
        self.skipped: Counter[str] = Counter()      # bad ones among them, by reason
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._plans: Iterator[SamplePlan] = iter(())
        self._shards = ShardsAhead(fetcher.reader) if fetcher.reader.caches else None
        self._made = 0                              # plans that are or were under way
        self._queue: deque[tuple[MicroBatch, list[Future[ReadReport]]]] = deque()

    @property
    def wants_shards(self) -> bool:
        """Whether it is of use to give follow() the shards."""
        return self._shards is not None

    def follow(self, plans: Iterator[SamplePlan], shards: Iterator[NDArray[np.int64]]) -> None:
        """Forget what is under way and follow these plans from now on.  shards: of each of them, as ShardsAhead takes them."""
        for _, tasks in self._queue:
            for task in tasks:
                task.cancel()
        self._queue.clear()
        self._plans, self._made = plans, 0
        if self._shards:
            self._shards.follow(shards)

    @property
    def ready(self) -> int:
        """How many of the next micro-batches could be taken without waiting, at most `depth`."""
        return sum(1 for _ in itertools.takewhile(lambda entry: all(task.done() for task in entry[1]), self._queue))

    def take(self) -> MicroBatch | None:
        """The next micro-batch, waited for; None after the last plan.  Raises what a thread raised, and DataError past max_bad_fraction."""
        if not (self._on_request and self._queue):
            self._top_up()
        if not self._queue:
            return None
        micro, tasks = self._queue.popleft()
        for task in tasks:
            self._book(task.result())
        if not self._on_request:
            self._top_up()
        if self._shards:            # only now, so that what is wanted at once comes first
            self._shards.reached(self._made - 1)
        return micro

    def peek(self) -> MicroBatch | None:
        """Begin further ones; what take() gives next, if it is there by now and nothing went wrong with it."""
        self._top_up()
        if not self._queue:
            return None
        micro, tasks = self._queue[0]
        return micro if all(task.done() and task.exception() is None for task in tasks) else None

    def close(self) -> None:
        """End the threads; a sample being decoded is finished, none is begun."""
        self.fetcher.stopping.set()
        self._queue.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._shards:
            self._shards.close()
        self.fetcher.reader.close()

    def _top_up(self) -> None:
        while len(self._queue) < self.depth:
            plan = next(self._plans, None)
            if plan is None:
                return
            self._made += 1
            fetcher, group = self.fetcher, self.fetcher.group
            micro = plan.allocate(fetcher.channels, self.pin, fetcher.targets, fetcher.mask is not None)
            chunk = min(_CHUNK, math.ceil(plan.size / self.workers))
            chunk = max(math.ceil(chunk / group), 1) * group
            count = len(plan.ids)
            tasks = [self._pool.submit(fetcher.fill, plan, micro, low, min(low + chunk, count)) for low in range(0, count, chunk)]
            for task in tasks:
                task.add_done_callback(self._fetched)
            self._queue.append((micro, tasks))

    def _fetched(self, task: Future[ReadReport]) -> None:
        self.fetched += 1

    def _book(self, report: ReadReport) -> None:
        self.read += report.read
        self.bytes += report.bytes
        for bad in report.bad:
            self.skipped[bad["reason"]] += 1
            if self.on_bad:
                self.on_bad(bad)
        if report.bad and too_many_bad(self.skipped.total(), self.read, self.max_bad_fraction):
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.most_common())
            last = report.bad[-1]
            away = 2 * self.skipped["storage"] > self.skipped.total()
            kind, remedy = (StorageLost, "see to the storage, then run the same command again") if away else (
                DataError, "mend the shards, or raise data.max_bad_fraction")
            raise kind(
                f"{self.skipped.total()} of {self.read} samples could not be used ({reasons}), more than data.max_bad_fraction "
                f"{self.max_bad_fraction:g} allows; the last was '{last['key']}' in {last['shard']}: {last['detail']}; {remedy}"
            )


class StorageLost(DataError):
    """Too many samples could not be read because what they lie on failed: another attempt may find it well."""

    exit_code = EXIT_REQUEUE
    facts = MappingProxyType({"cause": "disk"})


def too_many_bad(bad: int, read: int, fraction: float) -> bool:
    """Whether `bad` of `read` samples show that more than `fraction` are bad.

    The expected count plus four standard deviations of a Poisson count plus one: so an early bad sample stops no run, and neither does
    chance on one rank of a thousand.  A fraction of 0 allows none.
    """
    if fraction == 0:
        return bad > 0
    expected = fraction * read
    return bad > expected + 4 * math.sqrt(expected) + 1
