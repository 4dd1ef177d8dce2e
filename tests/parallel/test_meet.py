"""Ranks that do not come are named, by those that wait for them; real processes, one of which is never started."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitscale.parallel.rendezvous import _slurm_port, who_is_missing

RANK = """
import logging, sys, time
from vitscale.parallel import rendezvous
from vitscale.parallel.rank_info import RankInfo
logging.basicConfig(format="%(message)s")
rendezvous.PATIENCE_S = 0.3
try:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    store = rendezvous.rendezvous(RankInfo(rank, size), float(sys.argv[3]))
    print("all here")
    if store.add("left", 1) < size and rank == 0:       # it holds the store
        time.sleep(2)
except rendezvous.Absent as error:
    print(f"{error.exit_code} {error}")
"""


def start(rank: int, size: int, timeout_s: float, **environment: str) -> subprocess.Popen[str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER", "VITSCALE"))}
    return subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(size), str(timeout_s)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**bare, "SLURMD_NODENAME": f"n{1 + rank // 2}", **environment})


def meeting_point(tmp_path: Path, kind: str) -> dict[str, str]:
    if kind == "file":
        return {"VITSCALE_STORE": str(tmp_path / "store")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}


@pytest.mark.slow       # processes that import torch, and wait in vain
def test_those_that_wait_name_those_that_do_not_come(tmp_path: Path) -> None:
    where = meeting_point(tmp_path, "network")
    ranks = [start(rank, 5, 10, **where) for rank in (0, 1, 3)]
    began = time.monotonic()
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert time.monotonic() - began < 60
    told = "75 after 10 s ranks 2, 4 of 5 have not come; ranks came from n1, n2; look at its log, or leave that node out\n"
    assert [out for out, _ in ends] == [told] * 3
    assert "s: ranks 2, 4 of 5 have not come" in ends[0][1]      # said long before the end


@pytest.mark.slow       # processes that import torch
@pytest.mark.parametrize("kind", ["file", "network"])
def test_those_that_come_late_are_waited_for(tmp_path: Path, kind: str) -> None:
    where = meeting_point(tmp_path, kind)
    first = start(1, 2, 60, **where)
    time.sleep(0.5)
    ranks = [first, start(0, 2, 60, **where)]
    assert [rank.communicate(timeout=120)[0] for rank in ranks] == ["all here\n"] * 2


@pytest.mark.slow       # a process that imports torch and waits in vain
def test_a_rank_0_that_does_not_come_is_named(tmp_path: Path) -> None:
    where = meeting_point(tmp_path, "network")
    out, _ = start(1, 2, 3, **where).communicate(timeout=120)
    assert out.startswith(f"75 rank 0 was not to be reached at 127.0.0.1:{where['MASTER_PORT']} for 3 s: ")


def test_the_words() -> None:
    came = {0: "n1", 1: "n1", 6: "n4"}
    assert who_is_missing(came, 8, ["n1", "n2", "n3", "n4"]) == (
        "ranks 2-5, 7 of 8 have not come; nobody came from n2, n3; ranks came from n1, n4", ["n2", "n3"])


def test_another_port_for_each_attempt_and_step() -> None:
    """Orphans of earlier attempts, and a second step of the job, may hold theirs on the same node."""
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
    assert _slurm_port(job) == 24711
    others = [{"SLURM_RESTART_COUNT": str(restart), "SLURM_STEP_ID": str(step)} for restart in range(8) for step in range(4)]
    ports = [_slurm_port(job | other) for other in others]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 30000 for port in ports)
