"""A shard behind a URL: what it is now, and ranges of its bytes, asked for until they come."""

import errno
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock
from types import MappingProxyType
from typing import Any, TypeVar

from vitscale.data import web
from vitscale.errors import EXIT_REQUEUE, DataError
from vitscale.recipe.beside import request_headers
from vitscale.recipe.redact import redact

# scheme -> the extra of vitscale that reads it
EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "hf": "hf",
          "az": "azure", "abfs": "azure", "abfss": "azure"}
THREADS = 32                # of those that wait for a server
_AHEAD = 1 << 20            # bytes asked for at once while a walk goes on in small steps
_SKIP = 1 << 16             # after a step over more than _NEAR
_NEAR = 1 << 19
_LISTED = 16                # shards of one folder from which on listing it costs less than asking for each
_REMOTE = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_GLOB = re.compile(r"[*\[]")
_USER = re.compile(r"://[^/]*@")
_PARAMETER = re.compile(r"[?&](?!versionId=)[^=&]+=")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """How long to go on asking: `tries` times, waiting between them first_s, twice that, ... up to longest_s, each shortened at random."""

    tries: int = 7
    first_s: float = 0.5
    longest_s: float = 20.0
    silence_s: float = 60.0     # without an answer


PATIENCE = Patience()


@dataclass(frozen=True)
class ShardFacts:
    """What tells one version of a shard from another.  stamp: a hash of its ETag or date, 0 where the store gives none."""

    size: int
    stamp: int


class Unreachable(DataError):
    """Every try failed in a way that another might not have: the store is away, and another attempt may find it well."""

    exit_code = EXIT_REQUEUE
    facts = MappingProxyType({"cause": "network"})

    def __str__(self) -> str:
        return f"{self.args[0]}; see to the store and the way to it, then run the same command again"


_progress = 0


def progress() -> int:
    """A number that grows as long as this process gets on with remote shards: with every try, also one that fails."""
    return _progress


def note_progress() -> None:
    global _progress
    _progress += 1          # two threads at once may count as one: it is only compared


def is_remote(path: str) -> bool:
    scheme = _REMOTE.match(path) if "://" in path else None         # 200,000 paths are asked about at a time
    return bool(scheme and scheme[1].lower() in EXTRAS)


def matches(url: str) -> list[str]:
    """A URL without braces -> the shards it names: itself, or what a glob finds in a store, sorted.  Raises DataError."""
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        if _GLOB.search(url.partition("://")[2].partition("?")[0].partition("/")[2]):
            raise DataError(f"{redact(url)}: a web server cannot be listed; give a brace URL, 'train-{{000000..000099}}.tar'")
        return [url]
    # a container of Azure stands where other URLs have a user; a version is no secret
    if (EXTRAS[scheme] != "azure" and _USER.search(url)) or _PARAMETER.search(url):
        raise DataError(f"{redact(url)}: credentials in a URL of {scheme} are not read; give them by the environment or the store's file")
    if not _GLOB.search(url):
        return [url]
    fs = _filesystem(scheme)
    found = sorted(_insist(url, lambda: fs.glob(url), None))
    if not found:
        raise DataError(f"{url}: no object matches; check the URL")
    return [f"{scheme}://{path}" for path in found]


def facts_of(urls: Sequence[str]) -> list[ShardFacts | None]:
    """The facts of each shard, None for one that is not there.  Many at once; a folder of many is listed instead.  Raises DataError."""
    folders = Counter(url.rpartition("/")[0] for url in urls if not url.lower().startswith("http"))
    listings = {folder: _listing(folder) for folder, count in folders.items() if count >= _LISTED}

    def look(url: str) -> ShardFacts | None:
        folder = url.rpartition("/")[0]
        if folder in listings:
            return listings[folder].get(url)
        try:
            return facts(url)
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return list(pool.map(look, urls))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def facts(url: str, stop: Event | None = None) -> ShardFacts:
    """Raises FileNotFoundError, DataError."""
    scheme = url.partition("://")[0].lower()
    if EXTRAS[scheme] == "http":
        answer = _get(url, 0, 1, stop)
        return ShardFacts(answer.size, answer.stamp)
    fs = _filesystem(scheme)
    return _facts(url, _insist(url, lambda: fs.info(url), stop))


def read(url: str, offset: int, size: int, expected: ShardFacts, stop: Event | None = None) -> bytes:
    """`size` bytes at `offset`, all of them.  Raises FileNotFoundError, Unreachable, DataError for a shard that is another by now."""
    if size == 0:
        return b""
    scheme = url.partition("://")[0].lower()
    if EXTRAS[scheme] == "http":
        answer = _get(url, offset, offset + size, stop)
        same(url, ShardFacts(answer.size, answer.stamp), expected)
        data = answer.data[:size]
    else:
        fs = _filesystem(scheme)

        def fetch() -> bytes:
            found: bytes = fs.cat_file(url, start=offset, end=offset + size)
            if len(found) != size:
                raise ConnectionError(f"{len(found)} bytes came instead of {size}")
            return found

        data = _insist(url, fetch, stop)
    return data


