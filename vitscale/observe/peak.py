"""The matrix-multiplication peak of this machine's CPU, measured: what MFU is held against where there is no data sheet."""

import time

import torch

_SIZES = (256, 512, 768, 1024, 1536)


def measure_peak_flops(dtype: torch.dtype = torch.float32, budget_s: float = 0.3) -> float:
    """FLOP/s of the best of several square products A(n, n) @ B(n, n), 2 n^3 FLOP each, with the threads torch has now.

    Takes about `budget_s` seconds; the smallest size is always measured, so a CPU without `dtype` in hardware takes somewhat longer.
    The best and not the mean, since other work on the machine only ever takes away.
    """
    best, start = 0.0, time.perf_counter()
    for index, size in enumerate(_SIZES):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype)
        torch.mm(a, b, out=out)                         # the first call prepares kernels and memory
        deadline = start + budget_s * (index + 1) / len(_SIZES)
        while True:
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            elapsed = time.perf_counter() - began
            best = max(best, 2 * size**3 / elapsed)
            if time.perf_counter() >= deadline:
                break
        if time.perf_counter() - start >= budget_s:
            break
    return best
