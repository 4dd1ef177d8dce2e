"""Who holds a run folder.  Each attempt takes the next numbered lease; only the highest may publish, delete or append."""

import contextlib
import json
import logging
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

from vitscale.awake import Awake
from vitscale.errors import CheckpointError, StorageError
from vitscale.files import names_in, patiently, read_bytes, write_atomically
from vitscale.processes import boot_id, start_of

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
RELEASE_S = 5.0     # for a mark that only saves the next attempt a look
STALE_S = 60.0      # a holder on another host that has not been heard of for so long is taken for dead
_KEPT = 8           # leases, to be looked at
WATCH_S = 15.0      # and it is watched for at least so long: three beats


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
        except StorageError:
            raise
        except OSError as error:
            raise CheckpointError(f"{run_folder}: cannot be written ({error.strerror}); make room, or give another runs_dir") from None

    @classmethod
    def _take(cls, run_folder: Path) -> "Lease":
        folder = run_folder / "lease"
        patiently(folder, lambda: folder.mkdir(parents=True, exist_ok=True))
        while True:
            number = _highest(folder)
            if number is not None:
                _refuse_if_alive(folder / str(number), run_folder)
            new = 1 if number is None else number + 1
            # the content is written before the name exists, so that no reader sees an empty lease
            draft = folder / f".{new}.{socket.gethostname()}.{os.getpid()}"
            try:
                patiently(draft, lambda draft=draft: draft.write_text(json.dumps(_self_description())))     # type: ignore[misc]
                patiently(folder / str(new), lambda draft=draft, new=new: _name(draft, folder / str(new)))  # type: ignore[misc]
            except FileExistsError:
                continue                                # another attempt was quicker: look at it
            finally:
                with contextlib.suppress(OSError):
                    draft.unlink(missing_ok=True)
            lease = cls(folder, new)
            lease._thread.start()
            _forget(folder, new - _KEPT)
            return lease

    def check(self) -> None:
        """Raises LeaseLost if a newer attempt has taken the run folder."""
        highest = _highest(self.folder)
        if highest is None:
            raise LeaseLost(f"{self.folder}: is gone; nothing more is written by attempt {self.number}")
        if highest != self.number:
            raise LeaseLost(f"{self.folder.parent}: attempt {self.number} no longer holds this run folder, attempt {highest} does; "
                            "nothing more is written by this one")

    def release(self) -> None:
        """End the heartbeat and mark the lease as given up, so that the next attempt need not wonder."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        path = self.folder / f"{self.number}.released"
        with contextlib.suppress(OSError):      # on a full disk the next attempt sees by the process that it is gone
            patiently(path, lambda: path.touch() if path.with_name(str(self.number)).exists() else None, RELEASE_S)

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
    try:
        number = _highest(folder)
    except StorageError:
        raise
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror}); make it readable, or give another runs_dir") from None
    if number is not None:
        _refuse_if_alive(folder / str(number), run_folder)


def _highest(folder: Path) -> int | None:
    return max((int(name) for name in names_in(folder) if name.isdigit()), default=None)


def _forget(folder: Path, before: int) -> None:
    """The leases with lower numbers: each attempt looks through all names, and only the highest counts."""
    for name in names_in(folder):
        number = name.removesuffix(".released")
        if number.isdigit() and int(number) < before:
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _name(draft: Path, lease: Path) -> None:
    """Give a lease its name.  Raises FileExistsError if another attempt has it, as O_EXCL does."""
    try:
        os.link(draft, lease)
    except FileExistsError:
        if not lease.samefile(draft):       # else only the answer to an earlier try was lost
            raise


def _self_description() -> dict[str, object]:
    return {"host": socket.gethostname(), "boot": boot_id(), "node": os.environ.get("SLURMD_NODENAME"), "pid": os.getpid(),
            "start": start_of(os.getpid()), "job": os.environ.get("SLURM_JOB_ID"),
            "restart": os.environ.get("SLURM_RESTART_COUNT", "0"), "time": time.time()}


def _refuse_if_alive(path: Path, run_folder: Path) -> None:
    if patiently(path, path.with_name(path.name + ".released").exists):
        return
    try:
        holder = json.loads(read_bytes(path))
        pid, start = int(holder["pid"]), holder["start"]
        age_s = time.time() - _beat_of(path) / 1e9      # of two clocks, perhaps: it is shown, and decides nothing by itself
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return      # unreadable: nobody can be holding it by this program
    same_machine = holder.get("host") == socket.gethostname() and holder.get("boot") == boot_id()
    if same_machine and start_of(pid) != start:
        return
    where = f"process {pid} on {holder.get('node') or holder.get('host')}, last heard of {_ago(age_s)}"
    if holder.get("job"):
        where += f", SLURM job {holder['job']}"
    if _slurm_has_ended(holder) or (not same_machine and _is_silent(path, age_s, f"{run_folder}: held by {where}")):
        return      # if it lives on all the same, it is an orphan, and check() keeps it from writing
    raise CheckpointError(f"{run_folder}: this run is going on already ({where}); stop it first, or give this one another name (name=...)")


def _ago(age_s: float) -> str:
    return f"{age_s:.0f} s ago" if age_s > -1 else f"just now (its clock is {-age_s:.0f} s ahead of this one's)"


def _is_silent(path: Path, age_s: float, who: str) -> bool:
    """Whether the heart of a holder on another host has stopped beating: it is watched for as long as is missing from STALE_S.

    Its last beat by the clock there, or the file server's, tells little by the clock here: they may be an hour apart.  What was found is
    written down, so that the ranks need not watch again after their launcher.
    """
    beat, found = _beat_of(path), path.with_name(path.name + ".silent")
    with contextlib.suppress(OSError, ValueError):
        if int(read_bytes(found)) == beat:
            return True
    wait_s = min(max(STALE_S - age_s, WATCH_S), STALE_S)
    log.warning("%s; waiting up to %.0f s for a sign of life of it: if none comes, it is taken for dead", who, wait_s)
    awake = Awake(max(wait_s / 4, 1.0))
    while awake.look() < wait_s:
        time.sleep(min(1.0, wait_s / 10))
        if _beat_of(path) != beat:
            return False
    log.warning("%s: no sign of life in %.0f s; taken over", path.parent.parent, awake.seconds)
    with contextlib.suppress(OSError):
        write_atomically(found, str(beat), durable="no")
    return True


def _beat_of(path: Path) -> int:
    """When the heart of a lease beat last, in ns, by some clock.  Opened, since a network file system then asks its server.  Raises
    OSError."""
    def look() -> int:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns

    return patiently(path, look)


def _slurm_has_ended(holder: dict[str, object]) -> bool:
    """True if SLURM says that the attempt that held the lease does not run any more: the job is gone, or was restarted since."""
    job = holder.get("job")
    if not job:
        return False
    if os.environ.get("SLURM_JOB_ID") == job and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > int(str(holder.get("restart") or 0)):
        return True     # we are a later restart of that very job, whether slurmctld answers or not; an earlier one is an orphan itself
    try:        # where slurmctld does not answer, the heart is listened to
        answer = subprocess.run(["squeue", "--noheader", "--job", str(job), "--states=all", "--format=%T"],
                                capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    if answer.returncode != 0:
        return "Invalid job id" in answer.stderr
    return not any(state in answer.stdout for state in ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED"))
