"""The checks that one rank makes of its own machine.  Each gives a Finding; none changes anything that stays."""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import vitscale
from vitscale.awake import Awake
from vitscale.checkpoint.room import free_bytes
from vitscale.checkpoint.store import checkpoints_in
from vitscale.counts import plural
from vitscale.data import remote
from vitscale.data.descriptors import Held
from vitscale.data.index import SetIndex
from vitscale.errors import UserError
from vitscale.parallel.world import World
from vitscale.recipe import Recipe
from vitscale.resilience.speed import write_speed
from vitscale.shapes.storage import checkpoint_bytes, retained_checkpoints
from vitscale.terminal import size

OTHERS_BYTES = 2 << 30          # a GPU with more than this taken before we begin is used by somebody else; our own context takes less
SLOW_CHECKPOINT_S = 600.0       # a checkpoint that takes longer to write is worth a word
LARGEST_PROBE = 64 << 20        # bytes written to measure the disk
SMALLEST_PROBE = 1 << 20
SHARED_S = 5.0                  # a network file system may show a new file that much later
_SHM_BYTES = 1 << 30            # what NCCL's transport between the GPUs of a node can take; containers often come with 64 MB
_SAMPLED_SHARDS = 4


@dataclass(frozen=True)
class Finding:
    """What one check found: on every rank alike, or on the one that `where` names."""

    name: str
    state: Literal["ok", "warning", "failed"]
    value: float | str = ""
    unit: str = ""
    words: str = ""             # what it means, and what to do
    where: str = ""             # "n2 (rank 8)"


def versions(engine: str) -> dict[str, str]:
    """What must be the same on all nodes; engines' libraries where the recipe wants them."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "vitscale": vitscale.__version__}
    library = {"zero": "deepspeed", "accelerate": "accelerate"}.get(engine)
    if library:
        found[library] = importlib.metadata.version(library)
    if torch.cuda.is_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def recipe_digest(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def clock() -> float:
    """Seconds since 1970 by this host."""
    return time.time()


def gpu(device: torch.device) -> list[Finding]:
    """Memory that others hold, uncorrected memory errors, and, where nvidia-smi is there, driver, clocks and power.  Not measured on a
    GPU yet."""
    free, total = torch.cuda.mem_get_info(device)
    taken = total - free
    name = torch.cuda.get_device_name(device)
    if taken > OTHERS_BYTES:
        memory = Finding("GPU memory", "warning", taken / 1e9, "GB taken",
                         f"of {size(total)} on {name}, before this run began: another process is there; nvidia-smi names it")
    else:
        memory = Finding("GPU memory", "ok", total / 1e9, "GB", name)
    return [memory, *smi_findings(_smi(device))]


_SMI_FIELDS = ("driver_version", "ecc.errors.uncorrected.volatile.total", "temperature.gpu", "power.draw", "power.limit", "clocks.sm",
               "clocks.max.sm")


def _smi(device: torch.device) -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        return subprocess.run(["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def smi_findings(line: str) -> list[Finding]:
    """From one line of nvidia-smi's; nothing where it could not be had."""
    values = [value.strip() for value in line.strip().split(",")]
    if len(values) != len(_SMI_FIELDS):
        return []
    driver, errors, heat, draw, limit, now, top = values
    found = [Finding("GPU driver", "ok", driver, "", f"{heat} C, {draw} of {limit} W, {now} of {top} MHz")]
    if errors.isdigit() and int(errors) > 0:
        found.append(Finding("GPU memory errors", "warning", int(errors), "uncorrected",
                             "since the driver was loaded; have the node looked at, and reset the GPU"))
    return found


def disk_space(recipe: Recipe, parameters: int, folder: Path) -> Finding:
    """Free bytes against the checkpoints that will be there at once."""
    one, most = checkpoint_bytes(recipe, parameters), retained_checkpoints(recipe)
    there = min(len(checkpoints_in(folder / "checkpoints")), most - 1)
    free, wanted = free_bytes(folder), one * (most - there)
    if free < one:
        return Finding("disk space", "failed", free / 1e9, "GB free",
                       f"{folder}: a checkpoint takes {size(one)} and {size(free)} are free; make room, or give another runs_dir")
    if free < wanted:
        return Finding("disk space", "warning", free / 1e9, "GB free",
                       f"{folder}: checkpoints of {size(one)} will want {size(wanted)} more, and {size(free)} are free; make room, "
                       f"or lower checkpoint.keep ({recipe.checkpoint.keep})")
    return Finding("disk space", "ok", free / 1e9, "GB free", f"a checkpoint takes {size(one)}")


