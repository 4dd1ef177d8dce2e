"""One ranged request of http(s), over the session that fsspec holds."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from vitscale.errors import DataError
from vitscale.recipe.redact import redact

_SPAN = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$")
_SLOWEST = 50_000           # bytes a second; a server slower than this counts as silent
_LATER = (408, 425, 429)    # with all of 5xx: asking again may help


@dataclass(frozen=True)
class Answer:
    """size, stamp: of the whole file, as Facts of remote.py has them."""

    size: int
    stamp: int
    data: bytes


def stamp_of(version: str | None) -> int:
    """A version as a store tells it (an ETag, a date) -> a number that fits the index's column of times; 0 for none."""
    return int.from_bytes(hashlib.sha256(version.encode()).digest()[:8], "big") >> 1 if version else 0


async def get(fs: Any, url: str, start: int, end: int, silence_s: float) -> Answer:
    """Bytes [start, end), fewer only where the file ends.  silence_s: how long the server may say nothing.

    Raises FileNotFoundError, PermissionError, DataError for what no patience mends, and anything else for what it may.
    """
    import aiohttp

    patience = aiohttp.ClientTimeout(total=silence_s + (end - start) / _SLOWEST, sock_connect=silence_s, sock_read=silence_s)
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers=headers, timeout=patience) as answer:
        status = answer.status
        if status in (404, 410):
            raise FileNotFoundError
        if status in (401, 403, 407):
            raise PermissionError(f"HTTP {status}")
        if status in _LATER or status >= 500:
            raise ConnectionError(f"HTTP {status}")
        stamp = stamp_of((answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "").removeprefix("W/"))
        if (packed := answer.headers.get("Content-Encoding", "identity").lower()) not in ("identity", ""):
            raise DataError(f"{redact(url)}: the server sends it compressed ({packed}) although it was asked not to; bytes at an offset "
                            "cannot be had so: have it serve shards as they are")
        span = _SPAN.match(answer.headers.get("Content-Range", ""))
        if status == 416 and span and span[3] != "*":                          # nothing is there: an empty file, or one that shrank
            return Answer(int(span[3]), stamp, b"")
        if status == 200 and answer.content_length is not None and start == 0 and answer.content_length <= end:
            return Answer(answer.content_length, stamp, await _body(answer, answer.content_length))
        if status == 200:
            raise DataError(f"{redact(url)}: the server ignores ranges of bytes (it answers 200 to a Range request); "
                            "serve the shards by one that knows them, or copy them to a disk")
        if status != 206 or not span or span[1] is None or int(span[1]) != start:
            raise DataError(f"{redact(url)}: HTTP {status} where 206 and the bytes asked for were expected; check the URL")
        total = await _size(session, fs, url, patience) if span[3] == "*" else int(span[3])
        return Answer(total, stamp, await _body(answer, min(end, total) - start))


async def _size(session: Any, fs: Any, url: str, patience: Any) -> int:
    """Of a file whose server does not tell it beside a range (Content-Range: bytes 0-9/*, RFC 9110, section 14.4)."""
    async with session.head(fs.encode_url(url), headers={"Accept-Encoding": "identity"}, timeout=patience, allow_redirects=True) as answer:
        length = answer.headers.get("Content-Length", "")
        if answer.status != 200 or not length.isdigit():
            raise DataError(f"{redact(url)}: the server does not tell how long it is, neither beside a range of bytes nor when asked by "
                            f"HEAD (HTTP {answer.status}); serve the shards by one that does")
        return int(length)


async def _body(answer: Any, size: int) -> bytes:
    data: bytes = await answer.read()
    if len(data) != size:
        raise ConnectionError(f"{len(data)} bytes came instead of {size}")
    return data
