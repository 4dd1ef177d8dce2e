"""How a try to train ended, by what it left behind: its own word, or its exit code."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitscale.cluster.runfolder import OUTCOME, mark, read_object

Mark = list[int] | None     # of outcome.json when a try began: what has changed since is of this try, whatever any clock says


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


def _in_words(code: int | None) -> str:
    if code is None:
        return "it ended without a word"
    number = -code if code < 0 else code - 128
    try:
        return f"it was ended by {signal.Signals(number).name} and said nothing"
    except ValueError:
        return f"it ended with code {code} and said nothing"
