"""Take credentials out of URLs before anyone sees them.  For a URL, a text with URLs in it, or nested plain values.

Every vendor names the parameters of a signed URL in its own way, so no list of names is kept: all values are hidden, and all user-info.
"""

import re
from typing import Any

HIDDEN = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"<>]+")
_USER = re.compile(
    r"(?<=://)(?:[^/?#\s@:]*:(?!\d+[/?#])[^\s@]*(?:@[^/?#\s@]*)*"       # user:password, which may hold / ? # and @ as people paste them
    r"|[^/?#\s]*)@"
)
_AFTER = re.compile(r"[?#;]|%3[FfBb]")          # where parameters begin; a path may hold them after a semicolon (RFC 3986, section 3.3)
_PARAMETER = re.compile(r"([?&;#]|%3[FfBb]|%26)((?:(?!=|%3[Dd]|[&;#]|%26).)*)(?:(=|%3[Dd])((?:(?![&;#]|%26|%3[Bb]).)*))?")
_CLOSING = "'`)]},.:;!"                        # what a text may put behind a URL


def redact(text: str) -> str:
    """The same with user:password@ and the values of all query parameters replaced by ***; without any, the very same text."""
    return _URL.sub(lambda found: _one(found[0]), text) if "://" in text else text


def _one(url: str) -> str:
    end = len(url.rstrip(_CLOSING))
    url, behind = _USER.sub(f"{HIDDEN}@", url[:end]), url[end:]
    start = _AFTER.search(url, url.index("://") + 3)
    if start is None:
        return url + behind
    return url[:start.start()] + _PARAMETER.sub(_hidden, url[start.start():]) + behind


def _hidden(found: re.Match[str]) -> str:
    mark, name, equals, _ = found.groups()
    if equals:
        return f"{mark}{name}{equals}{HIDDEN}"
    is_value = name and (mark in "?&" or mark.upper() in ("%3F", "%26"))        # a query of one word; # and ; are followed by names
    return f"{mark}{HIDDEN}" if is_value else found[0]


def redacted(values: Any) -> Any:
    """Every text in nested dicts, lists and tuples, redacted; keys and other values stay."""
    if isinstance(values, str):
        return redact(values)
    if isinstance(values, dict):
        return {key: redacted(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(redacted(value) for value in values)
    return values
