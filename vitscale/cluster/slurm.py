"""SLURM's programs, asked with a time limit; what they refuse is told in their own words."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import ClusterError

TIMEOUT_S = 30.0
_JOB = re.compile(r"^[0-9]{1,12}(_[0-9]{1,9})?$")
_FIELDS = "%i|%T|%M|%D|%r|%j"       # the job's name comes last: it may hold anything


def is_job(text: object) -> bool:
    """Whether `text` is the number of a job or of an array's task: 123 or 123_4."""
    return isinstance(text, str) and _JOB.match(text) is not None


@dataclass(frozen=True)
class Queued:
    """One line of squeue."""

    job: str
    state: str
    elapsed: str
    nodes: str
    reason: str
    name: str


def submit(script: Path, after: str | None = None) -> str:
    """The number of the new job, which waits until job `after` has ended.  Raises ClusterError."""
    dependency = [f"--dependency=afterany:{after}"] if after else []
    number = _ask("sbatch", "--parsable", *dependency, str(script)).strip().split(";")[0]      # "123;cluster" where there are several
    if not is_job(number):
        raise ClusterError(f"sbatch gave no job number but {number[:80]!r}; look into squeue before you submit again")
    return number


def cancel(jobs: Iterable[str]) -> None:
    """Raises ClusterError."""
    _ask("scancel", *jobs)


def queue() -> list[Queued] | None:
    """The user's own jobs, tasks of arrays one by one; None where there is no SLURM, or it does not answer."""
    try:
        answer = _ask("squeue", "--me", "--array", "--noheader", f"--format={_FIELDS}")
    except ClusterError:
        return None
    lines = [line.split("|", 5) for line in answer.splitlines()]
    return [Queued(*fields) for fields in lines if len(fields) == 6]


def _ask(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise ClusterError(f"{command[0]}: no such program here; this wants a machine from which jobs are submitted to SLURM") from None
    except OSError as error:
        raise ClusterError(f"{command[0]}: cannot be started ({error})") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]}: no answer within {TIMEOUT_S:.0f} s; look whether it came through before you try again") from None
    if answer.returncode != 0:
        raise ClusterError(f"{command[0]} refuses: {_last_lines(answer.stderr)}")
    return answer.stdout


def _last_lines(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return "; ".join(line.strip() for line in lines[-3:]) or "it says nothing"
