"""From the command line to ranks: this process becomes one, or starts them.  Imports no torch before the inputs are known to be sound."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale.cluster.resumable import look
from vitscale.counts import plural
from vitscale.errors import EXIT_DONE, EXIT_REQUEUE, UserError
from vitscale.files import storage_errors
from vitscale.observe.console import make_console, setup_logging
from vitscale.plan.forecast import check_micro_batch
from vitscale.recipe import Recipe, load_recipe
from vitscale.recipe.known import Note
from vitscale.resilience.signals import StopFlag
from vitscale.shapes.families import check_model
from vitscale.shapes.tensor import check_tensor

log = logging.getLogger(__name__)


@storage_errors()
def train(file: str, overrides: Sequence[str], accept_changes: bool, keep_going: bool, stop: StopFlag) -> int:
    """Train `file` with `overrides` until `stop`; returns the exit code.  Raises UserError for what the user can mend.

    `keep_going`: ranks that this process starts are started again for as long as that may help.
    """
    # Before torch loads its OpenMP: threads that spin while they wait take the cores from the decoding threads.  On two cores beside
    # one other busy process that cost a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    setup_logging(make_console())
    from vitscale.parallel.rank_info import how_started

    found = how_started(os.environ)
    place = found.place
    speaks = place is None or (place.rank == 0 and not place.prepared)
    recipe = load_recipe(file, overrides, _tell if speaks else None, strict=True)
    check_model(recipe.model)       # raises what shows only once the size is known
    check_tensor(recipe)
    check_micro_batch(recipe)
    if place is None and (over := look(recipe, accept_changes)) is not None:
        log.info("%s", over)
        return EXIT_DONE
    if speaks:
        for note in found.notes:
            log.info(note)
        if place is not None:
            log.info(found.told)
        _say_where_to_look(recipe)
    if place is None:
        from vitscale.checkpoint.lease import refuse_if_held
        from vitscale.runfolder import run_folder
        from vitscale.train.prepare import prepare

        refuse_if_held(run_folder(recipe))
        prepared = prepare(recipe, on_progress=_show_indexing)
        if (over := look(recipe, accept_changes, prepared.train.hash, prepared.schedule.total)) is not None:
            log.info("%s", over)
            return EXIT_DONE
        log.info("run folder %s; metrics in %s", prepared.folder, prepared.folder / "metrics.jsonl")
        processes = recipe.parallel.processes or _local_gpus(recipe.parallel.device)
        log.info("%s: starting %s here", found.told, plural(processes, "rank"))
        if processes > 1 or keep_going:
            return _start_ranks(prepared.folder, processes, recipe.resilience.max_restarts, keep_going, stop)
    from vitscale.parallel.rank_info import RankInfo
    from vitscale.train.run import run

    try:
        with storage_errors():
            return run(recipe, place or RankInfo(prepared=True), stop, accept_changes)
    except UserError:
        raise
    except Exception as error:
        from vitscale.parallel.rank_info import node_name
        from vitscale.resilience.lasterror import note_error, say
        from vitscale.runfolder import run_folder

        place = place or RankInfo(prepared=True)
        failed = note_error(run_folder(recipe), error, rank=place.rank, size=place.size, node=node_name())
        say(error, failed)
        return failed.code


def _tell(note: Note) -> None:
    log.log(logging.WARNING if note.differs else logging.INFO, "%s", note.text)


def _say_where_to_look(recipe: Recipe) -> None:
    from vitscale.runfolder import MONITOR_PORT, page_id

    log.info("watch it: `vitscale monitor %s`, then http://127.0.0.1:%d/#/run/%s", shlex.quote(recipe.runs_dir), MONITOR_PORT,
             page_id(recipe.name))


def _start_ranks(folder: Path, processes: int, max_restarts: int, keep_going: bool, stop: StopFlag) -> int:
    """Start the ranks of this machine and see them to their end; returns the exit code of the run.

    While they end with 75, which says that another attempt may help, and nobody asked to stop, `keep_going` starts them again.  Raises
    RestartLoop, and writes it down as the outcome, when those that achieve nothing are enough.
    """
    from vitscale.checkpoint.lease import refuse_if_held
    from vitscale.cluster.ended import ended, word_of
    from vitscale.cluster.tries import VARIABLE, RestartLoop, Tries
    from vitscale.parallel.launch import launch, rank_command
    from vitscale.resilience.lasterror import tell_if_nobody_did
    from vitscale.resilience.outcome import read_outcome, why_stopped, write_outcome
    from vitscale.resilience.restarts import attempts_of
    from vitscale.runfolder import marks
    from vitscale.train.goodput import process_started

    setup_logging(make_console(), folder / "logs" / "rank-0.log")      # how ranks ended, and that they start again, is of the run's story
    started, tries, again = process_started(), Tries(folder, max_restarts), False
    while True:
        try:
            one = tries.begin(again=again)
        except RestartLoop as error:
            write_outcome(folder, error.exit_code, str(error), **error.facts)
            raise
        before, said = tries.before(one), marks(folder)
        known = max((row.attempt for row in attempts_of(folder)), default=0)
        os.environ[VARIABLE] = one.token        # for the ranks
        end = launch(rank_command(sys.argv[1:]), processes, folder / "logs", started, on_started=stop.begin,
                     hang=lambda: _hang(word_of(folder, before)))      # noqa: B023  called in this turn of the loop alone
        how = ended(folder, before, end.code)
        begun = [row for row in attempts_of(folder) if row.attempt > known]
        attempt = begun[-1].attempt if begun else None
        if not end.told or (end.code == EXIT_REQUEUE and not how.told):
            refuse_if_held(folder)          # by a newer attempt: then this one's end is nobody's business
        if not end.told:
            if not tell_if_nobody_did(folder, attempt, said):
                write_outcome(folder, end.code, end.reason, attempt=attempt)
        elif end.code == EXIT_REQUEUE and not how.told and end.asked:
            asked = why_stopped(end.asked, "before the ranks had joined")
            write_outcome(folder, end.code, asked.reason, cause=asked.cause)
        elif end.code == EXIT_REQUEUE and not how.told:
            write_outcome(folder, end.code, how.reason, attempt=attempt)
        tries.end(one, ended(folder, before, end.code))
        if end.code != EXIT_REQUEUE or end.asked or stop or not keep_going:
            return end.code
        log.warning("%s; starting again", read_outcome(folder).get("reason", end.reason))
        started, again = time.time(), True


def _hang(outcome: Mapping[str, Any]) -> str | None:
    """What a watchdog wrote down as the reason of the end."""
    return str(outcome["reason"]) if outcome.get("cause") == "hang" else None


def _local_gpus(device: str) -> int:
    """Ranks to start on this machine when the recipe does not say: one per GPU, or one."""
    if device == "cpu":
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def _show_indexing(done: int, total: int) -> None:
    """A line for each tenth of what takes long, one at the end of what does not."""
    if done == total or (total >= 200 and done % (total // 10) == 0):
        log.info("indexed %d of %s", done, plural(total, "shard"))
