"""How a try to train ended, by what it left behind: its own word, its exit code, the stacks of a process that could not speak any more."""

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitscale.cluster.runfolder import LEASES, OUTCOME, highest_lease, mark, read_object
from vitscale.errors import EXIT_REQUEUE

STACKS = "stacks-rank-*.txt"        # in logs/; vitscale/resilience/watchdog.py writes them
STACKS_BYTES = 1 << 16              # a look at the end of one
_DUMP = "Timeout ("                 # how faulthandler begins what it writes when its time is up
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)


@dataclass(frozen=True)
class Before:
    """What lay in the run folder when a try began; whatever has changed since is of this try, whatever any clock says."""

    outcome: list[int] | None = None                            # its mark
    stacks: dict[str, int] = field(default_factory=dict)        # bytes, by the file's name

    @classmethod
    def of(cls, run_folder: Path) -> "Before":
        return cls(mark(run_folder / OUTCOME), {path.name: _size(path) for path in (run_folder / "logs").glob(STACKS)})

    @classmethod
    def told(cls, value: Any) -> "Before | None":
        """As it was written down; None if that is unreadable."""
        if not isinstance(value, dict):
            return None
        outcome, stacks = value.get("outcome"), value.get("stacks")
        if not isinstance(stacks, dict) or not isinstance(outcome, list | None):
            return None
        return cls(outcome, {name: size for name, size in stacks.items() if type(size) is int})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ended:
    """How a try ended.  `told`: outcome.json of the run folder says so already."""

    cause: str
    reason: str
    exit_code: int | None = None    # None: not known
    told: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)      # more that outcome.json should say


def word_of(run_folder: Path, before: Before) -> dict[str, Any]:
    """outcome.json, if it was written since; else {}."""
    if mark(run_folder / OUTCOME) == before.outcome:
        return {}
    return read_object(run_folder / OUTCOME)


def ended(run_folder: Path, before: Before, code: int | None = None) -> Ended:
    """How the try ended that began with `before`; `code`: of the process, or srun's, if it is known."""
    said = word_of(run_folder, before)
    if isinstance(said.get("cause"), str) and isinstance(said.get("reason"), str):
        return Ended(said["cause"], said["reason"], said["exit_code"] if type(said.get("exit_code")) is int else code, told=True)
    if code in (None, EXIT_REQUEUE) and (hang := _blocked(run_folder, before)) is not None:
        return Ended("hang", hang[1], EXIT_REQUEUE, facts={"stuck": [{"rank": hang[0]}]})
    return Ended("killed", _in_words(code), code)


def _in_words(code: int | None) -> str:
    if code is None:
        return "it ended without a word"
    number = -code if code < 0 else code - 128
    try:
        return f"it was ended by {signal.Signals(number).name} and said nothing"
    except ValueError:
        return f"it ended with code {code} and said nothing"


def _blocked(run_folder: Path, before: Before) -> tuple[int, str] | None:
    """(rank, in words) if a rank of this try was ended while a call held Python's lock, as resilience/backstop.py does it.

    It could write nothing but its stacks, and no sign of life after them: whoever has come round since beats in its lease again.
    """
    number = highest_lease(run_folder)
    lease = run_folder / LEASES / str(number)
    if not number or lease.with_name(f"{number}.released").exists():
        return None
    for path in sorted((run_folder / "logs").glob(STACKS)):
        known = before.stacks.get(path.name, 0)
        try:
            if path.stat().st_size <= known or path.stat().st_mtime_ns < lease.stat().st_mtime_ns:
                continue
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(known, size - STACKS_BYTES))
                _, dumped, stacks = file.read().decode(errors="replace").rpartition(_DUMP)
        except OSError:
            continue
        rank = path.stem.rpartition("-")[2]
        if dumped and rank.isdecimal():
            # the main thread is the oldest one, which comes last
            frame = _FRAME.search(stacks.rpartition("\nThread ")[2] or stacks)
            where = f"in {frame[3]} ({os.path.basename(frame[1])}:{frame[2]})" if frame else "in no Python that its stacks show"
            return int(rank), (f"rank {rank} hangs: blocked {where}, in a call that holds Python's lock, and ended for it; the stacks are "
                               f"in {path}")
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
