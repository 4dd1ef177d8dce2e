"""What known devices can do at most: the peaks that MFU is measured against, each from its vendor's data sheet."""

import os
import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Device:
    """Peaks of one device without structured sparsity, and what stands around it in a usual node."""

    bf16_flops: float       # FLOP/s of the matrix units, bf16 in, fp32 sums
    fp32_flops: float       # FLOP/s in full fp32 (not TF32), as torch multiplies by default
    memory_bytes: int       # as sold, 1 GB = 1e9 bytes; a little less is usable
    memory_bandwidth: float     # bytes/s of its own memory
    link_bandwidth: float       # bytes/s to the other devices of its node, each way: half of what data sheets call total
    host: str               # of HOSTS: what the planner takes for its node
    source: str


@dataclass(frozen=True)
class Host:
    """A node around devices.  Of a device on its own no data sheet says these, so that they are assumptions with an example."""

    cores: int              # physical, of the node
    devices: int            # that share them
    network_bandwidth: float    # bytes/s of the node to other nodes, each way
    watts: float            # of the whole node at most
    source: str


HOSTS = {
    "DGX A100": Host(128, 8, 8 * 25e9, 6500, "NVIDIA DGX A100 data sheet: two EPYC 7742, 8 x 200 Gbit/s, 6.5 kW at most"),
    "DGX H100": Host(112, 8, 8 * 50e9, 10200, "NVIDIA DGX H100 data sheet: two Xeon 8480C, 8 x 400 Gbit/s, 10.2 kW at most"),
    "DGX H200": Host(112, 8, 8 * 50e9, 10200, "NVIDIA DGX H200 data sheet: two Xeon 8480C, 8 x 400 Gbit/s, 10.2 kW at most"),
    "DGX B200": Host(112, 8, 8 * 50e9, 14300, "NVIDIA DGX B200 data sheet: two Xeon 8570, 8 x 400 Gbit/s, about 14.3 kW at most"),
    "PCIe server": Host(64, 8, 2 * 25e9, 5000, "no data sheet: two processors of 32 cores, 2 x 200 Gbit/s, 5 kW"),
    "MI300X server": Host(112, 8, 8 * 50e9, 10200, "no data sheet: taken as a DGX H100, 8 x 400 Gbit/s"),
}

# Keys are the words that torch's device name must contain, in any order; of several that fit, the one with most words.
DEVICES = {
    "A100": Device(312e12, 19.5e12, 80 * 10**9, 2039e9, 300e9, "DGX A100",
                   "NVIDIA A100 Tensor Core GPU data sheet, 2021, SXM 80 GB (NVLink 600 GB/s in total)"),
    "A100 40GB": Device(312e12, 19.5e12, 40 * 10**9, 1555e9, 300e9, "DGX A100",
                        "NVIDIA A100 Tensor Core GPU data sheet, 2021, SXM 40 GB (NVLink 600 GB/s in total)"),
    "H100": Device(989e12, 67e12, 80 * 10**9, 3350e9, 450e9, "DGX H100",
                   "NVIDIA H100 Tensor Core GPU data sheet, SXM (1,979 TFLOPS bf16 is with sparsity; NVLink 900 GB/s in total)"),
    "H100 PCIe": Device(756e12, 51e12, 80 * 10**9, 2000e9, 64e9, "PCIe server",
                        "NVIDIA H100 Tensor Core GPU data sheet, 2022, PCIe (1,513 TFLOPS bf16 with sparsity; PCIe 128 GB/s in total)"),
    "H100 NVL": Device(835e12, 60e12, 94 * 10**9, 3900e9, 64e9, "PCIe server",
                       "NVIDIA H100 Tensor Core GPU data sheet, NVL (1,671 TFLOPS bf16 with sparsity; PCIe 128 GB/s in total)"),
    "H200": Device(989e12, 67e12, 141 * 10**9, 4800e9, 450e9, "DGX H200",
                   "NVIDIA H200 Tensor Core GPU data sheet, SXM (1,979 TFLOPS bf16 with sparsity; NVLink 900 GB/s in total)"),
    "H200 NVL": Device(835e12, 60e12, 141 * 10**9, 4800e9, 64e9, "PCIe server",
                       "NVIDIA H200 Tensor Core GPU data sheet, NVL (1,671 TFLOPS bf16 with sparsity; PCIe 128 GB/s in total)"),
    "B200": Device(2250e12, 75e12, 180 * 10**9, 8000e9, 900e9, "DGX B200",
                   "NVIDIA Blackwell data sheet, HGX B200 per GPU (4.5 PFLOPS bf16 with sparsity; NVLink 1.8 TB/s in total)"),
    "L40S": Device(362e12, 91.6e12, 48 * 10**9, 864e9, 32e9, "PCIe server",
                   "NVIDIA L40S data sheet (733 TFLOPS bf16 with sparsity; PCIe 64 GB/s in total)"),
    "MI300X": Device(1307e12, 163.4e12, 192 * 10**9, 5300e9, 448e9, "MI300X server",
                     "AMD Instinct MI300X data sheet (1,307.4 TFLOPS bf16 matrix, 163.4 fp32; seven links of 128 GB/s in total)"),
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
