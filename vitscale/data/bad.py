"""What can be wrong with one sample while the others are well."""


class BadSample(Exception):
    """This one sample cannot be used.  `reason` is one word for counting: read, image, format, bomb, truncated, decode or label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
