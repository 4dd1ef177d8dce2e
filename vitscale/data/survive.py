"""The commands that look through whole sets outlive a library that falls over a sample: the work is done in a process of its own, and when
that dies by a signal of its own making, the next one passes the sample over and names it.

Each sample stands, while a library has its bytes, in memory that both processes share.  A sample that stood there when a process died is
tried in yet another process before it is touched again; one that dies there too is refused.  What no trial shows (memory that was damaged
before, a fault of something other than decoding) is found by one thread alone, the second time it happens.
"""

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import NamedTuple

from vitscale.data.bad import BadSample
from vitscale.data.under_way import OWN_SIGNALS, SLOTS, Slots, kills, left_in
from vitscale.errors import EXIT_FAILED, EXIT_WRONG_INPUT

_TEXT = 900                                 # bytes of where a sample lies
_SLOT = struct.Struct(f"<BQQ{_TEXT}s")      # busy, bytes, sum of them, "shard\0key"
_MOST = 200                                 # deaths of one command


class _Sample(NamedTuple):
    size: int
    sum: int
    shard: str
    key: str        # "": the shard itself is being read

    @property
    def words(self) -> str:
        return f"sample {self.key!r} of {self.shard}" if self.key else self.shard


@dataclass
class _Watch:
    """What the two processes know; the first alone changes all but `slots`."""

    slots: Slots = field(default_factory=lambda: Slots(mmap.mmap(-1, SLOTS * _SLOT.size), _SLOT))
    refused: dict[tuple[int, int], str] = field(default_factory=dict)       # (bytes, sum) -> the signal's name
    doubtful: dict[tuple[int, int], str] = field(default_factory=dict)
    alone: bool = False                                                     # with one thread


_watch: _Watch | None = None


def survive() -> int | None:
    """Called before such a command does anything: None in the process that is to do its work, which may be one after another; in the
    first one the exit code, when the work is done or given up."""
    global _watch
    watch = _watch = _Watch()
    for _ in range(_MOST):
        code = _work(watch)
        if code is None or code >= 0:
            return code
        if -code not in OWN_SIGNALS:
            return 128 - code
        died, under_way = signal.Signals(-code).name, _under_way(watch)
        named = ", ".join(one.words for one in under_way[:8]) or "nothing that is known"
        if not under_way or any(not one.key for one in under_way):
            print(f"vitscale: the process died by {died} with {named} under way", file=sys.stderr)
            return EXIT_WRONG_INPUT if under_way else EXIT_FAILED
        print(f"vitscale: a library fell ({died}) with {named} under way; starting again", file=sys.stderr)
        if len(under_way) == 1 and (watch.alone or under_way[0][:2] in watch.doubtful):
            watch.refused[under_way[0][:2]] = died
            continue
        watch.alone |= all(one[:2] in watch.doubtful for one in under_way)
        watch.doubtful.update((one[:2], died) for one in under_way)
    print(f"vitscale: given up after {_MOST} deaths of the process, the last with {named} under way", file=sys.stderr)
    return EXIT_WRONG_INPUT


def _work(watch: _Watch) -> int | None:
    """None in the process that works; its exit code, or minus the signal that it died by, in the other."""
    parent = os.getpid()
    watch.slots.memory[:] = bytes(len(watch.slots.memory))
    pid = os.fork()
    if not pid:
        _end_with(parent)
        return None

    def pass_on(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, (lambda number, frame: None) if _has_terminal() else pass_on)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    """Whether Ctrl-C reaches both processes."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _end_with(parent: int) -> None:
    """Let this process be killed when `parent` is, where the system can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(EXIT_FAILED)


def _under_way(watch: _Watch) -> list[_Sample]:
    found = []
    for size, total, text in left_in(watch.slots.memory, _SLOT):
        shard, _, key = text.rstrip(b"\0").decode(errors="replace").partition("\0")
        found.append(_Sample(size, total, shard, key))
    return found


# In the process that works.


def threads(wanted: int) -> int:
    """So many, or one if it must be found out over what libraries fall."""
    return 1 if _watch is not None and _watch.alone else wanted


@contextlib.contextmanager
def looking_at(shard: str, key: str, data: bytes) -> Iterator[None]:
    """Around all that libraries do with a sample whose image is `data`.  Raises BadSample for one that they fall over.  For any thread."""
    if _watch is None:
        yield
        return
    from vitscale.data.decoded_before import sum_of

    found = sum_of(data)
    _refuse(_watch, data, found)
    with _noted(_watch, shard, key, len(data), found):
        yield


class StreamWatch:
    """The same for a stream's samples: what data/loader.py takes as its `crumbs`."""

    def __init__(self, paths: Sequence[str], key_of: Callable[[int, int], str]) -> None:
        """Of the shards' paths and a sample's shard and number."""
        self._paths, self._key_of, self._thread = paths, key_of, threading.local()

    def refuse(self, data: bytes, found: int) -> None:
        self._thread.this = len(data), found        # of the sample that this thread decodes next
        if _watch is not None:
            _refuse(_watch, data, found)

    def decoding(self, split: int, shard: int, number: int, offset: int, size: int, sound: bool,
                 draws: Sequence[float]) -> AbstractContextManager[None]:
        if _watch is None:
            return contextlib.nullcontext()
        return _noted(_watch, self._paths[shard], self._key_of(shard, number), *self._thread.this)


def _noted(watch: _Watch, shard: str, key: str, size: int, found: int) -> AbstractContextManager[None]:
    return watch.slots.holding(size, found, f"{shard[-_TEXT // 2:]}\0{key}".encode()[:_TEXT])


def _refuse(watch: _Watch, data: bytes, found: int) -> None:
    this = len(data), found
    died = watch.refused.get(this)
    if died is None and this in watch.doubtful and kills(data, None):
        died = watch.refused[this] = watch.doubtful[this]
    if died is not None:
        raise BadSample("crash", f"crashes the library that is given it ({died})")
