"""The attempts of a run, one row each in attempts.jsonl: what began where, and why the one before it ended.

Only an attempt that has taken the run folder has a row.  One that dies before (a broken installation, a bad node) cannot be counted here;
whoever starts it must: `vitscale train --keep-going` does, and for a batch job SLURM_RESTART_COUNT is there.
"""

import itertools
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

from vitscale.errors import EXIT_FAILED, EXIT_REQUEUE, CheckpointError, UserError
from vitscale.files import write_atomically
from vitscale.resilience.outcome import ASKED, read_outcome, write_outcome

log = logging.getLogger(__name__)
FILE = "attempts.jsonl"


class RestartLoop(UserError):
    """Attempt after attempt has died without getting any further."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class Attempt:
    """One attempt as it began.  `cause`, `reason` and `exit_code` are of the end of the attempt before it; None for the first."""

    attempt: int                # the number of its lease
    started: float              # the program, seconds since 1970
    time: float                 # this row
    step: int                   # of the checkpoint it goes on from; 0: none
    images: int
    ranks: int
    cause: str | None           # one of outcome.CAUSES
    reason: str | None
    exit_code: int | None       # None: it was killed before it could say anything
    seconds: dict[str, float] = field(default_factory=dict)     # of the run so far, by bucket: observe/goodput.py
    host: str = ""
    node: str | None = None
    job: str | None = None


def attempts_of(run_folder: Path) -> list[Attempt]:
    """In the order in which they began.  A row that cannot be read is passed over with a warning."""
    path, found = run_folder / FILE, []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], 1):
        try:
            found.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError):
            log.warning("%s: line %d is unreadable and passed over; the count of restarts and the sums of time may be short", path, number)
    return found


def begin_attempt(run_folder: Path, number: int, *, started: float, step: int, images: int, ranks: int,
                  seconds: dict[str, float]) -> list[Attempt]:
    """Write the row of an attempt that begins, durably; returns all rows, its own the last.  Only for the holder of the run folder.

    Raises CheckpointError where the disk takes no more."""
    known = attempts_of(run_folder)
    ended = _end_of(run_folder, known[-1]) if known else {"cause": None, "reason": None, "exit_code": None}
    new = Attempt(number, started, time.time(), step, images, ranks, seconds=seconds, host=socket.gethostname(),
                  node=os.environ.get("SLURMD_NODENAME"), job=os.environ.get("SLURM_JOB_ID"), **ended)
    try:
        write_atomically(run_folder / FILE, "".join(json.dumps(asdict(row)) + "\n" for row in [*known, new]))
    except OSError as error:
        raise CheckpointError(f"{run_folder / FILE}: cannot be written ({error.strerror}); make room there") from None
    return [*known, new]


def _end_of(run_folder: Path, last: Attempt) -> dict[str, Any]:
    """How the attempt ended that began last: by its outcome, or, if that is not of it, without a word."""
    outcome = read_outcome(run_folder)
    # a launcher whose ranks died before one of them held the run folder knows of no attempt, but that was the end after all
    if outcome.get("attempt") in (last.attempt, None) and outcome.get("time", 0.0) >= last.time:
        return {"cause": outcome["cause"], "reason": outcome["reason"], "exit_code": outcome["exit_code"]}
    return {"cause": "killed", "reason": "it ended without a word", "exit_code": None}


def restarts_by_cause(attempts: Sequence[Attempt]) -> Counter[str]:
    """How often the run was started again after which end."""
    return Counter(row.cause for row in attempts if row.cause is not None)


def refuse_loop(run_folder: Path, attempts: Sequence[Attempt], max_restarts: int) -> None:
    """Raises RestartLoop, and writes it down as the outcome, if the last of `attempts`, which begins, is to begin where each of the
    `max_restarts` before it began and died.

    An attempt counts if whoever started it would start it again by itself: it wished so (exit code 75), or it died without a word.  After
    any other end (done, wrong input, failed for good, this very refusal), or after a person's signal, a person must have started the next
    one, has perhaps mended something, and the count begins afresh.  So it does after a preemption: others wanted the nodes, nothing is
    wrong with the run.
    """
    now, ends = attempts[-1], list[str]()
    for row, after in reversed(list(itertools.pairwise(attempts))):
        if row.images != now.images or after.exit_code not in (None, EXIT_REQUEUE) or after.cause in ASKED:
            break
        ends.insert(0, f"  attempt {row.attempt}: {after.cause} ({after.reason})")
    if len(ends) < max_restarts:
        return
    listed = "\n".join(ends)
    where = f"step {now.step}" if now.step else "the very beginning"
    message = (f"{run_folder}: {len(ends)} attempts in a row began at {where} and died before the next checkpoint; "
               f"this one is not made (resilience.max_restarts={max_restarts})\n{listed}\n"
               f"the logs are in {run_folder / 'logs'}; mend the cause, then run the same command again: the count begins afresh")
    write_outcome(run_folder, EXIT_FAILED, message, cause="restarts", attempt=now.attempt, step=now.step, images=now.images)
    raise RestartLoop(message)
