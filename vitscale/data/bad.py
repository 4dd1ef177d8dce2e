"""What can be wrong with one sample while the others are well."""

REASONS = ("read", "storage", "image", "format", "bomb", "truncated", "decode", "crash", "label")      # labels of a metric, and so few
# read: the sample is not there, cut short, or not to be had; storage: its file system went on failing


class BadSample(Exception):
    """This one sample cannot be used.  `reason`, for counting, is one of REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
