"""Where all ranks meet before they are connected: the store's address, and who has not come."""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby

import torch.distributed as dist

from vitscale.awake import Awake
from vitscale.cluster import slurm
from vitscale.errors import EXIT_REQUEUE, ClusterError
from vitscale.parallel.launch import STORE_VARIABLE
from vitscale.parallel.rank_info import RankInfo, node_name

log = logging.getLogger(__name__)
PATIENCE_S = 30.0       # until the ranks that are waited for are named in the log, and again and again
_SLICE_S = 5.0          # at a time: a store counts the time in which the process was stopped as waiting
_GRACE_S = 15.0         # for rank 0 to tell the others that it waits no longer


class Absent(ClusterError):
    """Ranks have not come: their nodes are down, or cannot be reached.  A restart may find others."""

    exit_code = EXIT_REQUEUE

    def __init__(self, message: str, nodes: Sequence[str] = ()) -> None:
        """`nodes`: those of which no rank came, where SLURM names them."""
        super().__init__(message)
        self.facts = {"cause": "bad_node", "nodes": list(nodes)}


def rendezvous(place: RankInfo, timeout_s: float) -> dist.Store:
    """The store through which ranks find each other, once all have come.  Raises Absent naming those that have not in `timeout_s`."""
    if place.size == 1:
        return dist.HashStore()
    store = _store(place, timeout_s)
    try:
        store.set(f"here/{place.rank}", node_name())
        if place.rank == 0:
            message, nodes = _await_all(store, place.size, timeout_s)
            store.set("all here", "\n".join([message, *nodes]))
            if message:     # the store lives as long as this process: let the others read first
                _wait(store, [f"read/{rank}" for rank in range(1, place.size) if store.check([f"here/{rank}"])], _GRACE_S)
        else:
            if not _wait(store, ["all here"], timeout_s + _GRACE_S):
                raise Absent(f"rank 0 has not said within {timeout_s:.0f} s that all ranks have come; its log tells more")
            message, *nodes = store.get("all here").decode().split("\n")
            store.set(f"read/{place.rank}", "")
    except dist.DistError as error:
        raise Absent(f"rank 0 went away while ranks were waited for ({error}); its log tells more") from None
    if message:
        raise Absent(message, nodes)
    return store


def _await_all(store: dist.Store, size: int, timeout_s: float) -> tuple[str, list[str]]:
    """On rank 0: ("", []) when all are here, else what to say and the nodes of which nobody came."""
    awake, keys = Awake(PATIENCE_S + 1), [f"here/{rank}" for rank in range(size)]
    while True:
        if _wait(store, keys, max(min(PATIENCE_S, timeout_s - awake.look()), 0.1)):
            return "", []
        came = {rank: store.get(key).decode() for rank, key in enumerate(keys) if store.check([key])}
        if len(came) == size:
            return "", []
        said, nodes = who_is_missing(came, size, _job_nodes())
        if awake.look() >= timeout_s:
            return f"after {timeout_s:.0f} s {said}; look at its log, or leave that node out", nodes
        log.warning("waiting for %.0f s: %s", awake.seconds, said)


def _wait(store: dist.Store, keys: list[str], timeout_s: float) -> bool:
    """Whether the keys come in time, not counting that in which this process was stopped.  Stores do not agree on how to say that they
    do not."""
    awake = Awake(2 * _SLICE_S)
    while (left_s := timeout_s - awake.look()) > 0:
        try:
            store.wait(keys, timedelta(seconds=min(left_s, _SLICE_S)))
            return True
        except RuntimeError as error:
            if "timeout" not in str(error).lower():
                raise
    return False


def who_is_missing(came: Mapping[int, str], size: int, nodes: Sequence[str]) -> tuple[str, list[str]]:
    """Words for the ranks that have not come, of `came` {rank: node}, and of the job's `nodes` those of which nobody came.

        ranks 8-15 of 16 have not come; nobody came from n2; ranks came from n1
    """
    absent = [node for node in nodes if node not in came.values()]
    runs = [[rank for _, rank in run] for _, run in groupby(
        enumerate(rank for rank in range(size) if rank not in came), key=lambda pair: pair[1] - pair[0])]
    missing = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    said = f"rank {missing} of {size} has not come" if size - len(came) == 1 else f"ranks {missing} of {size} have not come"
    if absent:
        said += f"; nobody came from {', '.join(absent)}"
    return f"{said}; ranks came from {', '.join(sorted(set(came.values())))}", absent


