"""Why SLURM ends a job, from what it says of the job while it does: cancelled, requeued, a node lost, preempted, at its time limit.

What SLURM 22.05 and later show at that moment (measured: tests/cluster/test_ending.py):

    by                          JobState     besides
    scancel                     COMPLETING   Restarts as this attempt knows it
    the time limit              COMPLETING   Reason=TimeLimit; before that RUNNING with EndTime near
    scontrol requeue            COMPLETING   Restarts one more than this attempt knows; Reason=job_requeued_in_held_state if held
    preemption with GraceTime   RUNNING      PreemptTime
    preemption without          COMPLETING   as after scontrol requeue
    a node down                 COMPLETING   as after scontrol requeue, or scancel where the job may not be requeued; the node is DOWN
"""

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

ANSWER_S = 5.0          # SLURM may leave a job no more than KillWait, 30 s by default
NEAR_S = 900.0          # a job that is asked to stop longer before its end is not asked because of that end
TAKEN = ("preemption", "cancelled", "requeued", "node_failure")     # causes by which a run lost its nodes: nothing is wrong with it
FACTS = "VITSCALE_JOB_FACTS"    # what `scontrol show job --oneliner` said, where the ranks have no scontrol: in containers


@dataclass(frozen=True)
class Ending:
    """`cause`: cancelled, requeued, node_failure, preemption, time_limit or signal; `words` say it of the job."""

    cause: str
    words: str


def ending(env: Mapping[str, str] = os.environ) -> Ending | None:
    """Why this process's job is being ended, as SLURM says now; None outside of jobs, and where it cannot be asked."""
    job = env.get("SLURM_JOB_ID")
    if not job:
        return None
    said = env.get(FACTS) or _said(env, "scontrol", "show", "job", "--oneliner", job)
    if "JobState=" not in said:
        return None
    facts = facts_of(said)
    nodes = env.get("SLURM_JOB_NODELIST", "")
    listed = _said(env, "sinfo", "--noheader", "--Node", f"--nodes={nodes}", "--format=%N|%T|%E") if nodes else ""
    restart = env.get("SLURM_RESTART_COUNT", "0")
    return judge(facts, int(restart) if restart.isdecimal() else 0, down_of(listed), time.time())


def facts_of(line: str) -> dict[str, str]:
    """What `scontrol show job --oneliner` says; times as seconds since 1970 (SLURM_TIME_FORMAT=%s) or as they are."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def down_of(listed: str) -> dict[str, str]:
    """Nodes that are down, and why, from lines `node|state|reason`."""
    lines = [line.split("|", 2) for line in listed.splitlines()]
    return {line[0]: line[2].strip() for line in lines if len(line) == 3 and line[1].lower().startswith(("down", "fail", "not_resp"))}


def judge(facts: Mapping[str, str], restart: int, down: Mapping[str, str], now: float) -> Ending | None:
    """`facts` of the job; `restart`: how often it had been restarted when this attempt began; `down`: its nodes that are, with reasons.
    None: SLURM is not ending it, as far as it says."""
    job, state, restarts = f"job {facts.get('JobId', '?')}", facts.get("JobState", ""), facts.get("Restarts", "0")
    again = restarts.isdecimal() and int(restarts) > restart
    if down and (again or state not in ("RUNNING", "SUSPENDED")):
        said = ", ".join(f"{node} ({reason})" if reason not in ("", "none") else node for node, reason in down.items())
        return Ending("node_failure", f"{job} lost its node {said}" if len(down) == 1 else f"{job} lost its nodes {said}")
    if again or state in ("REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
        held = " and is held there until `scontrol release`" if "held" in facts.get("Reason", "").lower() else ""
        by = "by `scontrol requeue`, its own script, or a preemption without grace"
        return Ending("requeued", f"{job} was put back into the queue{held}: {by}")
    if facts.get("PreemptTime", "None") not in ("None", "Unknown", "N/A", "") or state == "PREEMPTED":
        return Ending("preemption", f"{job} is preempted")
    end = _seconds(facts.get("EndTime", ""))
    if facts.get("Reason") == "TimeLimit" or state == "TIMEOUT" or (state == "RUNNING" and end is not None and end - now < NEAR_S):
        return Ending("time_limit", f"{job} is at its time limit ({facts.get('TimeLimit', '?')})")
    if state in ("COMPLETING", "CANCELLED"):
        return Ending("cancelled", f"{job} was cancelled (scancel)")
    if state in ("RUNNING", "SUSPENDED"):
        return Ending("signal", f"sent to {job} by a person or a program; SLURM is not ending it")
    return None


def _seconds(text: str) -> float | None:
    """Of a time as SLURM writes it: 2026-11-29T23:10:22, or seconds since 1970."""
    if text.isdecimal():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _said(env: Mapping[str, str], *command: str) -> str:
    """What one of SLURM's programs answers in time; "" if it does not, or there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ANSWER_S,
                              env={**env, "SLURM_TIME_FORMAT": "%s"}).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
