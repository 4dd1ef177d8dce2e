"""What can be wrong with one sample while the others are well."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class BadSample(Exception):
    """This one sample cannot be used.  `reason`, for counting, is one of vitscale.metrics.system.REASONS."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def only_bad_samples(function: Callable[P, R]) -> Callable[P, R]:
    """A function of one image whose every exception is a BadSample: no input of a decoder may end a run, not even one that it falls over.

    MemoryError stays what it is: it says nothing of the image.
    """
    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (BadSample, MemoryError):
            raise
        except Exception as error:
            raise BadSample("decode", f"its decoder failed with {type(error).__name__}: {error}") from error

    return guarded