def disk_speed(recipe: Recipe, parameters: int, folder: Path, nodes: int) -> Finding:
    """Of this node, while the other nodes write too."""
    one = checkpoint_bytes(recipe, parameters)
    num_bytes = max(min(one // nodes, LARGEST_PROBE), SMALLEST_PROBE)
    try:
        speed = write_speed(folder / f".preflight-{os.getpid()}-{os.urandom(4).hex()}", num_bytes)
    except OSError as error:
        return Finding("disk speed", "failed", "", "", f"{folder}: {size(num_bytes)} cannot be written ({error.strerror}); see to the disk")
    seconds = one / (speed * nodes)
    if seconds > SLOW_CHECKPOINT_S:
        return Finding("disk speed", "warning", speed / 1e6, "MB/s",
                       f"{folder}: a checkpoint of {size(one)} would take {seconds / 60:.0f} minutes; choose a faster disk for runs_dir")
    return Finding("disk speed", "ok", speed / 1e6, "MB/s", f"{size(num_bytes)} with fsync")


def shared(folder: Path, token: str) -> Finding:
    """Whether this rank sees the file `token` that rank 0 has written into the run folder."""
    awake = Awake(1.0)
    while True:
        try:
            if (folder / token).read_text() == token:
                return Finding("run folder", "ok", "shared", "", str(folder))
        except OSError:
            pass
        if awake.look() > SHARED_S:
            return Finding("run folder", "failed", "not shared", "",
                           f"{folder.absolute()}: what rank 0 writes into its run folder is not seen here: it is on a disk of one node, or "
                           "under another path; set runs_dir to a folder on a file system that all nodes share")
        time.sleep(0.1)


def shards(indexes: Sequence[SetIndex], rank: int) -> Finding:
    """Reads the headers of a few samples where the index says they are.  That sizes and times of all shards fit, open_index() has seen."""
    looked = 0
    for index in indexes:
        away = any(map(remote.is_remote, index.urls))
        filled = [number for number, count in enumerate(index.counts) if count]
        wanted = min(len(filled), 1 if away else _SAMPLED_SHARDS)
        for turn in range(wanted):
            shard = filled[(rank * wanted + turn * max(len(filled) // wanted, 1)) % len(filled)]
            sample = int(index.counts[shard]) // 2
            looked += 1
            try:
                if index.key_of(shard, sample) != "?":
                    continue
                why = f"{index.paths[shard]}: sample {sample} is not where the index says, though size and time are as they were"
            except UserError as error:
                why = str(error)
            return Finding("shards", "failed", "", "", f"{why}; touch the shard and run `vitscale data index`, and `vitscale data verify`")
    return Finding("shards", "ok", looked, "headers read")


def open_files(indexes: Sequence[SetIndex]) -> Finding:
    """The hard limit, since the soft one is raised to it; three quarters of it may be open shards."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_shards = sum(len(index.urls) for index in indexes)
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "unlimited")
    held = Held(limit)
    most = held.allowed - held.reserve
    if limit < 4096 and most < num_shards:
        return Finding("open files", "warning", limit, "at most",
                       f"of {plural(num_shards, 'shard')} {most} stay open at once, others are opened anew when read; raise `ulimit -Hn`")
    return Finding("open files", "ok", limit, "at most")


def shared_memory(world: World) -> list[Finding]:
    """/dev/shm, which NCCL uses between the GPUs of a node; nobody does on a CPU."""
    if world.device.type != "cuda" or world.local_size == 1:
        return []
    try:
        facts = os.statvfs("/dev/shm")
    except OSError:
        return [Finding("/dev/shm", "warning", "", "", "is not there; NCCL exchanges more slowly without it")]
    there = facts.f_blocks * facts.f_frsize
    if there < _SHM_BYTES:
        return [Finding("/dev/shm", "warning", there / 1e6, "MB",
                        f"NCCL may want up to {size(_SHM_BYTES)}; start the container with --shm-size, or --ipc=host")]
    return [Finding("/dev/shm", "ok", there / 1e9, "GB")]
