"""Which rank this process is, as the environment of whatever launcher started it states it.  Imports no torch."""

import os
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.counts import plural
from vitscale.errors import ClusterError
from vitscale.parallel.launch import STORE_VARIABLE


@dataclass(frozen=True)
class RankInfo:
    """A rank as the environment states it, before any connection is made."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    prepared: bool = False      # vitscale itself started this rank, after it had looked at the inputs
    launcher: str = field(default="", compare=False)    # who started it, in words


@dataclass(frozen=True)
class Started:
    """What the environment says of how this process was started."""

    place: RankInfo | None             # None: by hand, so that it starts the ranks of this machine itself
    told: str                       # that in a line, to which a process started by hand adds how many ranks it starts
    notes: tuple[str, ...] = ()     # variables that were passed over, and why


@dataclass(frozen=True)
class _Names:
    """The variables of a launcher; of several names for one thing the first that is there."""

    launcher: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


# torchrun, `accelerate launch` (which is torchrun inside), deepspeed's launcher (LOCAL_SIZE), a PyTorchJob of Kubernetes, and people
_TORCH = _Names("", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
_MPI = (
    _Names("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",), ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    _Names("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", ("MV2_COMM_WORLD_LOCAL_RANK",), ("MV2_COMM_WORLD_LOCAL_SIZE",)),
    _Names("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", ("JSM_NAMESPACE_LOCAL_RANK",), ("JSM_NAMESPACE_LOCAL_SIZE",)),
    _Names("MPI", "PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID"),      # Hydra: MPICH, Intel; Cray
           ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE", "PALS_LOCAL_SIZE")),
)
_FIRST_SPECIAL_STEP = 0xFFFFFFF0        # slurm.h: the interactive step of an allocation is ...FA, the batch script's ...FB


def node_name() -> str:
    """What this machine is called: by SLURM, which may run several nodes on one host, or by itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rank_info_from_environment() -> RankInfo | None:
    """The rank that a launcher gave this process; None when started by hand.  Raises ClusterError."""
    return how_started(os.environ).place


def how_started(env: Mapping[str, str]) -> Started:
    """Raises ClusterError for an environment that is incomplete or contradicts itself.

    Launchers lie in each other: a SLURM step may be a shell in which mpirun starts ranks, and torchrun may run in those of either.  The
    nearest counts: torchrun's before MPI's before SLURM's.  Of an outer one that is larger than the inner, the inner is what was left over
    in a shell.  An allocation is no launcher: only a step has tasks.
    """
    step = _step(env)
    outer = 1 if step is None else step.size
    if _TORCH.rank in env:
        return _by_torch_variables(env, step)
    notes = [f"{name} is set but RANK is not: passed over" for name in (_TORCH.size, *_TORCH.local_rank) if name in env]
    for names in _MPI:
        if names.rank not in env:
            continue
        place = _place(env, names, names.launcher)
        if place.size < outer:
            notes.append(f"{names.rank}={place.rank} of {names.size}={place.size} is left over in a step of {outer} tasks: passed over")
        elif place.size > 1 and (step is None or (place.rank, place.size) != (step.rank, step.size)):     # else SLURM's own PMI
            return Started(place, _words(place), tuple(notes))
    if step is not None:
        return Started(step, _words(step), tuple(notes))
    _refuse_what_cannot_work(env)
    return Started(None, f"started by hand{_whereabouts(env)}", tuple(notes))


def _step(env: Mapping[str, str]) -> RankInfo | None:
    """The task of a SLURM step; None outside of one, and in the one task of a shell on a node (`srun --pty bash`, an interactive step)."""
    number = env.get("SLURM_STEP_ID", "")
    if "SLURM_PROCID" not in env or not number.isdigit() or int(number) >= _FIRST_SPECIAL_STEP:
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"     # the latter may be the allocation's
    if env.get(size) == "1" or _is_terminals_shell(env):
        return None
    names = _Names(f"srun step {env.get('SLURM_JOB_ID', '?')}.{number}", "SLURM_PROCID", size, ("SLURM_LOCALID",), ())
    return _place(env, names, names.launcher, _tasks_on_this_node(env))


def _is_terminals_shell(env: Mapping[str, str]) -> bool:
    """Whether a person typed this command into a shell that is task 0 of `srun --pty -n4 bash`.

    The other tasks are shells without a terminal, which have ended at once.  A shell with a terminal gives each command a process group of
    its own; a task's own program leads its session (SLURM 22.05, measured)."""
    return "SLURM_PTY_PORT" in env and env.get("SLURM_PROCID") == "0" and os.getpgrp() != os.getsid(0)


