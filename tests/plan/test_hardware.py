"""Devices by the names torch gives them, and an import that stays light."""

import subprocess
import sys

import pytest

from vitscale.plan import DEVICES, find_device, peak_for


@pytest.mark.parametrize(("name", "bf16", "fp32"), [
    ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
    ("NVIDIA A100-SXM4-40GB", 312e12, 19.5e12),
    ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
    ("NVIDIA H100 PCIe", 756e12, 51e12),
    ("NVIDIA H100 NVL", 835e12, 60e12),
    ("NVIDIA H200", 989e12, 67e12),
    ("NVIDIA B200", 2250e12, 75e12),
    ("NVIDIA L40S", 362e12, 91.6e12),
    ("AMD Instinct MI300X", 1307e12, 163.4e12),
])
def test_a_peak_is_found_by_torchs_name(name, bf16, fp32):
    assert peak_for(name, "bf16") == bf16
    assert peak_for(name, "fp32") == fp32


@pytest.mark.parametrize("name", ["cpu", "", "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA L40", "Tesla T4"])
def test_an_unknown_device_has_no_peak(name):
    assert peak_for(name, "bf16") is None


def test_the_smaller_a100_is_told_from_the_larger():
    assert find_device("NVIDIA A100-SXM4-40GB") is DEVICES["A100 40GB"]
    assert find_device("NVIDIA A100-SXM4-80GB") is DEVICES["A100"]
    assert all(device.source and 16e9 <= device.memory_bytes < 1e12 for device in DEVICES.values())


def test_planning_loads_no_torch():
    code = "import sys, vitscale.plan; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
