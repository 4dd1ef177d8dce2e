"""What known devices can do at most: the peaks that MFU is measured against, each from its vendor's data sheet."""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Host:
    """A node around devices.  Of a device on its own no data sheet says these, so that they are assumptions with an example."""

    cores: int              # physical, of the node
    devices: int            # that share them
    network_bandwidth: float    # bytes/s of the node to other nodes, each way
    watts: float            # of the whole node at most
    source: str


@dataclass(frozen=True)
class Device:
    """Peaks of one device without structured sparsity, and what stands around it in a usual node.  None: not known, or it cannot do it."""

    bf16_flops: float | None    # FLOP/s of the matrix units, bf16 in, fp32 sums
    fp32_flops: float | None    # FLOP/s in full fp32 (not TF32), as torch multiplies by default
    memory_bytes: int | None    # as sold, 1 GB = 1e9 bytes; a little less is usable
    memory_bandwidth: float | None  # bytes/s of its own memory
    link_bandwidth: float | None    # bytes/s to the other devices of its node, each way: half of what data sheets call total
    host: str | Host        # of HOSTS, or its own: what the planner takes for its node
    source: str

    def peak(self, precision: str) -> float | None:
        """FLOP/s in "bf16" or "fp32"."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


HOSTS = {
    "DGX A100": Host(128, 8, 8 * 25e9, 6500, "NVIDIA DGX A100 data sheet: two EPYC 7742, 8 x 200 Gbit/s, 6.5 kW at most"),
    "DGX H100": Host(112, 8, 8 * 50e9, 10200, "NVIDIA DGX H100 data sheet: two Xeon 8480C, 8 x 400 Gbit/s, 10.2 kW at most"),
    "DGX H200": Host(112, 8, 8 * 50e9, 10200, "NVIDIA DGX H200 data sheet: two Xeon 8480C, 8 x 400 Gbit/s, 10.2 kW at most"),
    "DGX B200": Host(112, 8, 8 * 50e9, 14300, "NVIDIA DGX B200 data sheet: two Xeon 8570, 8 x 400 Gbit/s, about 14.3 kW at most"),
    "PCIe server": Host(64, 8, 2 * 25e9, 5000, "no data sheet: two processors of 32 cores, 2 x 200 Gbit/s, 5 kW"),
    "workstation": Host(32, 4, 1.25e9, 2500, "no data sheet: one processor of 32 cores, 10 Gbit/s, 2.5 kW"),
    "DGX-2": Host(48, 16, 8 * 12.5e9, 10000, "NVIDIA DGX-2 data sheet: two Xeon 8168, 8 x 100 Gbit/s, 10 kW at most"),
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
    "L4": Device(121e12, 30.3e12, 24 * 10**9, 300e9, 32e9, "PCIe server",
                 "NVIDIA L4 data sheet (242 TFLOPS bf16 with sparsity; PCIe 64 GB/s in total)"),
    "A10": Device(125e12, 31.2e12, 24 * 10**9, 600e9, 32e9, "PCIe server",
                  "NVIDIA A10 data sheet (125 TFLOPS bf16, 250 with sparsity; PCIe 64 GB/s in total)"),
    "A6000": Device(154.8e12, 38.7e12, 48 * 10**9, 768e9, 32e9, "PCIe server",
                    "NVIDIA RTX A6000 data sheet (309.7 TFLOPS of tensor cores with sparsity; PCIe 64 GB/s in total)"),
    "RTX 3090": Device(71e12, 35.6e12, 24 * 10**9, 936e9, 32e9, "workstation",
                       "NVIDIA GA102 white paper (71 TFLOPS bf16 with fp32 sums; PCIe 4.0, 32 GB/s each way)"),
    "RTX 4090": Device(165.2e12, 82.6e12, 24 * 10**9, 1008e9, 32e9, "workstation",
                       "NVIDIA Ada white paper (165.2 TFLOPS bf16 with fp32 sums; PCIe 4.0, 32 GB/s each way)"),
    "RTX 5090": Device(209.5e12, 104.8e12, 32 * 10**9, 1792e9, 64e9, "workstation",
                       "NVIDIA RTX Blackwell white paper (209.5 TFLOPS bf16 with fp32 sums; PCIe 5.0, 64 GB/s each way)"),
    "T4": Device(None, 8.1e12, 16 * 10**9, 320e9, 16e9, "PCIe server",
                 "NVIDIA T4 data sheet (matrix units for fp16, not for bf16; PCIe 3.0, 32 GB/s in total)"),
    "V100": Device(None, 15.7e12, 32 * 10**9, 900e9, 150e9, "DGX-2",
                   "NVIDIA V100 data sheet, SXM2 32 GB (matrix units for fp16, not for bf16; NVLink 300 GB/s in total)"),
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
    return device.peak(precision) if device else None
