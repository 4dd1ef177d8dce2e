"""Run a function on several connected gloo ranks, as real processes."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitscale.parallel.launch import STORE_VARIABLE
from vitscale.parallel.rank_info import RankInfo

# one server imports the heavy libraries once; ranks are forked from it
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "vitscale.parallel.world", "deepspeed"])


def _rank(function: Callable[..., Any], place: RankInfo, store: str, queue: Any, args: tuple[Any, ...]) -> None:
    import torch

    os.environ[STORE_VARIABLE] = store
    # accelerate and DeepSpeed look here
    os.environ.update({"RANK": str(place.rank), "WORLD_SIZE": str(place.size), "LOCAL_RANK": str(place.local_rank),
                       "LOCAL_WORLD_SIZE": str(place.local_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"})
    torch.set_num_threads(1)
    try:
        queue.put((place.rank, function(place, *args), None))
    except BaseException:
        queue.put((place.rank, None, traceback.format_exc()))


def run_ranks(size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 180) -> list[Any]:
    """`function(place, *args)` on ranks 0..size-1; their results in rank order.  Fails the test if a rank raises or is late.

    `function` is a module's own (it is imported in each rank); results are plain picklable values.
    """
    with tempfile.TemporaryDirectory() as folder:
        queue = _context.Queue()
        store = str(Path(folder) / "store")
        ranks = [_context.Process(target=_rank, args=(function, RankInfo(rank, size, rank, size), store, queue, args))
                 for rank in range(size)]
        for process in ranks:
            process.start()
        results: dict[int, Any] = {}
        try:
            for _ in range(size):
                rank, value, error = queue.get(timeout=timeout_s)
                if error is not None:
                    pytest.fail(f"rank {rank} of {size}:\n{error}")
                results[rank] = value
        finally:
            for process in ranks:
                process.join(5 if len(results) == size else 0.1)
                if process.is_alive():
                    process.kill()
                    process.join()
    return [results[rank] for rank in range(size)]
