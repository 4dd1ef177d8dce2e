"""`vitscale submit`, `status` and `cancel` with a real SLURM: a chain where jobs may not requeue, and a run that is given up."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jobs import TINY, Job
from running import Run

from slurm import JOB_S, Cluster

SITE = "nodes: 1\ngpus_per_node: 2\ncpus_per_task: 2\nrequeue: false\ndirectives: [--comment=tests]\n"


def vitscale(cluster: Cluster, yard: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "vitscale", *arguments], cwd=yard, env=cluster.environment, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(cluster: Cluster, yard: Path, name: str, *arguments: str) -> list[Job]:
    (yard / "site.yaml").write_text(SITE)
    said = vitscale(cluster, yard, "submit", "vit_huge", *TINY, f"name={name}", *arguments, "--cluster", "site.yaml").splitlines()[-1]
    assert said.startswith("submitted: ")
    return [Job(cluster, job, yard, Run(yard / "runs" / name)) for job in said.split()[1:]]


def status(cluster: Cluster, yard: Path) -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in json.loads(vitscale(cluster, yard, "status", "--json"))}


@pytest.mark.slow       # four starts of two processes that import torch, some at the same time
def test_a_chain_beside_a_run_that_is_cancelled(cluster: Cluster, yard: Path) -> None:
    first, second, third = submit(cluster, yard, "chain", "duration=30 steps", "--chain", "3")
    given_up, never = submit(cluster, yard, "given-up", "duration=5000 steps", "--chain", "2")
    assert status(cluster, yard)["chain"]["job"] == first.id
    assert cluster.job(third.id)["Comment"] == "tests"

    first.wait_for_step(12)
    cluster.command("scancel", "--signal=USR1", first.id)      # to the ranks alone, as by `--signal=USR1@300` without B:
    assert cluster.wait_for(first.id, "FAILED")["ExitCode"] == "75:0"
    assert first.run.outcome["state"] == "stopped early"

    given_up.wait_for_step(12)
    seen = status(cluster, yard)["given-up"]
    assert (seen["state"], seen["job"], seen["restarts"]) == ("running", given_up.id, 0)
    assert seen["eta_s"] > 0
    assert vitscale(cluster, yard, "cancel", "given-up") == f"cancelled: {given_up.id} {never.id}\n"
    for job in (given_up, never):
        cluster.wait_for(job.id, "CANCELLED", restarts=0)
    deadline = time.monotonic() + JOB_S
    while status(cluster, yard)["given-up"]["state"] != "stopped early":        # it saves before it goes
        assert time.monotonic() < deadline, given_up.words
        time.sleep(0.3)
    assert given_up.run.checkpoints[-1] == f"step-{given_up.run.outcome['step']:08d}"
    assert not (given_up.run.folder / "logs" / f"job-{never.id}.log").exists()

    cluster.wait_for(second.id, "COMPLETED")
    cluster.wait_for(third.id, "COMPLETED")
    assert [row["job"] for row in second.attempts] == [first.id, second.id]     # the third of the chain found the run over and began none
    log = (second.run.folder / "logs" / f"job-{third.id}.log").read_text()
    assert "an earlier job of this chain has ended the run: done" in log
    ended = status(cluster, yard)["chain"]
    assert (ended["state"], ended["step"], ended["done_ratio"], ended["restarts"]) == ("done", 30, 1.0, 1)
