"""What a run is doing, or how it ended: one function decides, from all that its folder, its processes and SLURM's queue say.

`vitscale status`, the page, the report and `vitscale sweep` all ask it, so that they tell the same story.  Changes nothing.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitscale.cluster.slurm import Queued, is_job
from vitscale.runfolder import BEGUN, JOB, OUTCOME, Holder, holder_of, mark, number, reached, read_object

SILENT_S = 20.0         # a heartbeat comes every 5 s: one that is so late is told
_WORKING = ("RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING")
_BEGINS_S = 600.0       # what a job that has begun may take to its first rank, where SLURM cannot be asked


@dataclass(frozen=True)
class RunState:
    """`name`: new, submitted, queued, starting, running, suspended, lost, or what the outcome says: done, failed, ..."""

    name: str
    detail: str                     # why it is in the queue, or how it ended
    cause: str | None = None        # of the end: one of metrics.system.CAUSES
    lost_steps: int | None = None   # after a bad end: recorded, but in no checkpoint, so that the next attempt makes them again


def jobs_of(folder: Path) -> list[str]:
    """The jobs that were submitted for a run, and the one that last worked on it, in this order; none twice."""
    submitted = read_object(folder / JOB).get("jobs")
    known = [*(submitted if isinstance(submitted, list) else []), read_object(folder / BEGUN).get("job")]
    return list(dict.fromkeys(job for job in known if is_job(job)))


def state_of(folder: Path, queue: Sequence[Queued] | None, now: float | None = None) -> RunState:
    """`queue`: what SLURM has of this user's jobs; None: not known, since there is no SLURM here or it does not answer.

    What counts, in this order: a living process, unless it has said its last word; then SLURM; then that word; then its absence.
    """
    now = time.time() if now is None else now
    jobs, holder, begun = jobs_of(folder), holder_of(folder, now), _Begun.of(folder)
    known = queue is not None and _is_ours(folder)      # squeue --me lists no colleague's jobs
    queued = {entry.job: entry for entry in queue or () if entry.job in jobs}
    outcome = last_word(folder, holder)
    if begun.came_later(folder, holder):                # an attempt has begun of which nothing has come yet, a rank or a word
        outcome = {}
    entry = queued.get(begun.job or "")
    if not outcome and _lives(holder, begun, entry, entry is None and known):
        return _living(holder, entry, now)
    working = next((queued[job] for job in jobs if job in queued and queued[job].state in ("RUNNING", "SUSPENDED", "STOPPED")), None)
    if working is not None and not (outcome and _started(working, now) < number(outcome.get("time"))):
        return RunState("suspended", f"job {working.job}") if working.state != "RUNNING" else RunState("starting", f"for {working.elapsed}")
    waiting = next((queued[job] for job in jobs if job in queued and queued[job].state not in _WORKING), None)
    if waiting is not None:
        return RunState("queued", waiting.reason)
    if outcome:
        return _ended(folder, outcome, jobs, queued, known)
    if begun.came_later(folder, holder):
        if not known and now - begun.began < _BEGINS_S:
            return RunState("starting", f"{begun.words}; whether it still runs is not known here")
        return RunState("lost", f"{begun.words} and ended before a rank had joined, without a word; see its log", "killed")
    if holder.attempts:
        lost = _lost(folder, holder, now)
        return replace(lost, detail=f"{lost.detail}; whether SLURM will start it again is not known") if jobs and not known else lost
    if jobs:
        return RunState("submitted", "but not in the queue" if known else "whether it is still in the queue is not known")
    return RunState("new", "")


def last_word(folder: Path, holder: Holder) -> dict[str, Any]:
    """The outcome if it is of the attempt that held the folder last, or of a start after it that came to nothing; else {}.

    Who ends rank 0's attempt, or counts attempts that never held the folder, may not know its number; then the later file counts, both
    by the clock of the file system.
    """
    outcome = read_object(folder / OUTCOME)
    said = outcome.get("attempt")
    if not isinstance(outcome.get("state"), str):
        return {}
    if isinstance(said, int) and not isinstance(said, bool):
        return outcome if said >= holder.attempts else {}
    return outcome if holder.was_before(folder / OUTCOME) else {}


@dataclass(frozen=True)
class _Begun:
    """What the batch job wrote before it started the ranks."""

    job: str | None
    restart: int
    began: float
    lease: int | None               # the number of the last attempt before it
    outcome: Any                    # the mark of the outcome before it
    nodes: str

    @classmethod
    def of(cls, folder: Path) -> "_Begun":
        told = read_object(folder / BEGUN)
        before = told.get("before")
        before = before if isinstance(before, dict) else {}
        lease, job, restart = before.get("lease"), told.get("job"), told.get("restart")
        began = number(told.get("began"))
        return cls(job if is_job(job) else None, restart if isinstance(restart, int) else 0, began if began == began else 0.0,
                   lease if isinstance(lease, int) else None, before.get("outcome"), str(told.get("nodes") or "its nodes"))

    def came_later(self, folder: Path, holder: Holder) -> bool:
        """Whether neither a rank nor an outcome has come since."""
        return self.lease is not None and holder.attempts <= self.lease and mark(folder / OUTCOME) == self.outcome

    @property
    def words(self) -> str:
        return f"job {self.job or '?'} began on {self.nodes}"


def _lives(holder: Holder, begun: _Begun, entry: Queued | None, gone: bool) -> bool:
    """Whether the last holder is at work.  `entry`: of its job in the queue; `gone`: the queue is known and has none."""
    if holder.released or holder.process is False:
        return False
    if holder.process:
        return True
    if not holder.attempts:
        return False
    if holder.job is not None and begun.job is not None:
        if begun.lease is not None and begun.lease >= holder.attempts:
            return False                # of an earlier attempt of the job
        if gone or (entry is not None and entry.state not in _WORKING):
            return False
        if entry is not None and entry.state in ("RUNNING", "SUSPENDED", "STOPPED"):
            return True
    return holder.alive


def _living(holder: Holder, entry: Queued | None, now: float) -> RunState:
    if holder.stopped or (entry is not None and entry.state in ("SUSPENDED", "STOPPED")):
        return RunState("suspended", f"job {entry.job}" if entry is not None else f"process {holder.pid} stands still (SIGSTOP)")
    silent_s = now - holder.heard_of if holder.heard_of is not None else 0.0
    return RunState("running", f"no sign of life for {span(silent_s)}" if silent_s > SILENT_S else "")


def _ended(folder: Path, outcome: dict[str, Any], jobs: Sequence[str], queued: dict[str, Queued], known: bool) -> RunState:
    reason, cause = outcome.get("reason"), outcome.get("cause")
    detail = reason if isinstance(reason, str) else ""
    lost = outcome.get("lost_steps")
    submitted = read_object(folder / JOB)
    if known and jobs and not queued and submitted.get("outcome_before") == mark(folder / OUTCOME):
        detail = f"{detail}; job {jobs[-1]}, submitted since, is not in the queue" if detail else detail
    return RunState(str(outcome["state"]), detail, cause if isinstance(cause, str) else None,
                 lost if isinstance(lost, int) and not isinstance(lost, bool) else None)


def _lost(folder: Path, holder: Holder, now: float) -> RunState:
    so_far = reached(folder)
    words = [f"attempt {holder.attempts} ended without a word" + (f" after step {so_far.step}" if so_far.step else "")]
    if holder.heard_of is not None:
        words.append(f"last heard of {span(max(now - holder.heard_of, 0.0))} ago")
    return RunState("lost", ", ".join(words) + (f"; {so_far.words}" if so_far.words else ""), "killed", so_far.lost)


def _started(entry: Queued, now: float) -> float:
    """When a running job was started this time, by its elapsed time [days-][hours:]minutes:seconds; now where that is none."""
    days, _, clock = entry.elapsed.rpartition("-")
    parts = [*([days] if days else ["0"]), *["0"] * (3 - len(clock.split(":"))), *clock.split(":")]
    if not all(part.isdecimal() and len(part) < 7 for part in parts) or len(parts) != 4:
        return now
    return now - sum(int(part) * seconds for part, seconds in zip(parts, (86400, 3600, 60, 1), strict=True))


def _is_ours(folder: Path) -> bool:
    """Whether it was this user who submitted, or whose job last worked on, the run."""
    for name in (BEGUN, JOB):
        try:
            return (folder / name).stat().st_uid == os.getuid()
        except OSError:
            continue
    return True


def span(seconds: float) -> str:
    """The largest two units: 3d 4h, 2h 5m, 14m, 8s."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"
