"""Jobs of SLURM, and what runs are doing."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vitscale.cli.app import Overrides, RecipeArgument, RunArgument, app, job_app, tell
from vitscale.errors import UserError


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe as for train; or for an array a folder of recipes, or a list.")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="Default: cluster.yaml's.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="And ranks; default: cluster.yaml's.")] = None,
    limit: Annotated[str | None, typer.Option("--time", metavar="[D-]HH:MM:SS", help="Time limit; default: cluster.yaml's.")] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Start when that job has ended.")] = None,
    chain: Annotated[str | None, typer.Option(metavar="K|auto", help="K jobs one after the other, where jobs may not requeue.")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Of an array: tasks that run at the same time; default: all.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./slurm/cluster.yaml, then the user's own.")] = None,
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="As for train; of one run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the script; submit nothing.")] = False,
) -> None:
    """Plan a run, or a folder of them as an array; write the batch script, show it, and submit it to SLURM."""
    from vitscale.cluster.bill import describe
    from vitscale.cluster.site import find_site
    from vitscale.cluster.submit import plan_run, plan_sweep, send, with_options
    from vitscale.errors import ClusterError

    found, source = find_site(cluster)
    site = with_options(found, nodes=nodes, gpus_per_node=gpus_per_node, time=limit)
    if Path(recipe).is_dir() or Path(recipe).suffix == ".txt":
        if chain is not None:
            raise ClusterError("--chain is for one run; the tasks of an array requeue themselves")
        planned = plan_sweep(Path(recipe), overrides or [], site, after, at_once)
    else:
        if at_once is not None:
            raise ClusterError("--at-once is for an array: a folder of recipes, or a .txt file that lists them")
        planned = plan_run(recipe, overrides or [], site, after, chain, tell, accept_changes)
    print(f"cluster {source or 'not described: no cluster.yaml found, SLURM decides'}")
    for folder, its in zip(planned.folders, planned.bills, strict=True):
        print("\n".join([f"\n{folder}", *describe(its, site)]))
    print(f"\n{planned.path}:\n\n{planned.script}")
    if not dry_run:
        print(f"submitted: {' '.join(send(planned))}")


@app.command()
def status(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, or one run's.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="For scripts: a list of objects.")] = False,
    all_runs: Annotated[bool, typer.Option("--all", help="Also those for which a terminal has no lines; a pipe gets all.")] = False,
) -> None:
    """How the runs of a folder are doing, and which jobs are in SLURM's queue: on one screen."""
    import json
    import shutil

    from vitscale.cluster.slurm import queue
    from vitscale.cluster.status import as_json as plain
    from vitscale.cluster.status import on_one_screen, others, runs_in, status_of, table
    from vitscale.errors import ClusterError

    folders, why = runs_in(runs), "there is no squeue here"
    try:
        jobs = queue()
    except ClusterError as error:
        jobs, why = None, str(error)
    found = [status_of(folder, jobs) for folder in folders]
    if as_json:
        if jobs is None and any(one.job for one in found):
            print(f"vitscale: what is in SLURM's queue is not known: {why}", file=sys.stderr)
        print(json.dumps(plain(found), indent=1))
        return
    width, height = shutil.get_terminal_size((200, 50))
    below = others(folders, jobs, width, why)
    room = height - len(below) - 3 if sys.stdout.isatty() and not all_runs else len(found)      # the heads, what is left out, the prompt
    shown, rest = on_one_screen(found, room)
    for line in [*table(shown, width), *([rest] if rest else []), *below]:
        print(line)


@app.command()
def logs(
    run: RunArgument,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until interrupted.")] = False,
) -> None:
    """What a rank of a run has written down last."""
    import contextlib

    from vitscale.cluster.logs import logs_of, show
    from vitscale.runfolder import find_run

    with contextlib.suppress(KeyboardInterrupt):        # that is how following ends
        show(logs_of(find_run(run), rank), lines, follow, lambda line: print(line, flush=True))


@app.command()
def cancel(runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or names of some in ./runs.")]) -> None:
    """End the jobs of runs, those that wait too.  Running ones save first, as far as SLURM's KillWait lets them; none is requeued."""
    from vitscale.cluster.submit import cancel_runs
    from vitscale.runfolder import find_run

    print(f"cancelled: {' '.join(cancel_runs([find_run(run) for run in runs]))}")


@job_app.command("begin")
def job_begin(recipe: RecipeArgument, overrides: Overrides = None,
              accept_changes: Annotated[bool, typer.Option("--accept-changes", help="As for train.")] = False) -> None:
    """Before the ranks start: checks the recipe, notes the job in the run folder; answers with that folder and the token of this try."""
    from vitscale.cluster.attempt import begin
    from vitscale.cluster.tries import RestartLoop

    try:
        begun = begin(recipe, overrides or [], accept_changes=accept_changes)
    except UserError as error:
        if isinstance(error, RestartLoop):
            _say_outcome(error.run_folder, error.exit_code, str(error), **error.facts)
        _answer("code", str(error.exit_code))
        raise
    _answer("folder", str(begun.folder))
    _answer("try", begun.token)
    _answer("code", "0")


@job_app.command("coordinates")
def job_coordinates(out: Path, recipes: list[str]) -> None:
    """The coordinate check of muP over the widths of some recipes; writes OUT; exit code 3 if it does not pass."""
    from vitscale.errors import EXIT_FAILED
    from vitscale.recipe import load_recipe
    from vitscale.scaling.files import write_json
    from vitscale.train.coordinates import coordinate_check

    told = coordinate_check([load_recipe(file) for file in recipes])
    write_json(out, told)
    print(told["verdict"])
    if not told["passed"]:
        raise typer.Exit(EXIT_FAILED)


@job_app.command("fork-server")
def job_fork_server() -> None:
    """Runs of a sweep, asked for on stdin, as forks of this process."""
    from vitscale.train.fork_server import serve

    serve()


@job_app.command("end")
def job_end(folder: Path, code: int, asked_after: Annotated[float | None, typer.Argument(metavar="[SECONDS]")] = None) -> None:
    """After the ranks have ended with CODE, and the script was told to stop SECONDS after its start: how to go on, and which nodes to
    leave out."""
    from vitscale.cluster.attempt import JobStopped, end
    from vitscale.resilience.lasterror import tell_for_job
    from vitscale.resilience.outcome import why_stopped

    tell_for_job(folder)
    asked = None
    if asked_after is not None:
        why = why_stopped("SIGUSR2", f"{asked_after:.0f} s after the job's start")
        asked = JobStopped(why.cause, why.reason, asked_after)
    found = end(folder, code, asked)
    if found.outcome is not None:
        _say_outcome(folder, **found.outcome)
        print(f"vitscale: {found.outcome['reason']}", file=sys.stderr)
    _answer("exclude", ",".join(found.exclude))
    _answer("code", str(found.code))
    raise typer.Exit(found.code)


def _answer(name: str, value: str) -> None:
    """A line for launch/batch.sh, which tells it by its first word from whatever else may be printed on the way."""
    print(f"vitscale-{name}: {value}", flush=True)


def _say_outcome(folder: Path, exit_code: int, reason: str, **facts: Any) -> None:
    from vitscale.resilience.outcome import write_outcome

    write_outcome(folder, exit_code, reason, **facts)
