"""Where the wall time of a whole run went, over all its attempts: goodput.json in the run folder.

`Meters` book one attempt.  Around them lies what this file adds: the time before the program came to make its meters, the attempts before,
and what was between them.  The buckets always add up to the time from the first attempt's start until now:

    startup, restore, train, repeated, data_wait, checkpoint, evaluate      as the meters book them
    waiting     between an attempt's last sign of life and the start of the next: nothing ran (queued, requeued, nobody started it)
    lost        an attempt ran, but came to nothing that a step's end could book: the step in which it was killed, a hang until it was ended

What a killed attempt did after its last checkpoint stays where it was booked; doing it again is `repeated`.
"""

import contextlib
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from vitscale.checkpoint.lease import Lease, LeaseLost
from vitscale.files import read_bytes, write_atomically
from vitscale.metrics.system import BUCKETS
from vitscale.observe.meters import Meters
from vitscale.parallel.launch import STARTED_VARIABLE
from vitscale.processes import boot_id, label_of, up_s
from vitscale.resilience.outcome import read_outcome
from vitscale.resilience.restarts import attempts_of

log = logging.getLogger(__name__)
FILE = "goodput.json"
CLOCK_S = 2.0       # two clocks, or one that is being disciplined, may differ by so much
BEAT_S = 1.0        # a killed attempt's books are at most this old


@dataclass(frozen=True)
class Books:
    """The sums of a run at one time."""

    started: float              # the first attempt, seconds since 1970
    time: float
    seconds: dict[str, float]   # by BUCKETS
    boot: str = ""              # of which machine, since when it runs
    up_s: float = 0.0           # how long it had, at `time`: nobody sets that clock


class Goodput:
    """Keeps the books for the holder of the run folder; use it as a context manager.  A thread writes them down, so that they are there
    whenever the attempt is killed."""

    def __init__(self, run_folder: Path, lease: Lease, meters: Meters) -> None:
        self._path, self._lease, self._meters = run_folder / FILE, lease, meters
        now = time.time()
        self._now, self._at = now, time.monotonic()         # from here on that clock alone goes on: the other may be set
        metered_from = now - meters.age_s
        before = _books_before(run_folder)
        if before is None:
            self.started = program_started()
            self.first_started, self._carried = self.started, dict.fromkeys(BUCKETS, 0.0)
        else:
            shift = clock_shift(before, now)
            if abs(shift) > CLOCK_S:
                log.warning("%s: clocks disagree: what was written there last is %+.0f s off by this machine's; times are counted without "
                            "that", self._path, -shift)
                last_sign = before.time + shift
            else:       # whoever ended the attempt, its launcher say, may have lived longer than its books
                shift = 0.0
                last_sign = max(before.time, min(_time_of(read_outcome(run_folder)), now))
            before = replace(before, started=before.started + shift, time=before.time + shift)
            self.started = program_started(not_before=last_sign)
            self.first_started, self._carried = before.started, dict.fromkeys(BUCKETS, 0.0) | before.seconds
            self._carried["lost"] += max(last_sign - before.started - sum(before.seconds.values()), 0.0)
            self._carried["waiting"] += self.started - last_sign
        self._carried["startup"] += metered_from - self.started
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="goodput", daemon=True)

    def __enter__(self) -> "Goodput":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._write()

    def run_seconds(self) -> dict[str, float]:
        """By BUCKETS, over all attempts.  What the step under way computed is in at its end."""
        booked = self._meters.run_seconds()
        return {name: carried + booked[name] for name, carried in self._carried.items()}

    def _write(self) -> None:
        """Not made durable: where a machine fails, attempts.jsonl still has the sums with which the attempt began."""
        books = {"attempt": self._lease.number, "started": self.first_started, "time": self._now + time.monotonic() - self._at,
                 "seconds": self.run_seconds(), "boot": boot_id(), "up_s": up_s()}
        with contextlib.suppress(OSError, LeaseLost):       # a full disk ends a run elsewhere, if it must
            self._lease.check()
            write_atomically(self._path, json.dumps(books), durable="no")

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._write()


def _time_of(outcome: Mapping[str, Any]) -> float:
    """When it was written, by this machine's clock as it goes now, if it was this machine; 0: not known."""
    try:
        return label_of(str(outcome["moment"])) if "moment" in outcome else float(outcome.get("time", 0.0))
    except (ValueError, TypeError):
        return 0.0


def goodput_ratio(run_seconds: dict[str, float]) -> float:
    """The share of the wall time that went into steps that count, 0..1."""
    wall_s = sum(run_seconds.values())
    return run_seconds["train"] / wall_s if wall_s > 0 else 0.0


def read_books(run_folder: Path) -> Books | None:
    """What the last attempt wrote; None where there is nothing that can be read."""
    try:
        books = json.loads(read_bytes(run_folder / FILE))
        return Books(float(books["started"]), float(books["time"]), {name: float(value) for name, value in books["seconds"].items()},
                     str(books.get("boot", "")), float(books.get("up_s", 0.0)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _books_before(run_folder: Path) -> Books | None:
    books = read_books(run_folder)
    if books is None and (attempts := attempts_of(run_folder)):
        books = Books(attempts[0].started, attempts[-1].time, attempts[-1].seconds)
    return books


def clock_shift(books: Books, now: float) -> float:
    """By how much the stamps of `books` must be moved to be of the clock that says `now`.

    On the machine that wrote them, since its start, its uptime tells; elsewhere only that they are not of the future.
    """
    if books.boot and books.boot == boot_id():
        return (now - books.time) - (up_s() - books.up_s)
    return min(now - books.time, 0.0)


def program_started(not_before: float = 0.0) -> float:
    """When this attempt was started, seconds since 1970: SLURM's batch job, else vitscale's launcher, else this process.

    What began before `not_before`, such as a job in which attempts follow each other, did not start this attempt.
    """
    told = os.environ.get(STARTED_VARIABLE)
    for begin in (_batch_job_started(), label_of(told) if told else None, process_started()):
        if begin is not None and not_before <= begin <= max(time.time(), not_before):
            return begin
    return not_before


def process_started() -> float:
    """When this process was started, seconds since 1970, to the kernel's tick; without /proc (macOS): now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (up_s() - ticks / os.sysconf("SC_CLK_TCK")) if up_s() else time.time()
    except OSError:
        return time.time()


def _batch_job_started() -> float | None:
    """None outside a batch job; a person's interactive allocation has begun long before."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("ENVIRONMENT") != "BATCH":
        return None
    try:
        if told := os.environ.get("SLURM_JOB_START_TIME"):      # newer SLURMs say it
            return float(told)
        answer = subprocess.run(["squeue", "--noheader", "--job", job, "--format=%S"], capture_output=True, text=True, timeout=5,
                                env=os.environ | {"SLURM_TIME_FORMAT": "%s"})
        return float(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
