"""Where this process stands: its rank, the number of ranks, its device; joined from SLURM, torchrun or vitscale's own launcher."""

import contextlib
import logging
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from vitscale.errors import ClusterError
from vitscale.parallel.launch import STORE_VARIABLE
from vitscale.parallel.place import Place
from vitscale.recipe import Parallel

log = logging.getLogger(__name__)



@dataclass(frozen=True)
class World:
    """This rank among all ranks, connected."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    host_group: Any             # gloo group over all ranks for small host-side exchanges; None for one process

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.host_group is not None:
            dist.barrier(group=self.host_group)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, a plain picklable object, on every rank."""
        if self.host_group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def gather(self, value: Any) -> list[Any] | None:
        """Every rank's plain `value` in rank order, on rank 0; None elsewhere."""
        if self.host_group is None:
            return [value]
        box: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, box, dst=0, group=self.host_group)
        return box

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Add `values` (on the device) over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


def lost_a_peer(error: Exception) -> bool:
    """Whether an exception only says that another rank is gone; the cause is to be looked for there."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "recvValue failed",
             "remote process exited", "Socket Timeout", "failed to recv")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)     # torch's DistError is a RuntimeError too


def choose_device(parallel: Parallel, place: Place) -> torch.device:
    """`auto` is a GPU where there is one.  Raises ClusterError if a GPU is asked for and absent, or there are too few for the ranks."""
    count = torch.cuda.device_count() if parallel.device != "cpu" else 0
    if parallel.device == "cuda" and count == 0:
        raise ClusterError("parallel.device is cuda but torch sees no GPU here; use parallel.device=auto or cpu")
    if count == 0:
        return torch.device("cpu")
    # srun may show each task its own GPU only; a launcher of ours shows all of them
    if place.local_rank >= count and (count > 1 or place.prepared):
        raise ClusterError(f"local rank {place.local_rank} has no GPU: {count} visible; start at most {count} rank(s) on this node")
    return torch.device("cuda", place.local_rank if count > 1 else 0)


@contextlib.contextmanager
def joined(parallel: Parallel, place: Place, timeout_s: float = 600.0) -> Iterator[World]:
    """Connect to the other ranks for the length of a `with` block."""
    device = choose_device(parallel, place)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = None
    # fsdp, zero and accelerate want a process group even for one rank
    if place.size > 1 or parallel.engine != "ddp":
        store, timeout = _store(place, timeout_s), timedelta(seconds=timeout_s)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout,
                                device_id=device if device.type == "cuda" else None)
        group = dist.new_group(backend="gloo", timeout=timeout)
    try:
        yield World(place.rank, place.size, place.local_rank, place.local_size, device, group)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store(place: Place, timeout_s: float) -> dist.Store:
    """The meeting point of all ranks."""
    if STORE_VARIABLE in os.environ:
        return dist.FileStore(os.environ[STORE_VARIABLE], place.size)
    timeout = timedelta(seconds=timeout_s)
    if place.size == 1:
        return dist.HashStore()
    if "MASTER_ADDR" not in os.environ and "SLURM_JOB_NODELIST" in os.environ:
        address, port = _slurm_master()
        return dist.TCPStore(address, port, place.size, is_master=place.rank == 0, timeout=timeout, multi_tenant=True)
    rendezvous = dist.rendezvous("env://", rank=place.rank, world_size=place.size, timeout=timeout)
    store, _, _ = next(iter(rendezvous))
    return store


def _slurm_master() -> tuple[str, int]:
    """Address of the step's first node (its name if that resolves, else SLURM's NodeAddr), and a port."""
    try:
        names = subprocess.run(["scontrol", "show", "hostnames", os.environ.get("SLURM_STEP_NODELIST", os.environ["SLURM_JOB_NODELIST"])],
                               capture_output=True, text=True, check=True, timeout=30).stdout.split()
        try:
            socket.getaddrinfo(names[0], None)
            address = names[0]
        except OSError:
            node = subprocess.run(["scontrol", "show", "node", names[0], "--oneliner"],
                                  capture_output=True, text=True, check=True, timeout=30).stdout
            address = dict(pair.split("=", 1) for pair in node.split() if "=" in pair)["NodeAddr"]
    except (OSError, subprocess.SubprocessError, IndexError, KeyError) as error:
        raise ClusterError(f"cannot find the address of the job's first node through scontrol: {error}") from None
    return address, _slurm_port(os.environ)


def _slurm_port(env: Mapping[str, str]) -> int:
    """The same for all ranks of a step, and another for each job, restart and step: an orphan of an earlier attempt may hold its own."""
    job, restart, step = (int(env.get(f"SLURM_{name}", "0")) for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return 20000 + (job + 1009 * restart + 101 * step) % 10000
