"""A run folder as the login node sees it: names of its files, and reading what may be half-written or damaged."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.errors import ClusterError
from vitscale.files import write_atomically
from vitscale.recipe import Recipe

JOB = "job.json"                # {jobs, time, outcome_before}: written by `vitscale submit`
BEGUN = "begun.json"            # {job, restart, nodes, began, before}: written by each batch job before its ranks start
OUTCOME = "outcome.json"
METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"    # what an attempt runs on: vitscale/train/environment.py
GOODPUT = "goodput.json"
EVALUATION = "eval.json"         # what `vitscale eval` found: vitscale/evaluate/evaluate.py
LEASES = "lease"
MONITOR_PORT = 8420
STALE_S = 60.0                  # a holder that has not been heard of for so long is taken for dead
TAIL_BYTES = 1 << 18


def run_folder(recipe: Recipe) -> Path:
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
        value = json.loads(path.read_bytes())
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


def highest_lease(folder: Path) -> int:
    """The number of the last attempt that held the run folder; 0 if none did."""
    try:
        return max((int(path.name) for path in (folder / LEASES).iterdir() if path.name.isdecimal()), default=0)
    except OSError:
        return 0


@dataclass(frozen=True)
class Holder:
    """Who held the run folder last, by its lease (vitscale/checkpoint/lease.py)."""

    attempts: int
    alive: bool                 # its heartbeat is fresh
    released: bool              # it ended in good order
    heard_of: float | None      # seconds since 1970, by the clock of the file system

    def has_ended(self, outcome: Path) -> bool:
        """Whether the outcome is of this attempt, not of an earlier one; a launcher writes it for ranks that were killed."""
        try:
            return self.released or self.heard_of is None or outcome.stat().st_mtime >= self.heard_of
        except OSError:
            return False


def holder_of(folder: Path, now: float) -> Holder:
    number = highest_lease(folder)
    lease = folder / LEASES / str(number)
    try:
        heard_of = lease.stat().st_mtime if number else None
    except OSError:
        heard_of = None
    released = lease.with_name(f"{number}.released").exists()
    return Holder(number, not released and heard_of is not None and now - heard_of < STALE_S, released, heard_of)


def last_row(path: Path, column: str) -> dict[str, Any]:
    """The last whole row of a file of JSON lines that has `column`; {} if the last TAIL_BYTES hold none.  Reads no more than these."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).split(b"\n")     # of the first, a part may be missing; then it is no JSON
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and column in row:
            return row
    return {}


def printable(text: str) -> str:
    """For a terminal: a log or a file's name may hold what would steer it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
