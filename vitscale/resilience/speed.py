"""How fast this machine multiplies, exchanges and writes, each measured in moments."""

import os
import statistics
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vitscale.awake import Awake

DEADLINE_S = 60.0       # a device that has not done a second's work by then is taken for dead
_SIZES = (256, 512, 768, 1024, 1536)       # of square matrices


class TooSlow(RuntimeError):
    """A device did not come to an end."""


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int, budget_s: float) -> float:
    """FLOP/s of A(size, size) @ B(size, size), 2 size^3 FLOP each: on a CPU the best within `budget_s` (at least one), since other work
    on the machine only ever takes away; on a GPU the mean of twenty in a row, since heat and power hold it back only under load.

    Raises RuntimeError for a device that fails, or does not come to an end.
    """
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))      # zeros or ones would draw less power
    out = torch.empty(size, size, device=device, dtype=dtype)
    torch.mm(a, b, out=out)                 # the first call prepares kernels and memory
    work = 2.0 * size**3
    if device.type == "cuda":
        _await_device()
        began = time.perf_counter()
        for _ in range(20):
            torch.mm(a, b, out=out)
        _await_device()
        elapsed, runs = time.perf_counter() - began, 20
        if not bool(out.isfinite().all()):
            raise RuntimeError("the product of two ordinary matrices is not finite")
        return work * runs / elapsed
    best, deadline = 0.0, time.perf_counter() + budget_s
    while True:
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        ended = time.perf_counter()
        best = max(best, work / (ended - began))
        if ended >= deadline:
            return best


def measure_peak_flops(dtype: torch.dtype = torch.float32, budget_s: float = 0.3) -> float:
    """FLOP/s of the best of several square products on this machine's CPU, with the threads torch has now: what MFU is held against there.

    Takes about `budget_s` seconds; the smallest size is always measured, so a CPU without `dtype` in hardware takes somewhat longer.
    """
    best, start = 0.0, time.perf_counter()
    for index, size in enumerate(_SIZES):
        share_s = start + budget_s * (index + 1) / len(_SIZES) - time.perf_counter()
        best = max(best, matmul_flops(torch.device("cpu"), dtype, size, share_s))
        if time.perf_counter() - start >= budget_s:
            break
    return best


def _await_device() -> None:
    """Until the GPU has done what it was given.  Looks now and then, since waiting for a dead one never ends.  Raises TooSlow."""
    done = torch.cuda.Event()
    done.record()
    awake = Awake(1.0)
    while not done.query():
        if awake.look() > DEADLINE_S:
            raise TooSlow(f"a small piece of work was not done in {DEADLINE_S:.0f} s")


def exchange(device: torch.device, num_bytes: int) -> tuple[float, float]:
    """-> (seconds of an all-reduce of one number, bytes/s of one of `num_bytes`), over all ranks.

    Bandwidth is counted as NCCL's tests do (bus bandwidth): 2 (n-1)/n bytes pass each rank's link for n ranks.  Collective.  Raises
    RuntimeError, also for a sum that is wrong.
    """
    ranks = dist.get_world_size()
    small = torch.ones(1, device=device)
    large = torch.ones(num_bytes // 4, device=device)
    for tensor in (small, large):
        _all_reduce(tensor)                 # the first one connects
    latency_s = statistics.median(_all_reduce(small) for _ in range(5))
    large.fill_(1.0)
    seconds = _all_reduce(large)
    if not bool((large == ranks).all()):
        raise RuntimeError(f"the sum of ones over {ranks} ranks is not {ranks}")
    return latency_s, 2 * (ranks - 1) / ranks * large.numel() * 4 / seconds


def _all_reduce(tensor: torch.Tensor) -> float:
    began = time.perf_counter()
    work = dist.all_reduce(tensor, async_op=True)
    if tensor.is_cuda:
        work.wait()                         # the stream's, not the host's
        _await_device()
    else:
        work.wait(timedelta(seconds=DEADLINE_S))
    return time.perf_counter() - began


def write_speed(path: Path, num_bytes: int) -> float:
    """Bytes/s of writing a file and making it durable; the file is removed again.  Raises OSError."""
    block = os.urandom(min(num_bytes, 1 << 20))     # some file systems write zeros for nothing
    try:
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for _ in range(0, num_bytes, len(block)):
                file.write(block)
            os.fsync(file.fileno())
        return num_bytes / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)
