"""A run folder as the login node sees it: names of its files, and reading what may be half-written or damaged."""

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from vitscale.counts import plural
from vitscale.errors import ClusterError
from vitscale.files import patiently, write_atomically
from vitscale.metrics import is_evaluation
from vitscale.processes import boot_id, is_stopped, start_of

if TYPE_CHECKING:       # else the small process that ends a blocked rank, which has no packages, could not write its outcome
    from vitscale.recipe import Recipe

JOB = "job.json"                # {jobs, time, outcome_before}: written by `vitscale submit`
BEGUN = "begun.json"            # {job, restart, nodes, began, before}: written by each batch job before its ranks start
OUTCOME = "outcome.json"
ATTEMPTS = "attempts.jsonl"     # who held the run folder: vitscale/resilience/restarts.py
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"    # what an attempt runs on: vitscale/train/environment.py
GOODPUT = "goodput.json"
EVALUATION = "eval.json"         # what `vitscale eval` found: vitscale/evaluate/evaluate.py
LEASES = "lease"
MONITOR_PORT = 8420
STALE_S = 60.0                  # a holder that has not been heard of for so long is taken for dead
TAIL_BYTES = 1 << 18


def run_folder(recipe: "Recipe") -> Path:
    return Path(recipe.runs_dir) / recipe.name


def page_id(below: str) -> str:
    """What a run is called in the addresses of the page: a hash of its path below the folder of runs, since that may hold anything."""
    return hashlib.sha256(os.fsencode(below)).hexdigest()[:16]


def find_run(named: str) -> Path:
    """A run folder by its path, or by its name below ./runs.  Raises ClusterError."""
    for path in (Path(named), Path("runs") / named):
        if path.is_dir():
            return path
    raise ClusterError(f"{named}: no such run folder, here or in runs/; `vitscale status` lists those of a folder")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; {} if there is none, or it is damaged."""
    try:
        value = json.loads(patiently(path, path.read_bytes, 5.0))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Replace a file by a JSON object in one step."""
    write_atomically(path, json.dumps(value, indent=1) + "\n", durable="content")


def mark(path: Path) -> list[int] | None:
    """Changes whenever the file is replaced, whatever the clocks of different nodes say; None: there is no file."""
    try:
        known = path.stat()
    except OSError:
        return None
    return [known.st_ino, known.st_mtime_ns, known.st_size]


def marks(folder: Path) -> dict[str, Any]:
    """Of what may say why an attempt ended: what differs from this was written since."""
    errors = sorted((folder / "logs").glob("error-rank-*.json"))
    return {"outcome": mark(folder / OUTCOME), "errors": {path.name: mark(path) for path in errors}}


def highest_lease(folder: Path) -> int:
    """The number of the last attempt that held the run folder; 0 if none did."""
    try:
        return max((int(path.name) for path in (folder / LEASES).iterdir() if path.name.isdecimal()), default=0)
    except OSError:
        return 0


def furthest_checkpoint(folder: Path) -> int:
    """The step of the furthest checkpoint that is published; 0 if there is none."""
    try:
        names = [path.name.removeprefix("step-") for path in (folder / CHECKPOINTS).iterdir() if path.name.startswith("step-")]
    except OSError:
        return 0
    return max((int(name) for name in names if name.isdecimal() and name.isascii() and len(name) < 13), default=0)


@dataclass(frozen=True)
class Holder:
    """Who held the run folder last, by its lease (vitscale/checkpoint/lease.py)."""

    attempts: int
    alive: bool                 # it has not given the folder up, its process is not known to be gone, and its heartbeat is fresh
    released: bool              # it ended in good order
    heard_of: float | None      # seconds since 1970, by the clock of the file system
    process: bool | None = None     # whether its process lives; None: not on this machine, or it cannot be told
    stopped: bool = False       # it lives, and stands still by a signal
    pid: int | None = None
    job: str | None = None      # of SLURM, if it was of one

    def was_before(self, outcome: Path) -> bool:
        """Whether an outcome that names no attempt was written after the last sign of life; a launcher writes it for ranks it never met."""
        try:
            return self.heard_of is None or outcome.stat().st_mtime >= self.heard_of
        except OSError:
            return False