def _store(place: RankInfo, timeout_s: float) -> dist.Store:
    """The meeting point of all ranks.  Raises ClusterError, and Absent if rank 0 does not open it."""
    if STORE_VARIABLE in os.environ:
        return dist.FileStore(os.environ[STORE_VARIABLE], place.size)
    if "MASTER_ADDR" not in os.environ and "SLURM_JOB_NODELIST" in os.environ:
        address, port = _slurm_master(timeout_s, of_step=place.launcher.startswith("srun"))
    else:
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise ClusterError(f"the launcher's environment is incomplete: {error}; MASTER_ADDR and MASTER_PORT name rank 0's machine and "
                               "a free port there, the same for all ranks (mpirun -x MASTER_ADDR=... -x MASTER_PORT=29500; mpiexec -genv "
                               "MASTER_ADDR ... -genv MASTER_PORT 29500)") from None
    # torchrun keeps the store in a process of its own; else rank 0 does
    opens = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return dist.TCPStore(address, port, place.size, is_master=opens, timeout=timedelta(seconds=timeout_s), multi_tenant=True,
                             wait_for_workers=False)
    except dist.DistError as error:
        if opens:
            raise ClusterError(f"port {port} of {address} cannot be opened for the other ranks: {error}") from None
        raise Absent(f"rank 0 was not to be reached at {address}:{port} for {timeout_s:.0f} s: its node is down, it could not start, or a "
                     "firewall stands between") from None


def _job_nodes() -> list[str]:
    """The nodes of this job step by SLURM; [] elsewhere."""
    listed = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST")
    try:
        return slurm.ask("scontrol", "show", "hostnames", listed).split() if listed else []
    except ClusterError:
        return []


def _slurm_master(timeout_s: float, of_step: bool = True) -> tuple[str, int]:
    """Address of the first node of the step (its name if that resolves, else SLURM's NodeAddr), and a port.  Of the job for ranks that
    mpirun started: only those on other nodes than its own are in a step.  Raises ClusterError, and Absent if slurmctld has not answered
    for `timeout_s`."""
    listed = (os.environ.get("SLURM_STEP_NODELIST") if of_step else None) or os.environ["SLURM_JOB_NODELIST"]
    try:
        first = slurm.ask("scontrol", "show", "hostnames", listed).split()[0]
        try:
            socket.getaddrinfo(first, None)
            address = first
        except OSError:
            node = _patiently("scontrol", "show", "node", first, "--oneliner", timeout_s=timeout_s)
            address = dict(pair.split("=", 1) for pair in node.split() if "=" in pair)["NodeAddr"]
    except (IndexError, KeyError) as error:
        raise ClusterError(f"cannot find the address of the job's first node through scontrol: {error}") from None
    return address, _slurm_port(os.environ if of_step else {**os.environ, "SLURM_STEP_ID": "0"})


def _patiently(*command: str, timeout_s: float) -> str:
    """slurm.ask(), again while nobody answers."""
    awake, said = Awake(slurm.TIMEOUT_S + 1), False
    while True:
        try:
            return slurm.ask(*command)
        except slurm.NoAnswer as error:
            if awake.look() >= timeout_s:
                raise Absent(f"the address of the first node was asked for for {timeout_s:.0f} s: {error}") from None
            if not said:
                log.warning("%s; asking again for up to %.0f s", error, timeout_s)
            said = True
            time.sleep(min(1.0, timeout_s))


def _slurm_port(env: Mapping[str, str]) -> int:
    """The same for all ranks of a step, and another for each job, restart and step: an orphan of an earlier attempt may hold its own."""
    job, restart, step = (int(env.get(f"SLURM_{name}", "0")) for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    return 20000 + (job + 1009 * restart + 101 * step) % 10000
