"""The shards that a process holds open: one budget for all its streams, with a reserve of descriptors for everything else."""

import ctypes
import errno
import itertools
import mmap
import os
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from threading import Event, Lock
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitscale.errors import EXIT_REQUEUE, ClusterError
from vitscale.files import patiently

NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE})     # of this process, of the whole machine
PATIENCE_S = 20.0       # for others to give descriptors back
_MOST_ALLOWED = 1 << 16
_COUNT_EVERY = 64       # openings
_LEAST_HELD = 4         # shards that are kept in any case: where that is too many, an opening fails, and makes room
_MOST_HELD = 4096       # shards at once: a rank reads from as many as it has lanes, and from each for a long time
_LEAST_RESERVE, _MOST_RESERVE = 32, 512
_T = TypeVar("_T")


class OutOfDescriptors(ClusterError):
    """No file can be opened, and waiting did not help.  Another attempt may find a machine that is less busy."""

    exit_code = EXIT_REQUEUE


class Shard(Protocol):
    """What is held: `descriptor` is -1 for one without."""

    descriptor: int
    used_s: float


class Held:
    """The open shards of all readers of a process, by (owner, shard); the longest unused leave first.

    After every 64 openings it is counted how many descriptors the process has otherwise (sockets of an exchange, logs, checkpoints): shards
    may have what is allowed less these and less the reserve.
    """

    def __init__(self, allowed: int | None = None, reserve: int | None = None, most: int = _MOST_HELD) -> None:
        """`allowed`: descriptors of this process; None: as many as the system allows.  `reserve`: of those, what is left to everything
        but shards; None: a quarter, within bounds.  At most `most` shards are held."""
        self._allowed, self._reserve, self._most, self._room = allowed, reserve, most, most
        self._opened = 0
        self._shards: OrderedDict[tuple[int, int], Shard] = OrderedDict()
        self._owners = itertools.count()
        self._lock = Lock()

    def owner(self) -> int:
        """A number for one who holds shards here."""
        return next(self._owners)

    def get(self, key: tuple[int, int]) -> Any:
        """The shard, or None; it counts as used."""
        with self._lock:
            found = self._shards.get(key)
            if found is not None:
                self._shards.move_to_end(key)
            return found

    def put(self, key: tuple[int, int], shard: Shard) -> None:
        """Hold one that was just opened."""
        gone = []
        with self._lock:
            self._shards[key] = shard
            self._shards.move_to_end(key)
            if self._opened % _COUNT_EVERY == 0:
                self._room = min(max(self.allowed - self.reserve - self._others(), _LEAST_HELD), self._most)
            self._opened += 1
            while len(self._shards) > self._room:
                gone.append(self._shards.popitem(last=False))
        del gone            # closed here, outside of the lock

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._shards

    def __len__(self) -> int:
        return len(self._shards)

    def forget(self, owner: int, unused_since: float | None = None) -> None:
        """Let go of all of one owner, or of those that were last used before that, on the monotonic clock."""
        with self._lock:
            gone = [self._shards.pop(key) for key, shard in list(self._shards.items())
                    if key[0] == owner and (unused_since is None or shard.used_s < unused_since)]
        del gone            # closed here, outside of the lock

    def drop(self, key: tuple[int, int]) -> None:
        """Let go of one shard: a handle that has gone stale does not come back."""
        with self._lock:
            gone = self._shards.pop(key, None)
        del gone            # closed here, outside of the lock

    def room(self, act: Callable[[], _T], what: str, stopping: Event | None = None, patient: bool = True) -> _T:
        """What `act` gives, which opens files: where there is no descriptor left, shards are closed for it, and then others waited for.
        If `patient`, an error of the file system that may pass is waited for too (files.py).

        Raises OutOfDescriptors after PATIENCE_S, and whatever else `act` raises at once.
        """
        until_s, wait_s = None, 0.005
        while True:
            try:
                return patiently(what, act) if patient else act()
            except OSError as error:
                if error.errno not in NONE_LEFT:
                    raise
                now_s = time.monotonic()
                until_s = until_s or now_s + PATIENCE_S
                if now_s > until_s or (stopping is not None and stopping.is_set()):
                    whose = "this process" if error.errno == errno.EMFILE else "this machine"
                    raise OutOfDescriptors(f"{what}: {error.strerror}: {whose} has no file descriptor left, although all shards but those "
                                           f"being read were closed; allow more (`ulimit -n`: {self.allowed})") from error
            if not self._halve():
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 0.5)

    def _halve(self) -> bool:
        with self._lock:
            gone = [self._shards.popitem(last=False) for _ in range(-(-len(self._shards) // 2))]
            self._opened = 0        # to be counted at once
        return bool(gone)

    def _others(self) -> int:
        """How many descriptors the process has for all else.  With the lock held."""
        try:
            return len(os.listdir("/dev/fd")) - sum(shard.descriptor >= 0 for shard in self._shards.values())
        except OSError:
            return _LEAST_RESERVE

    @property
    def allowed(self) -> int:
        """Descriptors that this process may have, after asking for as many as it can get."""
        if self._allowed is None:
            self._allowed = raise_limit()
        return self._allowed

    @property
    def reserve(self) -> int:
        """Of those, what is left to everything but shards."""
        return self._reserve if self._reserve is not None else min(max(self.allowed // 4, _LEAST_RESERVE), _MOST_RESERVE, self.allowed // 2)


def raise_limit() -> int:
    """Ask the system for as many descriptors as it allows, up to 65,536; returns how many there are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = _MOST_ALLOWED if hard == resource.RLIM_INFINITY else min(hard, _MOST_ALLOWED)
    if soft != resource.RLIM_INFINITY and soft < want:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))
            soft = want
        except (OSError, ValueError):       # not in every container; then it stays at what it is
            pass
    return _MOST_ALLOWED if soft == resource.RLIM_INFINITY else soft


HELD = Held()


class _Map:
    """Pages of a file, as numpy sees memory.  Unlike Python's own mmap (before 3.13) it keeps no descriptor."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._address: int | None = None
        libc = _libc()
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address in (None, ctypes.c_void_p(-1).value):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._address, self._size, self._unmap = address, size, libc.munmap
        self.__array_interface__ = {"version": 3, "data": (address, True), "shape": (size,), "typestr": "|u1"}

    def __del__(self) -> None:
        if self._address is not None:
            self._unmap(self._address, self._size)


def mapped(file: BinaryIO) -> NDArray[np.uint8]:
    """The bytes of a file, read when they are looked at; `file` may be closed.  Raises OSError; ValueError for an empty one."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise ValueError("an empty file")
    try:
        if sys.platform != "linux":
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        return np.asarray(_Map(file, size))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOMEM):     # a file system that maps nothing; too many maps
            raise
    file.seek(0)
    return np.frombuffer(file.read(), np.uint8)


@cache
def _libc() -> Any:
    """Whole when another thread sees it: a C function whose types are not told yet takes and gives addresses of 32 bits."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library
