"""Who holds a run folder.  Each attempt takes the next numbered lease; only the highest may publish, delete or append."""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

from vitscale.errors import CheckpointError
from vitscale.processes import boot_id, start_of

HEARTBEAT_S = 5.0
STALE_S = 60.0      # a holder on another host that has not been heard of for so long is taken for dead


class LeaseLost(CheckpointError):
    """A newer attempt holds the run folder; this one must not write."""


class Lease:
    """`lease/N` in the run folder: {host, boot, pid, start, job}.  Created with O_EXCL, so two attempts never share a number."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def take(cls, run_folder: Path) -> "Lease":
        """Take the run folder over from an attempt that has ended.  Raises CheckpointError while another one lives, and where the disk
        takes no more."""
        try:
            return cls._take(run_folder)
        except OSError as error:
            raise CheckpointError(f"{run_folder}: cannot be written ({error.strerror}); make room, or give another runs_dir") from None

    @classmethod
    def _take(cls, run_folder: Path) -> "Lease":
        folder = run_folder / "lease"
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = _highest(folder)
            if number is not None:
                _refuse_if_alive(folder / str(number), run_folder)
            new = 1 if number is None else number + 1
            # the content is written before the name exists, so that no reader sees an empty lease
            draft = folder / f".{new}.{socket.gethostname()}.{os.getpid()}"
            try:
                draft.write_text(json.dumps(_self_description()))
                os.link(draft, folder / str(new))       # fails if the name exists, as O_EXCL does
            except FileExistsError:
                continue                                # another attempt was quicker: look at it
            finally:
                draft.unlink(missing_ok=True)
            lease = cls(folder, new)
            lease._thread.start()
            return lease

    def check(self) -> None:
        """Raises LeaseLost if a newer attempt has taken the run folder."""
        highest = _highest(self.folder)
        if highest != self.number:
            raise LeaseLost(f"{self.folder.parent}: attempt {self.number} no longer holds this run folder, attempt {highest} does; "
                            "nothing more is written by this one")

    def release(self) -> None:
        """End the heartbeat and mark the lease as given up, so that the next attempt need not wonder."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        path = self.folder / str(self.number)
        if path.exists():
            with contextlib.suppress(OSError):      # on a full disk the next attempt sees by the process that it is gone
                (self.folder / f"{self.number}.released").touch()

    def _beat(self) -> None:
        path = self.folder / str(self.number)
        while not self._stop.wait(HEARTBEAT_S):
            try:
                os.utime(path)
            except FileNotFoundError:
                return          # the folder is gone; check() says so at the next write
            except OSError:
                continue        # a shared filesystem hiccups; one missed beat is not the end


def refuse_if_held(run_folder: Path) -> None:
    """Raises CheckpointError if a living attempt holds the run folder; takes nothing."""
    folder = run_folder / "lease"
    number = _highest(folder) if folder.is_dir() else None
    if number is not None:
        _refuse_if_alive(folder / str(number), run_folder)


def _highest(folder: Path) -> int | None:
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    return max(numbers, default=None)


def _self_description() -> dict[str, object]:
    return {"host": socket.gethostname(), "boot": boot_id(), "node": os.environ.get("SLURMD_NODENAME"), "pid": os.getpid(),
            "start": start_of(os.getpid()), "job": os.environ.get("SLURM_JOB_ID"),
            "restart": os.environ.get("SLURM_RESTART_COUNT", "0"), "time": time.time()}


def _refuse_if_alive(path: Path, run_folder: Path) -> None:
    if path.with_name(path.name + ".released").exists():
        return
    try:
        holder = json.loads(path.read_text())
        pid, start = int(holder["pid"]), holder["start"]
        age_s = time.time() - path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        return      # unreadable: nobody can be holding it by this program
    same_machine = holder.get("host") == socket.gethostname() and holder.get("boot") == boot_id()
    if same_machine and start_of(pid) != start:
        return
    if (not same_machine and age_s > STALE_S) or _slurm_has_ended(holder):
        return      # if it lives on all the same, it is an orphan, and check() keeps it from writing
    where = f"process {pid} on {holder.get('node') or holder.get('host')}, last heard of {age_s:.0f} s ago"
    if holder.get("job"):
        where += f", SLURM job {holder['job']}"
    raise CheckpointError(f"{run_folder}: this run is going on already ({where}); stop it first, or give this one another name (name=...)")


def _slurm_has_ended(holder: dict[str, object]) -> bool:
    """True if SLURM says that the attempt that held the lease does not run any more: the job is gone, or was restarted since."""
    job = holder.get("job")
    if not job:
        return False
    if os.environ.get("SLURM_JOB_ID") == job and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > int(str(holder.get("restart") or 0)):
        return True     # we are a later restart of that very job, whether slurmctld answers or not; an earlier one is an orphan itself
    try:
        answer = subprocess.run(["squeue", "--noheader", "--job", str(job), "--states=all", "--format=%T"],
                                capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    if answer.returncode != 0:
        return "Invalid job id" in answer.stderr
    return not any(state in answer.stdout for state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"))
