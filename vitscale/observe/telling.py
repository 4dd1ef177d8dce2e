"""What only tells (the console, logs, rows, trackers, pages, metrics) never stops what trains: its errors are said once and end here."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from vitscale.checkpoint.lease import LeaseLost

log = logging.getLogger(__name__)
_said: set[str] = set()
_lock = threading.Lock()


@contextlib.contextmanager
def only_tells(what: str) -> Iterator[None]:
    """Whatever goes wrong inside costs no more than what was to be told.  `what`: whose failure it is, named in the log the first time.

    Nothing collective may stand inside: a rank that leaves early would let the others wait.  LeaseLost goes through, since it says that
    this attempt must end; so do KeyboardInterrupt and what the interpreter itself raises.
    """
    try:
        yield
    except LeaseLost:
        raise
    except (Exception, SystemExit) as error:        # SystemExit: rich at a closed pipe, trackers that give up
        with _lock:
            first = what not in _said
            _said.add(what)
        if first:
            log.warning("%s: %s: %s; training goes on without it (said once)", what, type(error).__name__, error)
