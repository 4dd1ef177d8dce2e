"""Remote shards on this node's own disk: each fetched once for all ranks, as many as `limit_bytes` holds, the longest unused leave first.

A shard is NAME.tar beside NAME.json (its facts and sha256), NAME being the sha256 of its full URL.  Whoever has one open holds a shared
lock (flock) on it, and what is locked is not evicted; if it were removed by hand, POSIX would keep the open one readable all the same.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

from filelock import FileLock, Timeout

from vitscale.data import remote
from vitscale.data.descriptors import NONE_LEFT
from vitscale.data.remote import ShardFacts
from vitscale.errors import DataError
from vitscale.recipe.redact import redact

log = logging.getLogger(__name__)
_CHUNK = 1 << 24            # bytes of one request, asked for again by itself when it fails


class ShardCache:
    """`open(url, facts)` -> a descriptor of the whole shard, or None if there is no room for it.  Safe for many threads and processes."""

    def __init__(self, folder: str | None, limit_bytes: int) -> None:
        self._given, self.limit_bytes = folder, limit_bytes
        self._folder: Path | None = None
        self._sound: set[tuple[int, int, int]] = set()      # files whose sha256 this process has checked
        self._lock = Lock()
        self._warned = False

    def open(self, url: str, facts: ShardFacts, stop: Event | None = None) -> int | None:
        """Raises FileNotFoundError and DataError as remote.read does, and OSError where no descriptor is left; trouble with the disk is
        warned of once and gives None."""
        name = hashlib.sha256(url.encode()).hexdigest()
        try:
            folder = self._made()
            descriptor = self._ready(folder, name, facts, check=False)
            if descriptor is None:
                with _held(folder, name, url, stop):
                    descriptor = self._ready(folder, name, facts, check=True)
                    if descriptor is None:
                        descriptor = self._fetch(folder, name, url, facts, stop)
        except FileNotFoundError as error:
            if error.filename == redact(url):
                raise
            self._warn(str(error))
            return None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", None) in NONE_LEFT:
                raise                   # that is no trouble of this disk, and whoever reads shards can make room
            self._warn(getattr(error, "strerror", None) or str(error))
            return None
        return descriptor

    def fetch(self, url: str, facts: ShardFacts, stop: Event | None = None) -> int | None:
        """Have a shard here that is not wanted yet.  A descriptor keeps it here; None if it was here already, or unless there is room for
        two, so that whoever wants another now still finds some.  Raises OSError, also for trouble with the disk, and DataError as
        remote.read does."""
        folder, name = self._made(), hashlib.sha256(url.encode()).hexdigest()
        with _held(folder, name, url, stop):
            descriptor = self._ready(folder, name, facts, check=True)
            if descriptor is None:
                return self._fetch(folder, name, url, facts, stop, spare=facts.size)
        os.close(descriptor)
        return None

    def _made(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = _folder(self._given)
        return self._folder

    def _warn(self, why: str) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            log.warning("the shard cache %s cannot take more (%s): other shards are read straight from their URLs, again in every epoch; "
                        "free some space, or see data.cache_dir and data.cache_bytes", self._folder or self._given, why)

    def _ready(self, folder: Path, name: str, facts: ShardFacts, check: bool) -> int | None:
        """The shard if it is there and sound.  check: read it through if this process has not yet."""
        try:
            note = json.loads((folder / f"{name}.json").read_bytes())
            descriptor = os.open(folder / f"{name}.tar", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, ValueError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            info = os.fstat(descriptor)
            this = (info.st_dev, info.st_ino, info.st_mtime_ns)
            if info.st_size == facts.size and (note["bytes"], note["stamp"]) == (facts.size, facts.stamp):
                if check and this not in self._sound:
                    if _sha256(descriptor) == note["sha256"]:
                        self._sound.add(this)
                    else:
                        log.warning("the cached copy of %s is damaged; it is fetched again", note["url"])
                if this in self._sound:
                    os.utime(folder / f"{name}.json")
                    return descriptor
        except (BlockingIOError, FileNotFoundError, KeyError, TypeError):
            pass                            # it is being evicted, or its note is none
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _fetch(self, folder: Path, name: str, url: str, facts: ShardFacts, stop: Event | None, spare: int = 0) -> int | None:
        for left in folder.glob(f"{name}.*.part"):          # by a process that was killed: we hold the lock of this name
            left.unlink(missing_ok=True)
        part = folder / f"{name}.{os.getpid()}-{os.urandom(4).hex()}.part"
        descriptor = self._reserve(folder, part, facts.size, spare)
        if descriptor is None:
            return None
        try:
            remote.same(url, remote.facts(url, stop), facts)
            sha = hashlib.sha256()
            for at in range(0, facts.size, _CHUNK):
                data = remote.read(url, at, min(_CHUNK, facts.size - at), facts, stop)
                _write(descriptor, data, at)
                sha.update(data)
            remote.same(url, remote.facts(url, stop), facts)        # not every store tells with each answer which version it is of
            note = {"url": redact(url), "bytes": facts.size, "stamp": facts.stamp, "sha256": sha.hexdigest()}
            beside = part.with_suffix(".note")
            beside.write_text(json.dumps(note))
            os.replace(beside, folder / f"{name}.json")
            os.replace(part, folder / f"{name}.tar")        # not synced: after a crash the sha256 tells
            info = os.fstat(descriptor)
            self._sound.add((info.st_dev, info.st_ino, info.st_mtime_ns))
        except BaseException:
            os.close(descriptor)
            part.unlink(missing_ok=True)
            part.with_suffix(".note").unlink(missing_ok=True)
            raise
        return descriptor

    def _reserve(self, folder: Path, part: Path, size: int, spare: int) -> int | None:
        """An open file of `size` bytes that counts against the limit from now on; None, with a warning, when there is no room for it.

        spare: bytes that must remain beside it; if they do not, that is no reason for a warning.
        """
        with FileLock(folder / "room.lock", poll_interval=0.02):
            if not self._make_room(folder, size + spare):
                if spare:
                    return None
                self._warn(f"{size} bytes are wanted, the limit is {self.limit_bytes} and the rest is in use or the disk is full")
                return None
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if size:
                    os.posix_fallocate(descriptor, 0, size)
            except BaseException:
                os.close(descriptor)
                part.unlink(missing_ok=True)
                raise
        return descriptor

    def _make_room(self, folder: Path, size: int) -> bool:
        """Evict the longest unused until `size` more bytes fit.  False where they do not."""
        if size > self.limit_bytes:
            return False
        held: list[tuple[float, Path, int]] = []
        for path in [*folder.glob("*.tar"), *folder.glob("*.part")]:
            with suppress(OSError):
                info = path.stat()
                used = path.with_suffix(".json")
                held.append((used.stat().st_mtime if used.exists() else info.st_mtime, path, info.st_size))
        total, free = sum(bytes_ for _, _, bytes_ in held), shutil.disk_usage(folder).free
        for _, path, bytes_ in sorted(held):
            if total + size <= self.limit_bytes and size <= free:
                return True
            if _evict(path):
                total, free = total - bytes_, free + bytes_
        return total + size <= self.limit_bytes and size <= free


@contextmanager
def _held(folder: Path, name: str, url: str, stop: Event | None) -> Iterator[None]:
    """Hold the lock of a name; whoever waits for it may be told to stop.  Raises Unreachable then."""
    lock = FileLock(folder / f"{name[:3]}.lock", poll_interval=0.02)        # 4096 locks, so that they need no clearing away
    fetched = 0
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            if stop and stop.is_set():
                raise remote.Unreachable(f"{redact(url)}: not waited for any longer") from None
            newest = max((_written_ns(path) for path in folder.glob(f"{name[:3]}*.part")), default=0)
            if newest != fetched:       # whoever holds the lock gets on, and so does this wait
                fetched = newest
                remote.note_progress()
    try:
        yield
    finally:
        lock.release()


def _written_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _evict(path: Path) -> bool:
    """Remove a shard unless someone has it open."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _folder(given: str | None) -> Path:
    """The cache's folder, made if absent.  The default one must be ours alone: its place is open to all users of the machine."""
    folder = Path(given).absolute() if given else Path(tempfile.gettempdir()) / f"vitscale-shards-{os.getuid()}"
    folder.mkdir(parents=bool(given), exist_ok=True, mode=0o700)
    info = folder.lstat()
    if not given and (not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077):
        raise DataError(f"{folder}: the cache of shards must be a folder of yours alone (mode 0700); remove it, or give data.cache_dir")
    return folder


def _sha256(descriptor: int) -> str:
    sha, at = hashlib.sha256(), 0
    while data := os.pread(descriptor, _CHUNK, at):
        sha.update(data)
        at += len(data)
    return sha.hexdigest()


def _write(descriptor: int, data: Any, at: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, at)
        view, at = view[done:], at + done
