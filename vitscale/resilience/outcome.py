"""How a run ended, for people, for scripts and for the next attempt: outcome.json in the run folder."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT
from vitscale.files import write_json

log = logging.getLogger(__name__)
FILE = "outcome.json"
STATES = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong input", EXIT_FAILED: "failed", EXIT_REQUEUE: "stopped early"}
# A cause is one of these few words, since it becomes a label of a metric; what is not told follows from the exit code.
CAUSES = ("done", "wrong_input", "crash", "killed", "signal", "time_limit", "preemption", "hang", "nonfinite", "spike", "preflight",
          "bad_node", "disk", "restarts")
NEAR_S = 900.0      # a batch job that is asked to stop longer before its end is not asked because of that end
_LIKELY = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong_input", EXIT_FAILED: "crash", EXIT_REQUEUE: "killed"}


def write_outcome(run_folder: Path, exit_code: int, reason: str, *, cause: str | None = None, **facts: Any) -> None:
    """{state, exit_code, cause, reason, time, ...}; replaces that of an earlier attempt.  `cause` is one of CAUSES.
    On a full disk only the log has it, and the exit code says enough."""
    state, cause = STATES[exit_code], cause or _LIKELY[exit_code]
    if cause not in CAUSES:
        raise ValueError(f"{cause!r} is no cause; the causes are {', '.join(CAUSES)}")
    outcome = {"state": state, "exit_code": exit_code, "cause": cause, "reason": reason, "time": time.time(), **facts}
    try:
        write_json(run_folder / FILE, outcome)
    except OSError as error:
        log.error("%s cannot be written (%s); it would say: %s: %s", run_folder / FILE, error.strerror or error, state, reason)


def cause_of_stop(sent: str | None) -> str:
    """Why a run was asked to stop by the signal `sent` (None: another rank received it): a person's `signal`, or, in a SLURM job, its
    `time_limit` or a `preemption`.

    SLURM sends either signal for either reason, as the site has it; where it says when the job would end, that decides.
    """
    if "SLURM_JOB_ID" not in os.environ or sent == "SIGINT":
        return "signal"
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return "time_limit" if float(end) - time.time() < NEAR_S else "preemption"
    return "time_limit" if sent == "SIGUSR2" else "preemption"


def read_outcome(run_folder: Path) -> dict[str, Any]:
    """What the last attempt that could say so said of its end; {} where none has, or the file is damaged."""
    try:
        outcome = json.loads((run_folder / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return outcome if isinstance(outcome, dict) else {}
