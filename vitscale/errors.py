"""The mistakes a user can make, and the exit codes of the program."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

EXIT_DONE = 0
EXIT_WRONG_INPUT = 2    # the recipe, the data or a checkpoint is wrong: mend it, then run again
EXIT_FAILED = 3         # the run failed in a way that a retry will not mend
EXIT_REQUEUE = 75       # stopped early in good order (or by a dead process): run again to go on (EX_TEMPFAIL of sysexits.h)


class UserError(Exception):
    """Something the user can mend.  The message names the file, key or sample and says what to do; no traceback is shown."""

    exit_code = EXIT_WRONG_INPUT
    facts: Mapping[str, Any] = {}       # what outcome.json says besides the message: its `cause` and others


class RecipeError(UserError):
    """The recipe is wrong: every mistake at once, each by its dotted key."""


class DataError(UserError):
    """Shards, samples or labels are missing or wrong."""


class CheckpointError(UserError):
    """A checkpoint is damaged, foreign, or belongs to another run."""


class ClusterError(UserError):
    """The machine, its devices or the cluster cannot do what was asked."""


class StorageError(UserError, OSError):
    """A file system went on failing in a way that passes: a server that is away, a handle gone stale.  Another attempt may find it well.

    Made as OSError is: (errno, what the system says of it, path).
    """

    exit_code = EXIT_REQUEUE
    facts = MappingProxyType({"cause": "disk"})

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}; see to the file system, then run the same command again"


def said(error: BaseException) -> str:
    """What an exception says, with its kind where that is needed to understand it; never nothing."""
    if isinstance(error, UserError):
        return str(error)
    words = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    return words if isinstance(error, OSError) and words else f"{type(error).__name__}: {words}" if words else type(error).__name__
