"""The matrix-multiplication peak of this machine's CPU, measured: what MFU is held against where there is no data sheet."""

import time

import torch

from vitscale.resilience.speed import matmul_flops

_SIZES = (256, 512, 768, 1024, 1536)


def measure_peak_flops(dtype: torch.dtype = torch.float32, budget_s: float = 0.3) -> float:
    """FLOP/s of the best of several square products A(n, n) @ B(n, n), 2 n^3 FLOP each, with the threads torch has now.

    Takes about `budget_s` seconds; the smallest size is always measured, so a CPU without `dtype` in hardware takes somewhat longer.
    """
    best, start = 0.0, time.perf_counter()
    for index, size in enumerate(_SIZES):
        share_s = start + budget_s * (index + 1) / len(_SIZES) - time.perf_counter()
        best = max(best, matmul_flops(torch.device("cpu"), dtype, size, share_s))
        if time.perf_counter() - start >= budget_s:
            break
    return best
