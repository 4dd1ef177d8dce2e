"""How a run ended, for people, for scripts and for the next attempt: outcome.json in the run folder."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.cluster.ending import NEAR_S, ending
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT
from vitscale.files import write_json
from vitscale.metrics.system import CAUSES
from vitscale.processes import moment
from vitscale.runfolder import OUTCOME as FILE
from vitscale.runfolder import reached, read_object

log = logging.getLogger(__name__)
STATES = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong input", EXIT_FAILED: "failed", EXIT_REQUEUE: "stopped early"}
_TOLD: set[tuple[str, Any, str]] = set()     # what this process has said to be lost, by run folder and attempt
_LIKELY = {EXIT_DONE: "done", EXIT_WRONG_INPUT: "wrong_input", EXIT_FAILED: "crash", EXIT_REQUEUE: "killed"}


def write_outcome(run_folder: Path, exit_code: int, reason: str, *, cause: str | None = None, **facts: Any) -> None:
    """{state, exit_code, cause, reason, time, ...}; replaces that of an earlier attempt.  `cause` is one of CAUSES.

    Where steps are in no checkpoint, `reason` says how many, and `lost_steps` and `checkpoint_step` are there too.
    On a full disk only the log has it, and the exit code says enough."""
    state, cause = STATES[exit_code], cause or _LIKELY[exit_code]
    if cause not in CAUSES:
        raise ValueError(f"{cause!r} is no cause; the causes are {', '.join(CAUSES)}")
    if exit_code != EXIT_DONE:
        so_far = reached(run_folder, facts.get("step"))
        if so_far.lost:
            about = str(run_folder), facts.get("attempt"), so_far.words
            if about not in _TOLD:      # an attempt may end twice: asked to, and cut short while it does
                log.warning("%s", so_far.words)
            _TOLD.add(about)
            reason = f"{reason}; {so_far.words}"
        facts |= {"lost_steps": so_far.lost, "checkpoint_step": so_far.checkpoint}
    outcome = {"state": state, "exit_code": exit_code, "cause": cause, "reason": reason, "time": time.time(),
               "moment": moment(time.time()), **facts}
    try:
        write_json(run_folder / FILE, outcome)
    except OSError as error:
        log.error("%s cannot be written (%s); it would say: %s: %s", run_folder / FILE, error.strerror or error, state, reason)


@dataclass(frozen=True)
class StopReason:
    """Why a run was asked to stop: one of CAUSES, and that in words."""

    cause: str
    reason: str


def why_stopped(sent: str | None, when: str = "", ask: bool = True) -> StopReason:
    """Why the signal `sent` came (None: another rank, or the launcher, received it), and `when`: "before the first step".

    If this process is the one to `ask`, SLURM is asked in a job of it, for a few seconds at most: a person who cancels, an administrator
    who requeues, a lost node, a preemption and the time limit all come as the same signal.  Where SLURM does not answer, the end of the
    job decides, else the signal.
    """
    reason = f"asked to stop by {sent or 'a signal to another rank'}{f' {when}' if when else ''}"
    if sent == "SIGXCPU":       # a limit of CPU time
        return StopReason("time_limit", reason)
    if sent in ("SIGINT", "SIGHUP") or "SLURM_JOB_ID" not in os.environ:      # from a keyboard, from a terminal that is gone
        return StopReason("signal", reason)
    found = ending() if ask else None
    if found is not None:
        return StopReason(found.cause, f"{reason}: {found.words}")
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return StopReason("time_limit" if float(end) - time.time() < NEAR_S else "preemption", reason)
    return StopReason("time_limit" if sent in ("SIGUSR1", "SIGUSR2") else "preemption", reason)


def read_outcome(run_folder: Path) -> dict[str, Any]:
    """What the last attempt that could say so said of its end; {} where none has, or the file is damaged."""
    return read_object(run_folder / FILE)
