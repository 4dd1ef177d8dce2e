"""What is read of the machine: against what the machine says otherwise; of a GPU, a sample replayed through the real binding."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from nvml import SAMPLE, UUID, replayed

from vitscale.observe import readings
from vitscale.observe.readings import Readings

ASK = """
import json, logging, sys
from vitscale.observe import readings
logging.basicConfig(format="%(message)s")
read = readings.device(sys.argv[1])
print(json.dumps(None if read is None else read()))
"""


def ask(environment: dict[str, str], uuid: str = UUID) -> tuple[dict[str, float | None] | None, str]:
    done = subprocess.run([sys.executable, "-c", ASK, uuid], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_gpus_readings_come_in_base_units(tmp_path: Path) -> None:
    found, _ = ask(replayed(tmp_path), UUID.removeprefix("GPU-"))       # as torch tells it
    assert found == {
        "device_memory_used_bytes": SAMPLE["memory_used"], "device_memory_size_bytes": SAMPLE["memory_total"],
        "device_utilization_ratio": 0.97, "device_power_watts": 634.512, "device_temperature_celsius": 58,
    }


def test_what_a_device_does_not_tell_is_left_out(tmp_path: Path) -> None:
    found, _ = ask(replayed(tmp_path, utilization_percent="no", power_milliwatts="no"))
    assert found is not None
    assert (found["device_utilization_ratio"], found["device_power_watts"]) == (None, None)
    assert found["device_temperature_celsius"] == 58


def test_a_gpu_that_nvml_does_not_know_costs_a_word(tmp_path: Path) -> None:
    found, said = ask(replayed(tmp_path), "GPU-another")
    assert found is None
    assert "no readings of GPU GPU-another: NVML says Not Found" in said


def test_without_nvml_there_are_no_readings_and_no_error() -> None:
    found, said = ask({**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    if found is not None:
        pytest.skip("needs a machine without a GPU")
    assert "NVML says" in said


def test_memory_and_disks_are_the_machines_own(tmp_path: Path) -> None:
    host, disks = readings.host_memory(), readings.disks({"runs": tmp_path, "cache": tmp_path / "absent"})()
    assert host["host_memory_size_bytes"] == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.02)
    assert 0 < host["host_memory_available_bytes"] < host["host_memory_size_bytes"]
    assert set(disks["disk_free_bytes"]) == {"runs"}
    assert disks["disk_size_bytes"]["runs"] == pytest.approx(shutil.disk_usage(tmp_path).total)
    assert disks["disk_free_bytes"]["runs"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    before = readings.process_memory()["rank_resident_bytes"]
    held = bytearray(os.urandom(1 << 20) * 64)
    assert readings.process_memory()["rank_resident_bytes"] - before > 0.9 * len(held)


def test_one_that_fails_is_named_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> dict[str, float | None]:
        raise OSError("the driver is gone")

    seen: list[float] = []
    with Readings([broken, lambda: {"x": 1.0, "y": None}], lambda values: seen.append(values["x"]), every_s=0.01):
        deadline = time.monotonic() + 20
        while len(seen) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert [record.getMessage() for record in caplog.records] == ["no more of broken: OSError: the driver is gone"]


def test_a_reading_that_hangs_holds_up_nobody() -> None:
    forever = threading.Event()
    started = time.monotonic()
    with Readings([lambda: forever.wait() and {}], lambda values: None):
        pass
    assert time.monotonic() - started < 10
    forever.set()
