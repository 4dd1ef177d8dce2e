"""What known devices can do at most: the peaks that MFU is measured against, each from its vendor's data sheet."""

import os
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Device:
    """Peaks of one device without structured sparsity."""

    bf16_flops: float       # FLOP/s of the matrix units, bf16 in, fp32 sums
    fp32_flops: float       # FLOP/s in full fp32 (not TF32), as torch multiplies by default
    memory_bytes: int       # as sold, 1 GB = 1e9 bytes; a little less is usable
    source: str


# Keys are the words that torch's device name must contain, in any order; of several that fit, the one with most words.
DEVICES = {
    "A100": Device(312e12, 19.5e12, 80 * 10**9, "NVIDIA A100 Tensor Core GPU data sheet, 2021 (80 GB)"),
    "A100 40GB": Device(312e12, 19.5e12, 40 * 10**9, "NVIDIA A100 Tensor Core GPU data sheet, 2021 (40 GB)"),
    "H100": Device(989e12, 67e12, 80 * 10**9, "NVIDIA H100 Tensor Core GPU data sheet, SXM (1,979 TFLOPS bf16 is with sparsity)"),
    "H100 PCIe": Device(756e12, 51e12, 80 * 10**9, "NVIDIA H100 Tensor Core GPU data sheet, 2022, PCIe (1,513 TFLOPS bf16 with sparsity)"),
    "H100 NVL": Device(835e12, 60e12, 94 * 10**9, "NVIDIA H100 Tensor Core GPU data sheet, NVL (1,671 TFLOPS bf16 with sparsity)"),
    "H200": Device(989e12, 67e12, 141 * 10**9, "NVIDIA H200 Tensor Core GPU data sheet, SXM (1,979 TFLOPS bf16 with sparsity)"),
    "H200 NVL": Device(835e12, 60e12, 141 * 10**9, "NVIDIA H200 Tensor Core GPU data sheet, NVL (1,671 TFLOPS bf16 with sparsity)"),
    "B200": Device(2250e12, 75e12, 180 * 10**9, "NVIDIA Blackwell data sheet, HGX B200 per GPU (4.5 PFLOPS bf16 with sparsity)"),
    "L40S": Device(362e12, 91.6e12, 48 * 10**9, "NVIDIA L40S data sheet (733 TFLOPS bf16 with sparsity)"),
    "MI300X": Device(1307e12, 163.4e12, 192 * 10**9, "AMD Instinct MI300X data sheet (1,307.4 TFLOPS bf16 matrix, 163.4 fp32)"),
}


def find_device(device_name: str) -> Device | None:
    """The entry whose words all occur in `device_name` (as torch.cuda.get_device_name gives it), or None.

    Whole words: GH200 is no H200 and GB200 no B200.  'NVIDIA H100 PCIe' is 'H100 PCIe', 'NVIDIA H100 80GB HBM3' is 'H100'.
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    fitting = [key for key in DEVICES if set(key.lower().split()) <= words]
    return DEVICES[max(fitting, key=lambda key: len(key.split()))] if fitting else None


def peak_for(device_name: str, precision: Literal["fp32", "bf16"]) -> float | None:
    """Peak dense FLOP/s of a device by its torch name; None when it is not in the table (give observe.peak_flops)."""
    device = find_device(device_name)
    if device is None:
        return None
    return device.bf16_flops if precision == "bf16" else device.fp32_flops


def usable_cores() -> int:
    """CPU cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):        # Linux; a cluster gives a job its part of a node
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
