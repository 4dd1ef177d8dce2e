"""Kernels for GPUs in Triton, and beside each the formula in torch that runs where it does not."""
