"""Evaluations by one process, by several that are started here, or as one of the ranks that torchrun or SLURM started."""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vitscale.errors import EXIT_DONE
from vitscale.evaluate.evaluate import FILE, Request, evaluate, lines, write_results
from vitscale.observe.console import make_console, setup_logging
from vitscale.parallel.launch import hold_lifeline, launch, rank_command
from vitscale.parallel.rank_info import RankInfo, rank_info_from_environment
from vitscale.parallel.world import joined
from vitscale.recipe import Parallel


def run(requests: Sequence[Request], processes: int, device: str, out: Path | None) -> int:
    """One model after the other; results are shown and written to `out`, or into each run's folder.  Returns the exit code."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    place = rank_info_from_environment()
    if place is None and processes > 1:
        with tempfile.TemporaryDirectory(prefix="vitscale-eval-") as logs:
            return launch(rank_command(sys.argv[1:]), processes, Path(logs), time.time()).code
    hold_lifeline()
    setup_logging(make_console() if place is None or place.rank == 0 else None, level=logging.WARNING)
    parallel = Parallel.model_validate({"device": device})
    with joined(parallel, place or RankInfo()) as world:
        for request in requests:
            found = evaluate(request, world)
            if found is not None:
                for line in lines(found):
                    print(line)
                where = out or _folder_of(Path(found["weights"]))
                if where is not None:
                    write_results(where, found)
                    print(f"  wrote {where}")
            world.barrier()
    return EXIT_DONE


def _folder_of(weights: Path) -> Path | None:
    """eval.json of the run that a checkpoint is of; None for other folders."""
    run_folder = weights.parent.parent.parent
    return run_folder / FILE if weights.parent.parent.name == "checkpoints" else None
