"""SLURM's programs, asked with a time limit; what they refuse is told in their own words."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import EXIT_REQUEUE, ClusterError

TIMEOUT_S = 60.0        # SLURM's own is MessageTimeout, 10 s by default, which some requests wait for twice
_JOB = re.compile(r"^[0-9]{1,12}(_[0-9]{1,9})?$")
# How programs say that they had no answer: of SLURM's errors (slurm_errno.h) those of communication and authentication, of a backup that is
# not in charge yet, and of a slurmctld that has too much to do.  scontrol calls a lost connection an unexpected message.
_SILENCE = re.compile(
    r"contact slurm controller|timed out|unexpected message|communication|message (send|receive) failure|zero bytes|authentication error"
    r"|munge|standby mode|temporarily|try again later|connection (refused|failure|reset)|rate limit|backoff", re.IGNORECASE)
_FIELDS = "%i|%T|%M|%D|%r|%j"       # the job's name comes last: it may hold anything


class NoAnswer(ClusterError):
    """SLURM is there, and does not answer: nothing is known of its queue.  The same command may succeed later."""

    exit_code = EXIT_REQUEUE


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
    """The number of the new job, which waits until job `after` has ended.  Raises ClusterError, NoAnswer if nothing was submitted."""
    dependency = [f"--dependency=afterany:{after}"] if after else []
    try:
        answer = ask("sbatch", "--parsable", *dependency, str(script))
    except NoAnswer as error:
        if "contact slurm controller" in str(error):
            raise NoAnswer(f"{error}; nothing was submitted") from None
        raise ClusterError(f"{error}, but the job may be in the queue: submit again only if `squeue --me` does not list it") from None
    number = answer.strip().split(";")[0]       # "123;cluster" where there are several
    if not is_job(number):
        raise ClusterError(f"sbatch gave no job number but {number[:80]!r}; look into squeue before you submit again")
    return number


def cancel(jobs: Iterable[str]) -> None:
    """Raises ClusterError, NoAnswer if some of them may not have been."""
    ask("scancel", *jobs)


def queue() -> list[Queued] | None:
    """The user's own jobs, tasks of arrays one by one; None where there is no SLURM.  Raises ClusterError, NoAnswer."""
    if shutil.which("squeue") is None:
        return None
    answer = ask("squeue", "--me", "--array", "--noheader", f"--format={_FIELDS}")
    lines = [line.split("|", 5) for line in answer.splitlines()]
    return [Queued(*fields) for fields in lines if len(fields) == 6]


def ask(*command: str) -> str:
    """What a program of SLURM prints.  Raises ClusterError for what it refuses, NoAnswer where nobody answers it."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise ClusterError(f"{command[0]}: no such program here; this wants a machine from which jobs are submitted to SLURM") from None
    except OSError as error:
        raise ClusterError(f"{command[0]}: cannot be started ({error})") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"slurmctld does not answer: {command[0]} waited for {TIMEOUT_S:.0f} s; try again") from None
    if answer.returncode != 0:
        said = _last_lines(answer.stderr)
        if _SILENCE.search(said):
            raise NoAnswer(f"slurmctld does not answer: {said}; try again")
        raise ClusterError(f"{command[0]} refuses: {said}")
    return answer.stdout


def _last_lines(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return "; ".join(line.strip() for line in lines[-3:]) or "it says nothing"
