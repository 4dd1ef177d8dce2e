"""How a try to train ended, by what it left behind: its own word, or its exit code."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitscale.errors import EXIT_REQUEUE
from vitscale.runfolder import OUTCOME, mark, read_object

Mark = list[int] | None     # of outcome.json when a try began: what has changed since is of this try, whatever any clock says
PRESENT = "logs/present"    # rank-N.json of each rank at work: vitscale/resilience/roll.py
LEFT = ".left"              # in place of .json: of each that ended by itself
LOST_PEER = "lost_peer"     # in outcome.json: its writer knows no more than that a connection to another rank broke


@dataclass(frozen=True)
class Ended:
    """How a try ended.  `told`: outcome.json of the run folder says so already."""

    cause: str
    reason: str
    exit_code: int | None = None    # None: not known
    told: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)      # more that outcome.json should say


def word_of(run_folder: Path, before: Mark) -> dict[str, Any]:
    """outcome.json, if it was written since; else {}."""
    if mark(run_folder / OUTCOME) == before:
        return {}
    return read_object(run_folder / OUTCOME)


def ended(run_folder: Path, before: Mark, code: int | None = None) -> Ended:
    """How the try ended that began when outcome.json was as `before` says; `code`: of the process, or srun's, if it is known."""
    said = word_of(run_folder, before)
    if isinstance(said.get("cause"), str) and isinstance(said.get("reason"), str):
        return Ended(said["cause"], said["reason"], said["exit_code"] if type(said.get("exit_code")) is int else code, told=True)
    return Ended("killed", _in_words(code), code)


def killed(run_folder: Path, before: Mark, code: int) -> Ended | None:
    """Who was killed, if srun's `code` says that a rank was, and nobody has said more of it than that a connection broke."""
    said = word_of(run_folder, before)
    if code <= 128 or (said and not said.get(LOST_PEER)):
        return None
    silent = [read_object(path) for path in (run_folder / PRESENT).glob("rank-*.json")]
    found = sorted((one["rank"], str(one.get("node"))) for one in silent if type(one.get("rank")) is int)
    if not found:
        return None
    ranks, nodes = [rank for rank, _ in found], sorted({node for _, node in found})
    size = max((one["size"] for one in silent if type(one.get("size")) is int), default=0)
    left = {path.stem for path in (run_folder / PRESENT).glob(f"rank-*{LEFT}")}
    never = [rank for rank in range(size) if rank not in ranks and f"rank-{rank}" not in left]
    first = f"{_names(never)} ended before {'they' if len(never) > 1 else 'it'} had begun; " if never else ""
    where = f"{', '.join(nodes[:8])}{' ...' if len(nodes) > 8 else ''}"
    reason = f"{first}{_names(ranks)} on {where} {_in_words(code, 'were' if len(ranks) > 1 else 'was')}"
    return Ended("killed", reason, EXIT_REQUEUE, facts={key: said[key] for key in ("attempt",) if key in said})


def _names(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{more}"


def forget_ranks(run_folder: Path) -> None:
    """Before ranks are started: who was there in the attempt before counts no more."""
    for path in (run_folder / PRESENT).glob("rank-*"):
        path.unlink(missing_ok=True)


def _in_words(code: int | None, was: str = "it was") -> str:
    if code is None:
        return "it ended without a word"
    number = -code if code < 0 else code - 128
    try:
        return f"{was} ended by {signal.Signals(number).name} and said nothing"
    except ValueError:
        return f"{was.removesuffix('was').removesuffix('were')}ended with code {code} and said nothing"
