"""From a recipe, or a folder of recipes, to jobs in SLURM's queue: the bill, the script, sbatch, and a note in the run folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.cluster import slurm
from vitscale.cluster.attempt import RunOver
from vitscale.cluster.bill import Bill, bill, links_needed, ranks_per_node
from vitscale.cluster.resumable import look
from vitscale.cluster.script import Job, pattern_of, render
from vitscale.cluster.site import Site
from vitscale.cluster.state import jobs_of
from vitscale.errors import EXIT_DONE, ClusterError, RecipeError
from vitscale.recipe import find_recipe, load_recipe
from vitscale.recipe.known import Note
from vitscale.recipe.load import check_section
from vitscale.runfolder import JOB, OUTCOME, mark, run_folder, write_object

MOST_LINKS = 100        # more are a slip of the pen


@dataclass(frozen=True)
class Submission:
    """What will be submitted, not yet submitted."""

    script: str
    path: Path                                          # where the script is kept
    folders: tuple[Path, ...]                           # the run folder; of an array, one for each task
    bills: tuple[Bill, ...]                             # one for each run folder
    array: bool = False
    links: int = 1                                      # jobs one after the other


def plan_run(recipe: str, overrides: Sequence[str], site: Site, after: str | None = None, chain: str | None = None,
             tell: Callable[[Note], None] | None = None, accept_changes: bool = False) -> Submission:
    """One run.  `chain`: how many jobs ("auto": as many as it takes) follow each other instead of requeueing.  `tell`: as load_recipe()
    has it.  Raises UserError, also for a run that is done, and, unless `accept_changes`, for a recipe that is not the run's."""
    read = load_recipe(recipe, overrides, tell)
    if (over := look(read, accept_changes)) is not None:
        raise RunOver(over, EXIT_DONE)
    folder, its_bill = run_folder(read), bill(read, site)
    links = _links(chain, its_bill, site)
    if links == 1 and not site.requeue:
        raise ClusterError("this cluster forbids jobs to requeue themselves (requeue: false in cluster.yaml): say --chain K for K jobs one "
                           "after the other, or --chain auto")
    job = Job(read.name, f"{pattern_of(folder)}/logs/job-%j.log", ranks_per_node(read, site), _usable(recipe),
              [*overrides, *(["--accept-changes"] if accept_changes else [])], after=_job(after), requeue=site.requeue and links == 1)
    return Submission(render(job, site), folder / "job.sh", (folder,), (its_bill,), links=links)


def plan_sweep(sweep: Path, overrides: Sequence[str], site: Site, after: str | None = None, at_once: int | None = None) -> Submission:
    """A run for each recipe of a folder, or of a file that lists them, as an array.  Raises UserError."""
    files = recipes_of(sweep)
    read = [load_recipe(file, overrides) for file in files]
    for one in read:
        look(one, accept=False)
    folders = [run_folder(one) for one in read]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise RecipeError(f"{sweep}: several recipes have the run folder {', '.join(sorted(twice))}; give each a name of its own")
    if not site.requeue:
        raise ClusterError("this cluster forbids jobs to requeue themselves (requeue: false in cluster.yaml); an array cannot be a chain")
    job = Job("sweep", "sweep-%A_%a.log", max(ranks_per_node(one, site) for one in read), None, overrides, str(sweep), len(files), at_once,
              _job(after))
    beside = sweep if sweep.is_dir() else sweep.parent
    return Submission(render(job, site), beside / "job.sh", tuple(folders), tuple(bill(one, site) for one in read), array=True)


def recipes_of(sweep: Path) -> list[str]:
    """In the order in which launch/batch.sh counts them."""
    if sweep.is_dir():
        found = sorted(str(path) for path in sweep.glob("*.yaml") if not path.name.startswith("."))
    else:
        try:
            lines = [line.strip() for line in sweep.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{sweep}: cannot be read ({error})") from None
        found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise RecipeError(f"{sweep}: holds no recipes")
    return found


def send(submission: Submission) -> list[str]:
    """Write the script, submit it once for each link, note the jobs in the run folders; returns their numbers.  Raises ClusterError."""
    before = [mark(folder / OUTCOME) for folder in submission.folders]
    try:
        for folder in submission.folders:
            (folder / "logs").mkdir(parents=True, exist_ok=True)
        submission.path.write_text(submission.script, encoding="utf-8")
    except OSError as error:
        raise ClusterError(f"{submission.path}: cannot be written ({error.strerror})") from None
    jobs: list[str] = []
    try:
        for _ in range(submission.links):
            try:
                jobs.append(slurm.submit(submission.path, after=jobs[-1] if jobs else None))
            except ClusterError as error:
                if jobs:
                    raise ClusterError(f"{error}; of {submission.links} jobs {' '.join(jobs)} were submitted before") from None
                raise
    finally:        # what is in the queue is noted, also when a later link was refused
        if jobs:
            for number, (folder, outcome) in enumerate(zip(submission.folders, before, strict=True)):
                mine = [f"{job}_{number}" for job in jobs] if submission.array else jobs
                write_object(folder / JOB, {"jobs": mine, "time": time.time(), "outcome_before": outcome})
    return jobs


def cancel_runs(folders: Sequence[Path]) -> list[str]:
    """End the jobs of these runs that SLURM has; returns their numbers.  Raises ClusterError when a run has none."""
    queued = slurm.queue()
    if queued is None:
        raise ClusterError("squeue: no such program here, there is no SLURM; a run that was started by hand ends with Ctrl-C or kill -TERM")
    found: list[str] = []
    for folder in folders:
        known = jobs_of(folder)
        mine = [job for job in known if any(entry.job == job for entry in queued)]
        if not mine:
            raise ClusterError(f"{folder}: no job of yours in the queue belongs to it" + (f" (its last was {known[-1]})" if known else "")
                               + "; nothing was cancelled")
        found += mine
    slurm.cancel(found)
    return found


def with_options(site: Site, **options: int | str | None) -> Site:
    """The site with the keys that the command line gives instead; None: not given.  Raises ClusterError."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        changed = check_section(Site, site.model_dump() | given, "the command line and cluster.yaml")
    except RecipeError as error:
        raise ClusterError(str(error)) from None
    if changed.gpus_per_node < site.gpus_per_node and site.cpus_per_task is None:
        raise ClusterError(f"{changed.gpus_per_node} of a node's {site.gpus_per_node} GPUs want their share of its cores: give "
                           "cpus_per_task in cluster.yaml")
    return changed


def _links(chain: str | None, of: Bill, site: Site) -> int:
    if chain is None:
        return 1
    if chain == "auto":
        return links_needed(of, site)
    if not chain.isdecimal() or not 1 <= int(chain) <= MOST_LINKS:
        raise ClusterError(f"--chain wants auto or a number from 1 to {MOST_LINKS}, got {chain!r}")
    return int(chain)


def _usable(recipe: str) -> str:
    """A recipe as the script names it: a file as given, a shipped one by its path."""
    path = find_recipe(recipe)
    return f"./{path}" if str(path).startswith("-") else str(path)


def _job(number: str | None) -> str | None:
    if number is not None and not slurm.is_job(number):
        raise ClusterError(f"--after wants the number of a job, such as 12345 or 12345_6, got {number!r}")
    return number
