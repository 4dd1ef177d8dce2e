"""Files that survive a crash: written beside, made durable, then renamed; read and written in spite of a file system that hiccups."""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from vitscale.awake import Awake
from vitscale.errors import StorageError, UserError, said

log = logging.getLogger(__name__)
# What shared file systems answer while a server restarts, a network fails over or another node has changed a folder.  A full disk, a
# quota, missing rights and a file that is not there are no hiccups.
PASSING = frozenset({errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET,
                     errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
                     errno.ESHUTDOWN, errno.EREMOTEIO if hasattr(errno, "EREMOTEIO") else errno.EIO})
PATIENCE_S = 30.0       # for a server to come back, in time that this process could run
_FIRST_S, _LONGEST_S = 0.05, 2.0        # between two tries
_in_vain_s = -math.inf      # when patience was last in vain, by time.monotonic()
_T = TypeVar("_T")


def patiently(path: Path | str, act: Callable[[], _T], patience_s: float | None = None) -> _T:
    """What `act`, which may be done again, gives; again for up to `patience_s` after an error that passes.

    None: PATIENCE_S, but hardly at all right after that was in vain elsewhere: a run that ends for it shall not wait at every file.
    Said once in the log, with `path`.  Raises StorageError, which is an OSError, when the error goes on; other errors at once.
    """
    global _in_vain_s
    awake, wait_s, usual = None, _FIRST_S, patience_s is None
    if patience_s is None:
        patience_s = PATIENCE_S if time.monotonic() - _in_vain_s > PATIENCE_S else min(PATIENCE_S, 1.0)
    while True:
        try:
            return act()
        except OSError as error:
            if not passes(error) or isinstance(error, StorageError):
                raise
            if awake is None:
                awake = Awake(max(patience_s, 60.0) / 2)        # one try may take long by itself
                log.warning("%s: %s; trying again for up to %.0f s", path, error.strerror, patience_s)
            elif awake.look() >= patience_s:
                if usual:
                    _in_vain_s = time.monotonic()
                raise StorageError(error.errno, f"{error.strerror}, again and again", str(path)) from error
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_S)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Whatever a file system fails at in a way that may pass, also deep in a library, as a StorageError."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if not passes(error) or not (error.filename or error.errno in (errno.EIO, errno.ESTALE)):       # connections have neither
            raise
        raise StorageError(error.errno, error.strerror, error.filename or "a file") from error


def passes(error: BaseException) -> bool:
    """Whether a file system failed in a way that may pass by itself."""
    return isinstance(error, OSError) and error.errno in PASSING


def read_bytes(path: Path) -> bytes:
    """Raises OSError."""
    return patiently(path, path.read_bytes)


def is_there(path: Path) -> bool:
    """Whether there is something of that name.  Raises OSError."""
    try:
        patiently(path, path.stat)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, in no order; nothing if it is not there.  Raises OSError."""
    try:
        return patiently(folder, lambda: os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):        # the latter: a file stands where a folder above it should
        return []


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a rename is not until its folder is synced)."""
    def sync() -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    patiently(folder, sync)


def write_atomically(path: Path, content: str | bytes, durable: Literal["name", "content", "no"] = "name") -> None:
    """Replace `path` by `content`, text as UTF-8, as one step: a reader sees the old or the new content, never a part.

    durable: what a machine that fails right after it cannot undo.  name: the replacement; content: nothing, but whichever of the two is
    found is whole; no: after such a failure, not of a process, it may be empty.
    Raises OSError, with nothing left behind.
    """
    patiently(path, lambda: _write_once(path, content, durable))
    if durable == "name":
        fsync_folder(path.parent)


def _write_once(path: Path, content: str | bytes, durable: str) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")       # other nodes have the same process ids
    try:
        with open(beside, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable != "no":
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def sha256_of(path: Path) -> str:
    """Raises OSError."""
    def digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return patiently(path, digest)


def rename(old: Path, new: Path) -> Path:
    """`new`, which does not exist yet, is what `old` was, also if only the answer to the first try was lost.  Raises OSError."""
    def move() -> None:
        try:
            os.rename(old, new)
        except FileNotFoundError:
            if not new.exists():
                raise

    patiently(old, move)
    return new


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which is `folder` once the block has ended well: until then, and after an error, that is as it was.

    Where `folder` exists its files of the same names are replaced.  Raises UserError for a place that cannot be written.
    """
    there = folder.is_dir()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    aside = (folder if there else folder.parent) / f".{folder.name}.{os.getpid()}.part"
    try:
        aside.mkdir(parents=True)
        yield aside
        fsync_tree(aside)
        if there:
            for name in names_in(aside):
                os.replace(aside / name, folder / name)
        else:
            rename(aside, folder)
            made.clear()
    except UserError:
        raise
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        raise UserError(f"{folder}: cannot be written ({said(error)}{where}); it is as it was: make room, or give another place") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        for path in made:       # of a failure: the folders above it that this made
            with contextlib.suppress(OSError):
                path.rmdir()


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, sorted.  Raises OSError, which Path.rglob() does not always."""
    def listed(inner: Path) -> list[os.DirEntry[str]]:
        with os.scandir(inner) as entries:
            return sorted(entries, key=lambda entry: entry.name)

    found: list[Path] = []
    for entry in patiently(folder, lambda: listed(folder)):
        if patiently(entry.path, entry.is_dir):
            found += files_below(Path(entry.path))
        else:
            found.append(Path(entry.path))
    return found


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below, and the folder itself, durable."""
    paths = files_below(folder)
    for path in paths:
        patiently(path, lambda path=path: _fsync_file(path))        # type: ignore[misc]
    for inner in sorted({path.parent for path in paths} | {folder}, reverse=True):
        fsync_folder(inner)


def _fsync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_regular(path: Path, at_most: int) -> bytes:
    """The content of a regular file of `at_most` bytes.  Raises OSError, also for a folder, a device, or a pipe that nobody writes to: what
    came from elsewhere must not make the reader wait or fill its memory."""
    return patiently(path, lambda: _regular(path, at_most))


def _regular(path: Path, at_most: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        if facts.st_size > at_most:
            raise OSError(errno.EFBIG, f"has {facts.st_size} bytes, at most {at_most} are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
