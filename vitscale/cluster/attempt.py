"""What a batch script asks before and after the ranks run: where the run lies, whether it is over, whether the job shall go on."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.cluster.runfolder import BEGUN, JOB, OUTCOME, highest_lease, mark, read_object, run_folder, write_object
from vitscale.errors import EXIT_DONE, EXIT_FAILED, EXIT_REQUEUE, EXIT_WRONG_INPUT, RecipeError, UserError
from vitscale.recipe import load_recipe

NOT_BEGUN = 70          # no rank 0 ever held the run folder: an attempt that must not be repeated for ever
FINAL = (EXIT_DONE, EXIT_WRONG_INPUT, EXIT_FAILED)


def begin(recipe: str, overrides: Sequence[str], env: Mapping[str, str] = os.environ) -> Path:
    """Note in the run folder which job is at work; returns the folder.  Raises RecipeError before any rank has started.

    In a later job of a chain whose run is over: raises RunOver.
    """
    folder = run_folder(load_recipe(recipe, overrides))
    array = env.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{env.get('SLURM_ARRAY_TASK_ID')}" if array else env.get("SLURM_JOB_ID")
    _refuse_if_over(folder, job)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        write_object(folder / BEGUN, {
            "job": job, "restart": int(env.get("SLURM_RESTART_COUNT", "0")), "nodes": env.get("SLURM_JOB_NODELIST"), "began": time.time(),
            "before": {"lease": highest_lease(folder), "outcome": mark(folder / OUTCOME)},
        })
    except OSError as error:
        raise RecipeError(f"runs_dir: the run folder {folder} cannot be written ({error.strerror}); choose another runs_dir") from None
    return folder


class RunOver(UserError):
    """An earlier job of the chain has brought the run to its end; `exit_code` is what that was."""

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
class Verdict:
    """`code` 0, 2, 3: the job ends with it; 75: it goes on, without the nodes of `exclude`; NOT_BEGUN: training never began."""

    code: int
    exclude: tuple[str, ...] = ()


def verdict(folder: Path, code: int) -> Verdict:
    """What is to follow when srun has ended with `code`.

    srun tells the highest of all ranks' codes, in which a 3 is lost beside the 75 of the ranks that were left alone, or beside a kill's
    137.  So what rank 0 wrote of this attempt counts first.
    """
    before = read_object(folder / BEGUN).get("before")
    before = before if isinstance(before, dict) else {}
    outcome: dict[str, Any] = {}
    if mark(folder / OUTCOME) != before.get("outcome"):
        outcome = read_object(folder / OUTCOME)
    said = outcome.get("exit_code")
    if said in FINAL:
        return Verdict(said)
    if code in FINAL:
        return Verdict(code)
    begun = bool(outcome) or highest_lease(folder) != before.get("lease")
    return Verdict(EXIT_REQUEUE if begun else NOT_BEGUN, _nodes(outcome.get("exclude")))


def _nodes(given: Any) -> tuple[str, ...]:
    """Names that SLURM can be given; whatever else a damaged file holds is passed over."""
    listed = given if isinstance(given, list) else []
    return tuple(name for name in listed if isinstance(name, str) and name.replace("-", "").replace(".", "").replace("_", "").isalnum())

