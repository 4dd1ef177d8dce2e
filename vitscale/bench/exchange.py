"""Bandwidth of the exchanges that training is made of, by size, over all ranks."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from vitscale.bench.figures import Figure
from vitscale.errors import ClusterError
from vitscale.parallel.world import World

SIZES = (4 << 10, 256 << 10, 4 << 20, 64 << 20, 256 << 20)


def measure_exchange(world: World, largest: int, repeats: int = 5) -> tuple[list[Figure], dict[str, Any]]:
    """All-reduce and all-gather of fp32 numbers.  Bandwidth as NCCL's tests count it: what passes each rank's link (bus bandwidth).
    Collective.  Raises ClusterError for one rank, and for a sum that is wrong."""
    if world.size < 2:
        raise ClusterError("bench comm wants at least two ranks; give --ranks 2, or start it under srun or torchrun")
    figures = []
    for size in [size for size in SIZES if size <= largest] or [largest]:
        count = max(size // 4 // world.size, 1) * world.size
        whole = torch.ones(count, device=world.device)
        part = torch.ones(count // world.size, device=world.device)
        passed = (world.size - 1) / world.size * count * 4

        dist.all_reduce(whole)
        if float(whole[-1]) != world.size:
            raise ClusterError(f"the sum of ones over {world.size} ranks is {float(whole[-1])}")

        def reduce(whole: torch.Tensor = whole) -> None:
            dist.all_reduce(whole)

        def gather(whole: torch.Tensor = whole, part: torch.Tensor = part) -> None:
            dist.all_gather_into_tensor(whole, part)

        for name, run, factor in (("all-reduce", reduce, 2), ("all-gather", gather, 1)):
            seconds = _timed(world, run, repeats)
            median = statistics.median(seconds)
            speeds = [factor * passed / took / 1e9 for took in (median, max(seconds), min(seconds))]
            figures.append(Figure(f"{name} of {_size(count * 4)}", speeds[0], "GB/s", speeds[1], speeds[2], f"{1e3 * median:.3g} ms"))
    facts = {"ranks": world.size, "device": world.device.type, "backend": dist.get_backend()}
    return figures, facts


def _timed(world: World, run: Callable[[], None], repeats: int) -> list[float]:
    found = []
    for number in range(repeats + 1):
        world.barrier()
        began = time.perf_counter()
        run()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
        if number:                      # the first one connects
            found.append(time.perf_counter() - began)
    return found


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:g} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:g} KiB"
