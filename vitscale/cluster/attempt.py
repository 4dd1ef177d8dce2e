"""What a batch script asks before and after the ranks run: where the run lies, whether it is over, whether the job shall go on."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitscale.cluster.ended import Ended, Mark, ended, forget_ranks, killed, word_of
from vitscale.cluster.resumable import look
from vitscale.cluster.tries import FINAL, VARIABLE, RestartLoop, Tries, noted
from vitscale.errors import EXIT_DONE, EXIT_REQUEUE, RecipeError, UserError
from vitscale.recipe import load_recipe
from vitscale.recipe.schema import Resilience
from vitscale.runfolder import BEGUN, JOB, OUTCOME, highest_lease, mark, marks, read_object, run_folder, write_object


@dataclass(frozen=True)
class Begun:
    """A job that may start its ranks."""

    folder: Path
    token: str      # of its try: for VITSCALE_TRY


class Unwritable(UserError):
    """The run folder takes nothing now, which may pass: the job goes back into the queue."""

    exit_code = EXIT_REQUEUE


def begin(recipe: str, overrides: Sequence[str], env: Mapping[str, str] = os.environ, accept_changes: bool = False) -> Begun:
    """Note in the run folder which job is at work, and its try.

    Raises RecipeError before any rank has started, and CheckpointError if it is not the recipe of the run, unless `accept_changes`;
    RunOver for a run that is done, and in a later job of a chain whose run is over; RestartLoop if the tries before this one are enough;
    Unwritable in a restarted job, for a run folder that took notes before.
    """
    read = load_recipe(recipe, overrides)
    folder = run_folder(read)
    array = env.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{env.get('SLURM_ARRAY_TASK_ID')}" if array else env.get("SLURM_JOB_ID")
    _refuse_if_over(folder, job)
    if (over := look(read, accept_changes)) is not None:
        raise RunOver(over, EXIT_DONE)
    tries = Tries(folder, read.resilience.max_restarts, env)
    one = tries.begin(batch=True)
    restarts = int(env.get("SLURM_RESTART_COUNT", "0"))
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        write_object(folder / BEGUN, {
            "job": job, "restart": restarts, "nodes": env.get("SLURM_JOB_NODELIST"), "began": time.time(),
            "before": {"lease": highest_lease(folder), **marks(folder), "outcome": tries.before(one)},
        })
        forget_ranks(folder)
        if not tries.is_noted(one):
            raise OSError(0, f"{tries.folder} takes no new name")
    except OSError as error:
        wrong = f"runs_dir: the run folder {folder} cannot be written ({error.strerror})"
        if restarts:
            raise Unwritable(f"{wrong}; SLURM restarts the job, and counts how often") from None
        raise RecipeError(f"{wrong}; choose another runs_dir") from None
    return Begun(folder, one.token)


class RunOver(UserError):
    """The run is done, or an earlier job of the chain has brought it to its end; `exit_code` is what that was."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _refuse_if_over(folder: Path, job: str | None) -> None:
    """A chain is submitted for as long as the run might take; what is left of it when the run is over ends at once."""
    chain = read_object(folder / JOB)
    jobs = chain.get("jobs")
    if not isinstance(jobs, list) or job not in jobs[1:]:
        return
    outcome = read_object(folder / OUTCOME)
    code = outcome.get("exit_code")
    if code in FINAL and mark(folder / OUTCOME) != chain.get("outcome_before"):
        raise RunOver(f"{folder}: an earlier job of this chain has ended the run: {outcome.get('state')}: {outcome.get('reason')}", code)


@dataclass(frozen=True)
class JobStopped:
    """The batch script was told to stop."""

    cause: str          # one of resilience/outcome.py's
    reason: str
    after_s: float      # since the job's start


@dataclass(frozen=True)
class NextMove:
    """`code` 0, 2, 3: the job ends with it; 75: it goes on, without the nodes of `exclude`."""

    code: int
    exclude: tuple[str, ...] = ()
    outcome: Mapping[str, Any] | None = None        # {exit_code, reason, cause, ...}: what outcome.json should say; None: it does


def end(folder: Path, code: int, asked: JobStopped | None = None, env: Mapping[str, str] = os.environ) -> NextMove:
    """What is to follow when srun has ended with `code`.  Notes how the try ended.

    srun tells the highest of all ranks' codes, in which a 3 is lost beside the 75 of the ranks that were left alone, or beside a kill's
    137.  So what rank 0 wrote of this attempt counts first.
    """
    found = noted(folder, env.get(VARIABLE, ""))
    tries = Tries(folder, (found[1] if found else 0) or Resilience().max_restarts, env)
    before = tries.before(found[0]) if found else _before(folder)
    how = _how(folder, before, code, asked)
    if found:
        tries.end(found[0], how)
    if how.told and how.exit_code in FINAL:
        return NextMove(how.exit_code)
    if code in FINAL:
        return NextMove(code, outcome=None if code == 0 else {"exit_code": code, "reason": f"a rank {how.reason.removeprefix('it ')}"})
    try:
        tries.refuse_another()
    except RestartLoop as error:
        return NextMove(error.exit_code, outcome={"exit_code": error.exit_code, "reason": str(error), **error.facts})
    said = None if how.told else {"exit_code": EXIT_REQUEUE, "reason": how.reason, "cause": how.cause, **how.facts}
    return NextMove(EXIT_REQUEUE, _nodes(word_of(folder, before).get("exclude")), said)


def _before(folder: Path) -> Mark:
    """What outcome.json was when the job began, where its try is not to be found any more."""
    before = read_object(folder / BEGUN).get("before")
    return before["outcome"] if isinstance(before, dict) and "outcome" in before else mark(folder / OUTCOME)


def _how(folder: Path, before: Mark, code: int, asked: JobStopped | None) -> Ended:
    how = killed(folder, before, code) or ended(folder, before, code)
    if asked is None:
        return how
    if not how.told and how.cause == "killed" and code not in FINAL:
        how = Ended(asked.cause, asked.reason, EXIT_REQUEUE)
    return replace(how, facts={**how.facts, "asked_after_s": asked.after_s})


def _nodes(given: Any) -> tuple[str, ...]:
    """Names that SLURM can be given; whatever else a damaged file holds is passed over."""
    listed = given if isinstance(given, list) else []
    return tuple(name for name in listed if isinstance(name, str) and name.replace("-", "").replace(".", "").replace("_", "").isalnum())
