"""What the machine says of itself while a run goes: memory of the process and its node, disks, the GPU by NVML.  Needs no torch.

A thread of its own reads it every few seconds: a disk that has gone, or a driver that does not answer, holds up this thread alone.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)
EVERY_S = 5.0

Reading = Callable[[], Mapping[str, float | None]]


class Readings:
    """Calls each of `readings` now and then and passes on what it gives; use as a context manager.  One that fails is named once and
    left out from then on."""

    def __init__(self, readings: Sequence[Reading], take: Callable[[Mapping[str, Any]], None], every_s: float = EVERY_S) -> None:
        self._readings, self._take, self._every_s = list(readings), take, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, name="readings", daemon=True)

    def __enter__(self) -> "Readings":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(1.0)      # no longer: it may hang, and ends with the process

    def _go(self) -> None:
        while True:
            for reading in list(self._readings):
                try:
                    self._take({name: value for name, value in reading().items() if value is not None})
                except Exception as error:      # a number that cannot be had must not stop a run
                    self._readings.remove(reading)
                    log.warning("no more of %s: %s: %s", getattr(reading, "__name__", "a reading"), type(error).__name__, error)
            if self._stop.wait(self._every_s):
                return


def process_memory() -> dict[str, float | None]:
    """Of this process.  Empty where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return {}
    return {"rank_resident_bytes": float(pages * os.sysconf("SC_PAGE_SIZE"))}


def host_memory() -> dict[str, float | None]:
    """Of the node.  Empty where there is no /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    kib = {name: float(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {"host_memory_size_bytes": 1024 * kib["MemTotal"], "host_memory_available_bytes": 1024 * kib["MemAvailable"]}


def disks(places: Mapping[str, Path]) -> Callable[[], dict[str, Any]]:
    """Of the file systems on which the folders lie; one that is not there (yet) is left out."""
    def read() -> dict[str, Any]:
        known = {disk: os.statvfs(folder) for disk, folder in places.items() if folder.is_dir()}
        return {"disk_free_bytes": {disk: float(told.f_bavail * told.f_frsize) for disk, told in known.items()},
                "disk_size_bytes": {disk: float(told.f_blocks * told.f_frsize) for disk, told in known.items()}}

    read.__name__ = "disk space"
    return read


def device(uuid: str) -> Reading | None:
    """Of one GPU; `uuid` as torch tells it, with or without "GPU-" before it.  None, and a word in the log, where NVML is not to be had.

    What a device does not tell (utilisation of a part of a GPU, power of some boards) is left out.
    """
    try:
        import pynvml
    except ImportError:
        log.warning("no readings of GPU %s: nvidia-ml-py is not installed", uuid)
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    except pynvml.NVMLError as error:
        log.warning("no readings of GPU %s: NVML says %s", uuid, error)
        return None

    def told(ask: Callable[[], float]) -> float | None:
        try:
            return ask()
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission):
            return None

    def read() -> dict[str, float | None]:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return {
            "device_memory_used_bytes": float(memory.used), "device_memory_size_bytes": float(memory.total),
            "device_utilization_ratio": told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            "device_power_watts": told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            "device_temperature_celsius": told(lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        }

    read.__name__ = f"readings of GPU {uuid}"
    return read
