"""Take credentials out of URLs before anyone sees them.  For a URL, a text with URLs in it, or nested plain values.

Every vendor names the parameters of a signed URL in its own way, so no list of names is kept: all values are hidden, and all user-info.
"""

import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
_SLASHES = r"(?:/|\\/)"                         # as JSON may write them
# quotes and angles end a URL, but for those in the middle of something
_URL = re.compile(rf"[A-Za-z][A-Za-z0-9+.-]*:{_SLASHES}{{2}}(?:[^\s\"<>]|[\"<>](?=[\w%+/=-]))+")
_ENCODED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*%(?:25)*3[Aa]%(?:25)*2[Ff]%(?:25)*2[Ff][^\s\"<>]+")      # a URL as the value of something
_USER = re.compile(
    r"(?<=://|/\\/)(?:[^/?#\s@:]*:(?!\d+[/?#])[^\s@]*(?:@[^/?#\s@]*)*"     # user:password, which may hold / ? # and @ as people paste them
    r"|[^/?#\s]*)@"
)
_MARK = r"[?&;#]|%(?:25)*(?:3[FfBb]|26)"        # before a parameter; also percent-encoded, however often
_AFTER = re.compile(r"[?#;]|%(?:25)*3[FfBb]")   # where parameters begin; a path may hold them after a semicolon (RFC 3986, section 3.3)
_PARAMETER = re.compile(rf"({_MARK})((?:(?!{_MARK}).)*)", re.DOTALL)
_EQUALS = re.compile(r"=|%(?:25)*3[Dd]")
_CLOSING = "'`)]},.:;!"                         # what a text may put behind a URL


def redact(text: str) -> str:
    """The same with user:password@ and the values of all query parameters replaced by ***; without any, the very same text.

    A URL that is percent-encoded as a whole is written plainly where it holds something to hide.
    """
    if "%" in text:
        text = _ENCODED.sub(_decoded, text)
    return _URL.sub(lambda found: _one(found[0]), text) if ":/" in text or ":\\/" in text else text


def _decoded(found: re.Match[str]) -> str:
    plain = found[0]
    while _ENCODED.match(plain):
        plain = unquote(plain)
    return plain if _one(plain) != plain else found[0]


def _one(url: str) -> str:
    end = len(url.rstrip(_CLOSING))
    url, behind = _USER.sub(f"{HIDDEN}@", url[:end]), url[end:]
    start = _AFTER.search(url, url.index(":") + 3)
    if start is None:
        return url + behind
    return url[:start.start()] + _PARAMETER.sub(_hidden, url[start.start():]) + behind


def _hidden(found: re.Match[str]) -> str:
    mark, text = found.groups()
    equals = _EQUALS.search(text)
    if equals and _EQUALS.sub("", text[equals.end():]):
        return f"{mark}{text[:equals.end()]}{HIDDEN}"
    return f"{mark}{HIDDEN}" if text and (equals or mark != "#") else found[0]      # a part of a page has a name, and no value


def redacted(values: Any) -> Any:
    """Every text in nested dicts, lists and tuples, redacted; keys and other values stay."""
    if isinstance(values, str):
        return redact(values)
    if isinstance(values, dict):
        return {key: redacted(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(redacted(value) for value in values)
    return values
