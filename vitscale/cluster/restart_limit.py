"""The sentence with which a run is not started again: how often, from where, what ended it, what to do.  Pure."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitscale.cluster.ended import Ended
from vitscale.cluster.ending import TAKEN

_MEND = "the logs are in {logs}; mend the cause"


def in_words(run_folder: Path, ends: Sequence[Ended], lost: int, furthest: int, limit: int, max_restarts: int, in_slurm: bool) -> str:
    """`ends`: of the tries that got no further than step `furthest`, in their order; `lost`: how many more SLURM has counted of which
    nothing is known; `limit`: of them in a row."""
    count = len(ends) + lost
    where = f"step {furthest}" if furthest else "the very beginning"
    setting = f"resilience.max_restarts={max_restarts}" if limit == max_restarts else f"{limit} are enough however they end"
    attempts = f"{count} attempts in a row began at {where} and ended" if count > 1 else f"the last attempt began at {where} and ended"
    again = "submit it again" if in_slurm else "run the same command again"
    return (f"{run_folder}: {attempts} before the next checkpoint; no other is made ({setting}): {_what_ended(ends, lost)}; "
            f"{_advice(ends, run_folder)}, then {again}: the count begins afresh")


def _what_ended(ends: Sequence[Ended], lost: int) -> str:
    """For each cause how often, and the last reason of it."""
    causes = Counter(one.cause for one in ends)
    last = {one.cause: one.reason for one in ends}
    told = [f"{count} x {cause} ({'the last: ' if count > 1 else ''}{last[cause]})" for cause, count in causes.items()]
    if lost:
        told.append(f"{lost} of which nothing could be noted here, but SLURM counts them")
    return ", ".join(told)


def _advice(ends: Sequence[Ended], run_folder: Path) -> str:
    causes = {one.cause for one in ends}
    asked_s = [one.facts["asked_after_s"] for one in ends if "asked_after_s" in one.facts]
    if causes == {"time_limit"} and asked_s:
        low, high = f"{min(asked_s):.0f}", f"{max(asked_s):.0f}"
        when = low if low == high else f"{low} to {high}"
        return (f"the time limit leaves no time: the signal to stop came {when} s after the job's start; give it more time (--time), or "
                "a notice that is shorter than that (--signal)")
    if causes <= set(TAKEN) and causes:
        return "the nodes were taken away each time; ask for some that are not, or write checkpoints more often (checkpoint.every)"
    return _MEND.format(logs=run_folder / "logs")