def holder_of(folder: Path, now: float) -> Holder:
    number = highest_lease(folder)
    lease = folder / LEASES / str(number)
    try:
        known = lease.stat() if number else None
    except OSError:
        known = None
    heard_of = known.st_mtime if known is not None else None
    released = lease.with_name(f"{number}.released").exists()
    told = read_object(lease) if number else {}
    pid, job = told.get("pid"), told.get("job")
    process = None
    if isinstance(pid, int) and told.get("host") == socket.gethostname() and told.get("boot") == boot_id():
        process = start_of(pid) == told.get("start")
        if not process and known is not None and known.st_uid != os.getuid():
            process = None      # /proc may hide the processes of others
    alive = not released and process is not False and heard_of is not None and now - heard_of < STALE_S
    return Holder(number, alive, released, heard_of, process, bool(process and isinstance(pid, int) and is_stopped(pid)),
                  pid if isinstance(pid, int) else None, job if isinstance(job, str) else None)


@dataclass(frozen=True)
class Reached:
    """How far a run has come, by its record, and how much of that is safe."""

    step: int           # the last that was recorded; 0: none
    checkpoint: int     # the newest; 0: none

    @property
    def lost(self) -> int:
        """Steps that the next attempt makes again."""
        return max(self.step - self.checkpoint, 0)

    @property
    def words(self) -> str:
        """What is lost, "" if nothing is."""
        if not self.lost:
            return ""
        since = f" since the checkpoint of step {self.checkpoint}" if self.checkpoint else ", there is no checkpoint"
        return f"lost: {plural(self.lost, 'step')}{since}"


def reached(folder: Path, step: int | None = None) -> Reached:
    """`step`: the last that was made, if it is known better than by the record, which may hold every tenth alone."""
    if step is None:
        recorded = last_row(folder / METRICS, "loss").get("step")
        step = recorded if isinstance(recorded, int) and not isinstance(recorded, bool) else 0
    return Reached(step, furthest_checkpoint(folder))


def cut_by(row: Mapping[str, Any]) -> float:
    """After which step the rows before this one of metrics.jsonl stand no longer, since those steps are made again; infinity: all stand.

    The file itself keeps them: it tells all that happened.  A resume and a rollback say to which step they go back, and of two rows of one
    step the later counts.
    """
    back, step = row.get("to_step"), row.get("step")
    if _is_count(back):
        return float(back)
    return float(step) - 1 if _is_count(step) and "event" not in row and not is_evaluation(row) else math.inf


def last_row(path: Path, column: str) -> dict[str, Any]:
    """The last whole row of metrics.jsonl that has `column` and stands; {} if the last TAIL_BYTES hold none.  Reads no more than these."""
    until = math.inf
    for row in rows_backwards(path):
        step = row.get("step")
        if column in row and "event" not in row and not (_is_count(step) and step > until):
            return row
        until = min(until, cut_by(row))
    return {}


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def rows_backwards(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of the last TAIL_BYTES of a file of JSON lines, the last one first."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).split(b"\n")     # of the first, a part may be missing; then it is no JSON
    except OSError:
        return
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def printable(text: str) -> str:
    """For a terminal: a log or a file's name may hold what would steer it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def number(value: object) -> float:
    """One number that a file says, true as 1, where JSON takes NaN, infinity and numbers of any length; NaN for anything else."""
    if not isinstance(value, (int, float)):
        return math.nan
    try:
        found = float(value)
    except OverflowError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def known(value: object) -> float | None:
    """The same; None for anything else."""
    found = number(value)
    return found if found == found else None


def inside(found: dict[str, Any], key: str) -> dict[str, Any]:
    """The object that a file has there; {} for anything else."""
    inner = found.get(key)
    return inner if isinstance(inner, dict) else {}
