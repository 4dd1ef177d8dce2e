"""classes.txt beside shards, near or far: what a set says of its classes before a shard is opened.  Imports fsspec only for what is far."""

import functools
import glob
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from vitscale.errors import DataError, said
from vitscale.recipe.redact import redact

CLASSES = "classes.txt"                 # names of classes, one a line, in the order of their numbers
HEADERS = "VITSCALE_HTTP_HEADERS"       # a JSON object of request headers for http(s)://, such as the bearer token of a gated set
TRIES, SILENCE_S = 3, 20.0
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_FOLDERS = 16                           # of one set that are looked into


class Unreached(DataError):
    """A store did not say whether there is such a file."""


def class_lists(urls: Sequence[str], far: bool = True) -> dict[str, tuple[str, ...]]:
    """{file: names} of each classes.txt that lies beside the first shard of some brace URL, glob or path in `urls`; {} if there is none.

    far: also ask stores and web servers.  Raises Unreached where one does not answer, DataError for damaged headers.
    """
    places = dict.fromkeys(place for url in urls[:_FOLDERS] if (place := _place(url)))
    found = {}
    for place in places:
        scheme = _SCHEME.match(place)
        if scheme is not None and not far:
            continue
        text = _near(place) if scheme is None else _far(place, scheme[1].lower(), int(time.time()) // 60)
        if text is not None and (names := _names(text)):
            found[redact(place)] = names
    return found


def read_names(path: Path) -> tuple[str, ...]:
    """The lines of a file of class names; () where there is none that can be read."""
    text = _near(str(path))
    return () if text is None else _names(text)


def _names(text: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.removeprefix("\N{BYTE ORDER MARK}").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def _place(url: str) -> str | None:
    """Where classes.txt of a set would lie; the parameters of a signed URL go along."""
    try:
        first = next(iter(braceexpand(url))) if "{" in url else url
    except (ValueError, StopIteration):
        return None
    scheme = _SCHEME.match(first)
    if scheme is not None and scheme[1].lower() == "file":
        first, scheme = first[len(scheme[0]):], None
    if scheme is None:
        folder = os.path.dirname(os.path.expanduser(first))
        if glob.has_magic(folder):
            folder = next(iter(sorted(glob.glob(folder))), folder)
        return os.path.join(folder, CLASSES)
    path, mark, query = first.partition("?")
    return f"{path.rpartition('/')[0]}/{CLASSES}{mark}{query}"


def _near(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):
        return None


@functools.lru_cache(maxsize=64)
def _far(url: str, scheme: str, minute: int) -> str | None:
    """`minute`: for as long the answer holds."""
    why = ""
    for number in range(TRIES):
        if number:
            time.sleep(0.5 * number)
        try:
            data = _of_web(url) if scheme in ("http", "https") else _of_store(url, scheme)
        except (FileNotFoundError, PermissionError):        # who may not list a store is told that what is not there is forbidden
            return None
        except DataError:
            raise
        except Exception as error:      # the libraries of the stores raise what they like
            if "AccessDenied" in str(error) or "Forbidden" in str(error):
                return None
            why = redact(said(error)).replace(url, redact(url))
        else:
            return data.decode("utf-8", "surrogateescape")
    raise Unreached(f"{redact(url)}: whether it is there cannot be told ({why}); say model.classes in the recipe, or see to the store")


def _of_web(url: str) -> bytes:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=request_headers()), timeout=SILENCE_S) as answer:
            return bytes(answer.read(1 << 24))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404, 410):
            raise FileNotFoundError(url) from None
        raise


def _of_store(url: str, scheme: str) -> bytes:
    import fsspec

    protocol = {"s3a": "s3"}.get(scheme, scheme)
    store: Any = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
    return bytes(store.cat_file(url))


def request_headers() -> dict[str, str]:
    """Of every request over http(s); another host that one redirects to is not told the Authorization.  Raises DataError."""
    try:
        found = json.loads(os.environ.get(HEADERS) or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) and value.isprintable() for value in found.values()):
        raise DataError(f'{HEADERS}: wants a JSON object of texts, such as {{"Authorization": "Bearer ..."}}; what it holds is not shown')
    return found