def same(url: str, found: ShardFacts, expected: ShardFacts) -> None:
    """Raises DataError unless the shard is the one that was indexed."""
    if found.size != expected.size:
        what = f"has {found.size} bytes, but had {expected.size} when it was indexed"
    elif found.stamp and expected.stamp and found.stamp != expected.stamp:
        what = "is another version than the one that was indexed (its ETag or date differs)"
    else:
        return
    raise DataError(f"{redact(url)}: {what}; restore it, or start the run again to have it indexed anew")


class Ranges:
    """`read_at` for a walk over headers: reads ahead while the steps are small, and skips over large members.  For one thread."""

    def __init__(self, url: str, expected: ShardFacts) -> None:
        self.url, self.expected = url, expected
        self.start, self.bytes = 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        size = max(min(size, self.expected.size - offset), 0)
        here = offset - self.start
        if not 0 <= here <= len(self.bytes) - size:
            ahead = _AHEAD if 0 <= here <= len(self.bytes) + _NEAR else _SKIP
            self.start = offset
            self.bytes = read(self.url, offset, min(max(size, ahead), self.expected.size - offset), self.expected)
            here = 0
        return self.bytes[here:here + size]


def _get(url: str, start: int, end: int, stop: Event | None) -> web.Answer:
    fs = _filesystem("http")
    from fsspec.asyn import sync

    return _insist(url, lambda: sync(fs.loop, web.get, fs, url, start, end, PATIENCE.silence_s), stop)


def _insist(url: str, attempt: Callable[[], _T], stop: Event | None) -> _T:
    """What `attempt` gives, tried again after whatever may pass."""
    chance, patience, shown = random.SystemRandom(), PATIENCE, redact(url)
    stop = stop or Event()
    why = "no try was made"
    for number in range(patience.tries):
        note_progress()
        try:
            return attempt()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown) from None
        except DataError:
            raise
        except Exception as error:      # the libraries of the stores raise what they like, also for what may pass
            name, why = type(error).__name__, redact(str(error)).replace(url, shown)
            if isinstance(error, (PermissionError, ImportError)) or "Credential" in name:
                raise DataError(f"{shown}: access is refused ({why or name}); check the credentials, also their date of expiry") from None
            why = f"{name}: {why}" if why else name
        if number + 1 < patience.tries and stop.wait(min(patience.first_s * 2**number, patience.longest_s) * chance.uniform(0.5, 1)):
            break
    raise Unreachable(f"{shown}: cannot be read, tried {number + 1} times; the last try ended with {why}")


def _facts(url: str, info: dict[str, Any]) -> ShardFacts:
    if info.get("type") == "directory" or info.get("size") is None:
        raise DataError(f"{url}: is a folder; give its shards, such as '{url.rstrip('/')}/*.tar'")
    version = next((info[key] for key in ("ETag", "etag", "generation", "mtime", "LastModified", "updated") if info.get(key)), None)
    return ShardFacts(int(info["size"]), web.stamp_of(None if version is None else str(version)))


def _listing(folder: str) -> dict[str, ShardFacts]:
    """{URL: facts} of the objects right in a folder of a store; empty where there is none."""
    fs = _filesystem(folder.partition("://")[0].lower())
    try:
        entries = _insist(folder, lambda: fs.ls(folder, detail=True), None)
    except FileNotFoundError:
        return {}
    scheme = folder.partition("://")[0]
    return {f"{scheme}://{entry['name']}": _facts(entry["name"], entry) for entry in entries if entry.get("type") != "directory"}


_open: dict[tuple[int, str], Any] = {}
_lock = Lock()


def _filesystem(scheme: str) -> Any:
    """fsspec's file system of this process.  Raises DataError where its library is not installed."""
    protocol = {"https": "http", "s3a": "s3"}.get(scheme, scheme)
    with _lock:
        found = _open.get((os.getpid(), protocol))
        if found is None:
            import fsspec

            headers = request_headers() if protocol == "http" else {}
            options: dict[str, dict[str, Any]] = {      # signed URLs as given
                "http": {"encoded": True, "client_kwargs": {"auto_decompress": False, "trust_env": True, "headers": headers}},
                "s3": {"config_kwargs": {"connect_timeout": PATIENCE.silence_s, "read_timeout": PATIENCE.silence_s}},
            }
            try:
                found = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options.get(protocol, {}))
            except ImportError as error:
                extra = EXTRAS[scheme]
                raise DataError(f"{scheme}:// shards want a library that is not installed ({error}); "
                                f"pip install 'vitscale[{extra}]'") from None
            _open[os.getpid(), protocol] = found
    return found

