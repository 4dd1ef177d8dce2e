"""Read one sample's members out of its shard by their offsets.  Safe for many threads; holds few files open."""

import os
import resource
from collections import OrderedDict
from collections.abc import Collection
from threading import Lock

from vitscale.data.bad import BadSample
from vitscale.data.index import SetIndex
from vitscale.errors import DataError


class _File:
    """An open shard.  Closes itself when nobody reads from it any more, so that dropping it from a cache cannot pull it from a thread."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardReader:
    """`read(shard, index)` -> the sample's members.  The last `open_limit` shards stay open."""

    def __init__(self, index: SetIndex, open_limit: int | None = None) -> None:
        self.index = index
        self.open_limit = open_limit or file_budget()
        index.open_limit = max(self.open_limit, 1)          # a mapped sidecar holds a descriptor too
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()

    def read(self, shard: int, index: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """{extension: bytes} of one sample: those in `wanted` that it has, or all.

        Raises DataError for a shard that changed since it was indexed, BadSample("read") for what cannot be read.
        """
        members = self.index.shard(shard).members(index)
        file = self._opened(shard)
        return {ext: _pread(file, offset, size) for ext, offset, size in members if wanted is None or ext in wanted}

    def pread(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of a shard.  Raises as read()."""
        return _pread(self._opened(shard), offset, size)

    def close(self) -> None:
        with self._lock:
            self._files.clear()

    def _opened(self, shard: int) -> _File:
        try:
            return self._file(shard)
        except OSError as error:
            raise BadSample("read", error.strerror or str(error)) from error

    def _file(self, shard: int) -> _File:
        with self._lock:
            file = self._files.get(shard)
            if file is not None:
                self._files.move_to_end(shard)
                return file
        path = self.index.paths[shard]
        file = _File(path)
        size = os.fstat(file.descriptor).st_size
        if size != self.index.bytes[shard]:
            raise DataError(
                f"{path}: has {size} bytes, but had {self.index.bytes[shard]} when it was indexed; "
                "restore it, or start the run again to have it indexed anew"
            )
        with self._lock:
            self._files[shard] = file
            if len(self._files) > self.open_limit:
                self._files.popitem(last=False)
        return file


def _pread(file: _File, offset: int, size: int) -> bytes:
    try:
        data = os.pread(file.descriptor, size, offset)
        while len(data) < size:                         # one pread gives at most 2 GiB; a network disk may give less
            more = os.pread(file.descriptor, size - len(data), offset + len(data))
            if not more:
                raise BadSample("read", f"ends {size - len(data)} bytes early")
            data += more
    except OSError as error:
        raise BadSample("read", error.strerror or str(error)) from error
    return data


def file_budget() -> int:
    """How many shards may be open at once: a third of the descriptors this process may have, after asking for as many as are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 1 << 16 if hard == resource.RLIM_INFINITY else min(hard, 1 << 16)
    if soft != resource.RLIM_INFINITY and soft < want:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))
        soft = want
    return want // 3 if soft == resource.RLIM_INFINITY else max(soft // 3, 8)
