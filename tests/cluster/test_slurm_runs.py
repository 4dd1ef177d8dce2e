"""`sbatch slurm/vit_huge.sh` on four real nodes trains to the end through what SLURM, signals and kills do to it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobs import Job
from running import Run

from slurm import Cluster

pytestmark = pytest.mark.slow       # whole jobs: four processes start on two cores, and SLURM holds a requeued job for nine seconds


def side_by_side(*stories: Callable[[], None]) -> None:
    """Jobs on nodes of their own, at once, since most of a story is waiting for SLURM."""
    with ThreadPoolExecutor(len(stories)) as threads:
        for told in [threads.submit(story) for story in stories]:
            told.result()


def test_fsdp_through_a_killed_rank_and_a_signal(cluster: Cluster, yard: Path, alone: Run) -> None:
    job = Job.submit(cluster, yard, "f", "duration=45 steps")
    job.wait_for_step(12)
    job.kill_rank(3)
    job.wait_for_restart(1)

    job.wait_for_step(20, attempt=2)
    cluster.command("scancel", "--batch", "--signal=USR2", job.id)
    job.wait_for_restart(2)
    stopped = job.run.outcome
    assert (stopped["state"], stopped["cause"]) == ("stopped early", "time_limit"), stopped
    assert job.run.checkpoints[-1] == f"step-{stopped['step']:08d}"     # no step is lost on a signal

    job.complete(restarts=2, steps=45)
    job.goes_like(alone, 45)
    assert "4 rank(s)" in job.log
    first, second, third = job.attempts
    assert first["ranks"] == 4
    assert second["step"] in (10, 20)       # the last checkpoint before the kill
    assert second["cause"] == "killed"
    assert (third["step"], third["cause"]) == (stopped["step"], "time_limit")
    assert {row["node"] for row in job.attempts} == {"n1"}      # rank 0's


def test_preempted_then_on_the_one_node_that_is_left(cluster: Cluster, yard: Path, alone: Run) -> None:
    """Four ranks make way for a job of the partition `high`; then one of their nodes is set down, and two ranks go on."""
    job = Job.submit(cluster, yard, "p", "duration=60 steps", nodes="n1,n2", options=("--nodes=1-2",))
    job.wait_for_step(12)
    urgent = cluster.sbatch(yard, "--partition=high", "--nodes=4", "--exclusive", "--output=urgent.log", "--wrap=sleep 1")
    job.wait_for_restart(1)
    preempted = job.run.outcome
    assert preempted["state"] == "stopped early", preempted
    assert job.run.checkpoints[-1] == f"step-{preempted['step']:08d}"
    cluster.wait_for(urgent, "COMPLETED")

    job.wait_for_step(preempted["step"] + 5, attempt=2)
    cluster.command("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    job.wait_for_restart(2)

    job.complete(restarts=2, steps=60)
    job.goes_like(alone, 60)
    assert [row["ranks"] for row in job.attempts] == [4, 4, 2]
    assert job.attempts[1]["step"] == preempted["step"]


def test_zero_through_the_time_limit_beside_a_node_that_loses_its_slurmd(cluster: Cluster, yard: Path, alone: Run) -> None:
    def time_limit() -> None:
        job = Job.submit(cluster, yard, "z", "duration=2000 steps", "parallel.engine=zero", options=("--time=2", "--signal=B:USR2@75"))
        job.wait_for_restart(1)
        stopped = job.run.outcome
        assert (stopped["state"], stopped["cause"]) == ("stopped early", "time_limit"), stopped
        job.wait_for_step(stopped["step"] + 10, attempt=2)
        cluster.command("scancel", job.id)
        cluster.wait_for(job.id, "CANCELLED")
        assert job.attempts[1]["step"] == stopped["step"] == job.run.outcome["step"]
        job.goes_like(alone, min(stopped["step"] + 10, 200))

    def lost_slurmd() -> None:
        """SLURM gives the node up and starts the job on another, while the old batch script and its ranks are still at work."""
        job = Job.submit(cluster, yard, "o", "duration=2000 steps", nodes="n3,n4", options=("--nodes=1",))
        job.wait_for_step(12)
        node = cluster.job(job.id)["BatchHost"]
        orphans = cluster.processes(f"SLURM_JOB_ID={job.id}")
        assert len(orphans) >= 4        # srun, two ranks, the batch script
        cluster.kill_node(node)
        job.wait_for_restart(1)
        assert [pid for pid in orphans if pid in cluster.processes()] == orphans
        job.wait_for_step(30, attempt=2)

    side_by_side(time_limit, lost_slurmd)
