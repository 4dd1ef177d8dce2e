"""Processes of this machine: the cores they may run on, and names for good, since a number alone is given to another sooner or later."""

import os
import subprocess
import time
from pathlib import Path


def usable_cores() -> int:
    """CPU cores that this process may run on, at least 1."""
    if hasattr(os, "sched_getaffinity"):        # Linux; a cluster gives a job its part of a node
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def boot_id() -> str:
    """What process numbers count within: one boot of one machine, and one container's process namespace there."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def up_s() -> float:
    """How long this machine has been up: nobody sets that clock; 0 where nobody says so (macOS), as boot_id() is empty there."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except AttributeError:
        return 0.0


def moment(label: float) -> str:
    """A time of day a moment ago, for another process of this machine, which may have another time of day by then."""
    return f"{label!r} {up_s() - (time.time() - label)!r} {boot_id()}"


def label_of(moment: str) -> float:
    """The same by this process's time of day.  Raises ValueError."""
    label, up, boot = (*moment.split(maxsplit=2), "", "")[:3]
    return time.time() - (up_s() - float(up)) if boot and boot == boot_id() else float(label)


def start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: with the pid it names a process for good.  None if there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return _start_without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def is_stopped(pid: int) -> bool:
    """Whether a process stands still by SIGSTOP, Ctrl-Z, `scontrol suspend` or a debugger; never where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _start_without_proc(pid: int) -> str | None:
    """The same where there is no /proc (macOS); None also on Linux when the process is gone."""
    if Path("/proc/self").exists():
        return None
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return answer.stdout.strip() or None
