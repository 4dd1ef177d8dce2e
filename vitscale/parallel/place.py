"""Which rank this process is, as the environment states it.  Imports no torch."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from vitscale.errors import ClusterError
from vitscale.parallel.launch import STORE_VARIABLE


@dataclass(frozen=True)
class Place:
    """A rank as the environment states it, before any connection is made."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    prepared: bool = False      # vitscale itself started this rank, after it had looked at the inputs


def node_name() -> str:
    """What this machine is called: by SLURM, which may run several nodes on one host, or by itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def place_from_environment() -> Place | None:
    """The rank that torchrun, `accelerate launch`, SLURM's srun or vitscale's launcher gave this process; None when started by hand."""
    env = os.environ
    if "RANK" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif "SLURM_PROCID" in env and env.get("SLURM_STEP_ID", "").isdigit():
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    else:
        return None
    if "RANK" not in env and env.get("SLURM_NTASKS") == "1":
        return None         # `srun --pty bash`: a shell on a node, in which ranks are started by hand
    try:
        rank, size = int(env[names[0]]), int(env[names[1]])
        local_rank = int(env.get(names[2], "0"))
        local_size = int(env.get(names[3], size)) if names[0] == "RANK" else _tasks_on_this_node(env)
    except (KeyError, ValueError) as error:
        raise ClusterError(f"the launcher's environment is incomplete: {error}; expected {', '.join(names)} as whole numbers") from None
    if not 0 <= rank < size or local_rank < 0:
        raise ClusterError(f"the launcher's environment contradicts itself: rank {rank} of {size}, local rank {local_rank}")
    return Place(rank, size, local_rank, local_size, prepared=STORE_VARIABLE in env)


def _tasks_on_this_node(env: Mapping[str, str]) -> int:
    """SLURM writes "8(x3),4" for three nodes of eight tasks and one of four; SLURM_NODEID says which of them this is."""
    counts: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1")).split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts[min(int(env.get("SLURM_NODEID", "0")), len(counts) - 1)]
