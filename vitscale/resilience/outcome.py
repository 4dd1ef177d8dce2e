"""How a run ended, for people, for scripts and for the next attempt: outcome.json in the run folder."""

import json
import time
from pathlib import Path
from typing import Any

from vitscale.checkpoint.files import write_json
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT

FILE = "outcome.json"
STATES = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong input", EXIT_FAILED: "failed", EXIT_REQUEUE: "stopped early"}
# A cause is one of these few words, since it becomes a label of a metric; what is not told follows from the exit code.
CAUSES = ("done", "wrong_input", "crash", "killed", "signal", "time_limit", "preemption", "hang", "nonfinite", "spike", "preflight",
          "restarts")
_LIKELY = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong_input", EXIT_FAILED: "crash", EXIT_REQUEUE: "killed"}


def write_outcome(run_folder: Path, exit_code: int, reason: str, *, cause: str | None = None, **facts: Any) -> None:
    """{state, exit_code, cause, reason, time, ...}; replaces that of an earlier attempt.  `cause` is one of CAUSES."""
    state, cause = STATES[exit_code], cause or _LIKELY[exit_code]
    if cause not in CAUSES:
        raise ValueError(f"{cause!r} is no cause; the causes are {', '.join(CAUSES)}")
    write_json(run_folder / FILE, {"state": state, "exit_code": exit_code, "cause": cause, "reason": reason, "time": time.time(), **facts})


def read_outcome(run_folder: Path) -> dict[str, Any]:
    """What the last attempt that could say so said of its end; {} where none has, or the file is damaged."""
    try:
        outcome = json.loads((run_folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return outcome if isinstance(outcome, dict) else {}