def _by_torch_variables(env: Mapping[str, str], step: RankInfo | None) -> Started:
    if _TORCH.size not in env:
        raise ClusterError(f"the launcher's environment is incomplete: RANK is {env['RANK']!r} but there is no WORLD_SIZE; to start by "
                           "hand in a shell in which RANK is left over: `unset RANK`")
    is_whole = _TORCH.local_rank[0] in env or STORE_VARIABLE in env
    elastic = "TORCHELASTIC_RUN_ID" in env
    named = "vitscale" if STORE_VARIABLE in env else "torchrun" if elastic else "a PyTorchJob" if "KUBERNETES_SERVICE_HOST" in env \
        else "those that RANK and WORLD_SIZE name"
    place = _place(env, _TORCH, named, local_size=None if is_whole else 1)
    if place.prepared:
        return Started(place, _words(place))
    if step is not None and place.size < step.size and not elastic:
        raise ClusterError(f"the launcher's environment contradicts itself: RANK={place.rank} and WORLD_SIZE={place.size} are exported, "
                           f"but {step.launcher} has {step.size} tasks; left over in a shell they go by `unset RANK WORLD_SIZE LOCAL_RANK`")
    if step is not None and not is_whole and (place.rank, place.size) == (step.rank, step.size):
        return Started(step, _words(step))
    if is_whole:
        return Started(place, _words(place))
    wanted = env.get("PET_NPROC_PER_NODE", "1")
    if place.size == 1:     # a single pod, or what is left over in a shell
        return Started(None, f"started by hand{_whereabouts(env)}", ("RANK=0 and WORLD_SIZE=1 without LOCAL_RANK: passed over",))
    if wanted not in ("1", "auto") or len(gpus := _gpus(env)) > 1:
        here = f"PET_NPROC_PER_NODE={wanted}" if wanted not in ("1", "auto") else f"{plural(len(gpus), 'GPU')} are here"
        raise ClusterError(
            f"RANK={place.rank} and WORLD_SIZE={place.size} without LOCAL_RANK make one rank of each machine or pod, but {here}: start "
            "`torchrun --nnodes=NODES --node-rank=NODE --nproc-per-node=RANKS --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT "
            "--no-python vitscale ...` on each, or set CUDA_VISIBLE_DEVICES to the one GPU that this rank shall have")
    return Started(place, _words(place))


def _place(env: Mapping[str, str], names: _Names, launcher: str, local_size: int | None = None) -> RankInfo:
    """By the variables of one launcher; `local_size` where they do not say it."""
    wanted = (names.rank, names.size, *names.local_rank[:1], *names.local_size[:1])
    try:
        rank, size = int(env[names.rank]), int(env[names.size])
        local_rank = int(_first(env, names.local_rank, "0"))
        if local_size is None:
            local_size = int(_first(env, names.local_size, str(size)))
    except (KeyError, ValueError) as error:
        raise ClusterError(f"the launcher's environment is incomplete: {error}; expected {', '.join(wanted)} as whole numbers") from None
    if not 0 <= rank < size or local_rank < 0:
        raise ClusterError(f"the launcher's environment contradicts itself: rank {rank} of {size}, local rank {local_rank}")
    if not local_rank < local_size <= size:
        raise ClusterError(f"the launcher's environment contradicts itself: local rank {local_rank} of {local_size} on this machine, "
                           f"of {size} in all ({', '.join(wanted)})")
    return RankInfo(rank, size, local_rank, local_size, prepared=STORE_VARIABLE in env, launcher=launcher)


def _first(env: Mapping[str, str], names: Iterable[str], otherwise: str) -> str:
    return next((env[name] for name in names if name in env), otherwise)


def _tasks_on_this_node(env: Mapping[str, str]) -> int:
    """SLURM writes "8(x3),4" for three nodes of eight tasks and one of four; SLURM_NODEID says which of them this is."""
    listed = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", "1"))
    counts: list[int] = []
    for part in listed.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ClusterError(f"the launcher's environment is incomplete: SLURM_STEP_TASKS_PER_NODE is {listed!r}, not like '8(x3),4'")
        counts += [int(found[1])] * int(found[2] or 1)
    node = env.get("SLURM_NODEID", "0")
    return counts[min(int(node) if node.isdigit() else 0, len(counts) - 1)]


def _refuse_what_cannot_work(env: Mapping[str, str]) -> None:
    """Launchers that start this process several times, and do not say as which rank."""
    if env.get("PET_NNODES", "1") != "1":       # a TrainJob of Kubernetes leaves it to torchrun to read these
        raise ClusterError(f"PET_NNODES={env['PET_NNODES']} is meant for torchrun, which makes ranks of it: start `torchrun --no-python "
                           "vitscale ...` in each pod")
    if "PBS_JOBID" in env and env.get("PBS_TASKNUM", "1").isdigit() and int(env.get("PBS_TASKNUM", "1")) > 1:
        raise ClusterError("pbsdsh does not say how many processes it started: start the ranks with mpirun, or torchrun on each node: "
                           "`pbsdsh -- torchrun --nnodes=NODES --node-rank=$PBS_NODENUM ... --no-python vitscale ...`")


def _words(place: RankInfo) -> str:
    return f"ranks: {place.size} of {place.launcher}, this is rank {place.rank} on node {node_name()}"


def _whereabouts(env: Mapping[str, str]) -> str:
    job, step = env.get("SLURM_JOB_ID"), env.get("SLURM_STEP_ID", "")
    if job is None:
        return ""
    if step.isdigit():
        tasks = env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
        what = "which has one task," if tasks == "1" else f"of whose {tasks} tasks this one alone has a terminal,"
        return f" inside {'an interactive step' if int(step) >= _FIRST_SPECIAL_STEP else f'step {step}, {what}'} of job {job}"
    return f" inside job {job}"


def _gpus(env: Mapping[str, str]) -> list[str]:
    """Those that this process may use."""
    given = env.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one.strip()]
    return [path.name for path in Path("/dev").glob("nvidia[0-9]*")]
