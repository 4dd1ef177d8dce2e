"""Take credentials out of URLs before anyone sees them.  For a URL, a text with URLs in it, or nested plain values."""

import re
from typing import Any

HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
# What signs or unlocks a URL: AWS, Google and Azure signatures, and the names that people give to keys of their own.
_KEYS = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|awsaccesskeyid|googleaccessid|signature|sig|se|sp|sv|skoid|"
    r"key|[a-z_-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|key[_-]?id)|pwd|auth|authorization|credentials?|jwt"
)
_PARAMETER = re.compile(rf"([?&;#](?:{_KEYS})=)[^&;#\s'\"<>)\]]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The same with user:password@ and the values of telling query parameters replaced by ***; without any, the very same text."""
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", text)) if "://" in text else text


def redacted(values: Any) -> Any:
    """Every text in nested dicts, lists and tuples, redacted; keys and other values stay."""
    if isinstance(values, str):
        return redact(values)
    if isinstance(values, dict):
        return {key: redacted(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(redacted(value) for value in values)
    return values
