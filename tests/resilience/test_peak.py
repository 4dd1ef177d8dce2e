"""The measured peak is a plausible number and is there soon."""

import time

import torch

from vitscale.resilience.speed import measure_peak_flops


def test_peak_is_at_least_what_one_product_reaches_and_at_most_absurd():
    start = time.perf_counter()
    peak = measure_peak_flops(torch.float32, budget_s=0.1)
    assert time.perf_counter() - start < 5
    assert 1e8 < peak < 1e15
