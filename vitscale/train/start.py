"""From the command line to ranks: this process becomes one, or starts them.  Imports no torch before the inputs are known to be sound."""

import logging
import os
import sys
import time
from collections.abc import Sequence

from vitscale.errors import EXIT_FAILED, EXIT_REQUEUE, UserError
from vitscale.observe.console import make_console, setup_logging
from vitscale.plan.families import check_model
from vitscale.recipe import load_recipe
from vitscale.resilience.signals import StopFlag

log = logging.getLogger(__name__)


def train(file: str, overrides: Sequence[str], accept_changes: bool, stop: StopFlag) -> int:
    """Train `file` with `overrides` until `stop`; returns the exit code.  Raises UserError for what the user can mend."""
    # Before torch loads its OpenMP: threads that spin while they wait take the cores from the decoding threads.  On two cores beside
    # one other busy process that cost a factor of ten.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    setup_logging(make_console())
    recipe = load_recipe(file, overrides)
    check_model(recipe.model)       # raises what shows only once the size is known
    from vitscale.parallel.place import place_from_environment

    place = place_from_environment()
    if place is None:
        from vitscale.checkpoint.lease import refuse_if_held
        from vitscale.parallel.launch import launch, rank_command
        from vitscale.resilience.outcome import cause_of_stop, read_outcome, write_outcome
        from vitscale.train.prepare import prepare, run_folder

        refuse_if_held(run_folder(recipe))
        prepared = prepare(recipe, on_progress=_show_indexing)
        log.info("run folder %s; metrics in %s", prepared.folder, prepared.folder / "metrics.jsonl")
        processes = recipe.parallel.processes or _local_gpus(recipe.parallel.device)
        if processes > 1:
            began = time.time()
            end = launch(rank_command(sys.argv[1:]), processes, prepared.folder / "logs", on_started=stop.begin)
            if not end.told:
                refuse_if_held(prepared.folder)         # by a newer attempt: then this one's end is nobody's business
                write_outcome(prepared.folder, end.code, end.reason)
            elif end.code == EXIT_REQUEUE and read_outcome(prepared.folder).get("time", 0.0) < began:
                write_outcome(prepared.folder, end.code, "asked to stop before the ranks had joined", cause=cause_of_stop(stop.reason))
            return end.code
    from vitscale.parallel.place import Place
    from vitscale.train.run import run

    try:
        return run(recipe, place or Place(prepared=True), stop, accept_changes)
    except UserError:
        raise
    except Exception as error:
        from vitscale.parallel.world import lost_a_peer

        if lost_a_peer(error):
            log.error("another rank is gone: %s", error)        # it says itself why, or its launcher does
            return EXIT_REQUEUE
        log.exception("the run failed")
        return EXIT_FAILED


def _local_gpus(device: str) -> int:
    """Ranks to start on this machine when the recipe does not say: one per GPU, or one."""
    if device == "cpu":
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def _show_indexing(done: int, total: int) -> None:
    """A line for each tenth of what takes long, one at the end of what does not."""
    if done == total or (total >= 200 and done % (total // 10) == 0):
        log.info("indexed %d of %d shards", done, total)
