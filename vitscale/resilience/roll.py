"""Which ranks of a batch job ended without a word: each writes down that it is there when it begins, that it left when it ends by itself.

A rank that is killed cannot say so, those that it leaves alone only know that a connection broke, and srun tells a job no more than the
highest code of all.  When all have ended, who is still there was killed, and who never came ended before it began: `vitscale job end` looks
(cluster/ended.py).
"""

import atexit
import contextlib
import json
import os
from pathlib import Path

from vitscale.cluster.ended import LEFT, PRESENT
from vitscale.files import write_atomically


def answer(run_folder: Path, rank: int, size: int, node: str) -> None:
    """Be there until this process ends in a way in which it can still run code.  vitscale's own launcher sees its ranks end; then nothing
    is written."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    path = run_folder / PRESENT / f"rank-{rank}.json"
    with contextlib.suppress(OSError):      # it only tells
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"rank": rank, "size": size, "node": node}), durable="no")
        atexit.register(_leave, path)


def _leave(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rename(path.with_suffix(LEFT))
