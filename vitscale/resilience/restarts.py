"""The attempts of a run, one row each in attempts.jsonl: what began where, and why the one before it ended.

The file holds the first and the last few hundred; those between lie in attempts.earlier.jsonl, which nobody reads, so that a start takes no
longer for what has been.

Only an attempt that has taken the run folder has a row.  Every start of a run, also one that dies before that, is counted in tries/:
vitscale/cluster/tries.py, which knows when they are enough.
"""

import json
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitscale.errors import CheckpointError
from vitscale.files import patiently, read_bytes, write_atomically
from vitscale.resilience.outcome import read_outcome
from vitscale.runfolder import ATTEMPTS as FILE

log = logging.getLogger(__name__)
EARLIER = "attempts.earlier.jsonl"
_KEPT = 200         # rows, and up to twice as many


@dataclass(frozen=True)
class Attempt:
    """One attempt as it began.  `cause`, `reason` and `exit_code` are of the end of the attempt before it; None for the first."""

    attempt: int                # the number of its lease
    started: float              # the program, seconds since 1970
    time: float                 # this row
    step: int                   # of the checkpoint it resumes from; 0: none
    images: int
    ranks: int
    cause: str | None           # one of metrics.system.CAUSES
    reason: str | None
    exit_code: int | None       # None: it was killed before it could say anything
    seconds: dict[str, float] = field(default_factory=dict)     # of the run so far, by bucket: train/goodput.py
    host: str = ""
    node: str | None = None
    job: str | None = None
    restarts: dict[str, int] = field(default_factory=dict)      # of the run so far, by cause: how often it was started again


def attempts_of(run_folder: Path) -> list[Attempt]:
    """In the order in which they began.  A row that cannot be read is passed over with a warning."""
    path, found = run_folder / FILE, []
    for number, line in enumerate(read_bytes(path).splitlines() if patiently(path, path.is_file) else [], 1):
        try:
            found.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            log.warning("%s: line %d is unreadable and passed over; the count of restarts and the sums of time may be short", path, number)
    return found


def begin_attempt(run_folder: Path, number: int, *, started: float, step: int, images: int, ranks: int,
                  seconds: dict[str, float]) -> list[Attempt]:
    """Write the row of an attempt that begins, durably; returns the rows that are kept, its own the last.

    Only for the holder of the run folder.  Raises CheckpointError where the disk takes no more."""
    known = attempts_of(run_folder)
    ended = _end_of(run_folder, known[-1]) if known else {"cause": None, "reason": None, "exit_code": None}
    restarts = restarts_by_cause(known) + Counter([ended["cause"]] if ended["cause"] else [])
    new = Attempt(number, started, time.time(), step, images, ranks, seconds=seconds, host=socket.gethostname(),
                  node=os.environ.get("SLURMD_NODENAME"), job=os.environ.get("SLURM_JOB_ID"), restarts=dict(restarts), **ended)
    rows, earlier = [*known, new], []
    if len(rows) > 2 * _KEPT:
        rows, earlier = [rows[0], *rows[-_KEPT:]], rows[1:-_KEPT]
    try:
        if earlier:             # a kill before the next line has them there twice
            with open(run_folder / EARLIER, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(row)) + "\n" for row in earlier)
        write_atomically(run_folder / FILE, "".join(json.dumps(asdict(row)) + "\n" for row in rows))
    except OSError as error:
        raise CheckpointError(f"{run_folder / FILE}: cannot be written ({error.strerror}); make room there") from None
    return rows


def _end_of(run_folder: Path, last: Attempt) -> dict[str, Any]:
    """How the attempt ended that began last: by its outcome, or, if that is not of it, without a word."""
    outcome = read_outcome(run_folder)
    # a launcher whose ranks died before one of them held the run folder knows of no attempt, but that was the end after all
    end = {key: outcome.get(key) for key in ("cause", "reason", "exit_code")}
    if None not in end.values() and outcome.get("attempt") in (last.attempt, None) and outcome.get("time", 0.0) >= last.time:
        return end
    return {"cause": "killed", "reason": "it ended without a word", "exit_code": None}


def restarts_by_cause(attempts: Sequence[Attempt]) -> Counter[str]:
    """How often the run was started again after which end."""
    told = next((number for number in reversed(range(len(attempts))) if attempts[number].restarts), None)     # an older row tells its own
    after = attempts[0 if told is None else told + 1:]
    return Counter(attempts[told].restarts if told is not None else {}) + Counter(row.cause for row in after if row.cause is not None)
