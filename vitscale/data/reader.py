"""Read one sample's members out of its shard by their offsets.  Safe for many threads."""

import os
import time
from collections.abc import Collection
from contextlib import suppress
from threading import Event, Lock

from vitscale.data import remote
from vitscale.data.bad import BadSample
from vitscale.data.cache import ShardCache
from vitscale.data.descriptors import HELD, Held
from vitscale.data.index import SetIndex
from vitscale.files import passes, patiently

_AHEAD = 1 << 20    # bytes
_STEP = 1 << 12     # bytes: a header and padding
_STEPS = 8          # the members of one sample also follow each other, and a run in random order wants no more than them
READ_PATIENCE_S = 30.0      # for the file system of a shard to come back
_IDLE_S = 30        # a remote shard unused for so long is let go of, so that the cache may evict it


class _OpenShard:
    """An open shard.  Closes itself when nobody reads from it any more, so that dropping it from a cache cannot pull it from a thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.used_s = 0.0

    def __del__(self) -> None:
        os.close(self.descriptor)


class _Ranged:
    """A remote shard that the cache has no room for.  Reads ahead for whoever goes through it in file order."""

    descriptor = -1

    def __init__(self, url: str, facts: remote.ShardFacts, stopping: Event | None) -> None:
        self.url, self.facts, self.stopping = url, facts, stopping
        self.used_s = 0.0
        self._lock = Lock()
        self._start, self._bytes = 0, b""       # the last block that was read ahead
        self._end, self._steps = 0, 0           # where the last read ended; how many in a row began just there
        remote.same(url, remote.facts(url, stopping), facts)

    def read(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._steps = self._steps + 1 if 0 <= offset - self._end <= _STEP else 0
            self._end = offset + size
            here = offset - self._start
            if 0 <= here <= len(self._bytes) - size:
                return self._bytes[here:here + size]
            ahead = _AHEAD if self._steps >= _STEPS else 0
        data = remote.read(self.url, offset, min(max(size, ahead), self.facts.size - offset), self.facts, self.stopping)
        if ahead:
            with self._lock:
                self._start, self._bytes = offset, data
        return data[:size]


class ShardReader:
    """`read(shard, index)` -> the sample's members.  What was opened stays open among the process's `held` shards.

    cache: where remote shards are kept; None: their samples are read one by one.  stopping: once set, no server is waited for any more.
    """

    def __init__(self, index: SetIndex, cache: ShardCache | None = None, stopping: Event | None = None, held: Held = HELD) -> None:
        self.index, self.cache, self.stopping = index, cache, stopping
        self._held, self._owner = held, held.owner()
        self._failing: set[int] = set()         # shards whose file system did not come back in time
        self._away = any(map(remote.is_remote, index.urls))

    def read(self, shard: int, index: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """{extension: bytes} of one sample: those in `wanted` that it has, or all.

        Raises DataError for a shard that changed since it was indexed, BadSample("read" or "storage") for what cannot be read.
        """
        members = self.index.shard(shard).members(index)
        return {ext: self.pread(shard, offset, size) for ext, offset, size in members if wanted is None or ext in wanted}

    def pread(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of a shard.  Raises as read().

        What a file system fails at in a way that may pass is tried again, from opening the shard on; of a shard where that was in vain,
        only once until it can be read again.
        """
        file = None if self._away or self._failing else self._held.get((self._owner, shard))
        if file is not None:        # nearly always; what is not well is done, and told, below
            with suppress(OSError):
                data: bytes = os.pread(file.descriptor, size, offset)
                if len(data) == size:
                    return data
        try:
            if shard in self._failing:
                data = self._pread_once(shard, offset, size)
            else:
                data = patiently(self.index.paths[shard], lambda: self._pread_once(shard, offset, size), READ_PATIENCE_S)
        except OSError as error:
            if passes(error):
                self._failing.add(shard)
            raise BadSample("storage" if passes(error) else "read", error.strerror or str(error)) from error
        except remote.Unreachable as error:
            raise BadSample("storage", error.args[0]) from error
        self._failing.discard(shard)
        return data

    def _pread_once(self, shard: int, offset: int, size: int) -> bytes:
        """Raises OSError, remote.Unreachable, BadSample, DataError."""
        try:
            return _pread(self._opened(shard), offset, size)
        except OSError as error:
            self._held.drop((self._owner, shard))
            remote.note_progress()
            if self.stopping is not None and self.stopping.is_set():
                raise BadSample("read", error.strerror or str(error)) from error
            raise

    @property
    def caches(self) -> bool:
        """Whether fetch() can do anything."""
        return self._away and self.cache is not None

    def fetch(self, shard: int) -> object:
        """Have a remote shard in the cache before it is read, if that has room to spare.  What was fetched stays there as long as what is
        given is kept.  Raises as ShardCache.fetch()."""
        url = self.index.urls[shard]
        if self.cache is None or not remote.is_remote(url):
            return None
        descriptor = self.cache.fetch(url, self._facts(shard), self.stopping)
        return None if descriptor is None else _OpenShard(descriptor)

    def is_open(self, shard: int) -> bool:
        return (self._owner, shard) in self._held

    def close(self) -> None:
        self._held.forget(self._owner)

    def _opened(self, shard: int) -> _OpenShard | _Ranged:
        found: _OpenShard | _Ranged | None = self._held.get((self._owner, shard))
        if found is None:
            if self._away:
                self._held.forget(self._owner, unused_since=time.monotonic() - _IDLE_S)
            found = self._held.room(lambda: self._open(shard), self.index.paths[shard], self.stopping, patient=False)
            found.used_s = time.monotonic()
            self._held.put((self._owner, shard), found)
        elif self._away:
            found.used_s = time.monotonic()
        return found

    def _open(self, shard: int) -> _OpenShard | _Ranged:
        return self._remote(shard) if remote.is_remote(self.index.urls[shard]) else self._local(shard)

    def _local(self, shard: int) -> _OpenShard:
        path = self.index.urls[shard]
        file = _OpenShard(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        remote.same(path, remote.ShardFacts(os.fstat(file.descriptor).st_size, 0), remote.ShardFacts(int(self.index.bytes[shard]), 0))
        return file

    def _remote(self, shard: int) -> _OpenShard | _Ranged:
        url, facts = self.index.urls[shard], self._facts(shard)
        descriptor = self.cache.open(url, facts, self.stopping) if self.cache else None
        return _Ranged(url, facts, self.stopping) if descriptor is None else _OpenShard(descriptor)

    def _facts(self, shard: int) -> remote.ShardFacts:
        return remote.ShardFacts(int(self.index.bytes[shard]), int(self.index.mtime_ns[shard]))


def _pread(file: _OpenShard | _Ranged, offset: int, size: int) -> bytes:
    """Raises OSError, remote.Unreachable, BadSample."""
    if isinstance(file, _Ranged):
        return file.read(offset, size)
    data = os.pread(file.descriptor, size, offset)
    while len(data) < size:                         # one pread gives at most 2 GiB; a network disk may give less
        more = os.pread(file.descriptor, size - len(data), offset + len(data))
        if not more:
            raise BadSample("read", f"ends {size - len(data)} bytes early")
        data += more
    return data
