"""`sbatch slurm/vit_huge.sh` on four real nodes trains to the end through what SLURM, signals and kills do to it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from accounts import one_story
from jobs import Job
from running import Run

from slurm import Cluster

pytestmark = pytest.mark.slow       # whole jobs: four processes start on two cores, and SLURM holds a requeued job for nine seconds


def side_by_side(*stories: Callable[[], None]) -> None:
    """Jobs on nodes of their own, at once, since most of a story is waiting for SLURM."""
    with ThreadPoolExecutor(len(stories)) as threads:
        told = [threads.submit(story) for story in stories]
    errors = [error for story in told if isinstance(error := story.exception(), Exception)]
    if errors:
        raise ExceptionGroup("not as told", errors)


def test_fsdp_through_a_killed_rank_and_a_signal_each_without_slurmctld(cluster: Cluster, yard: Path, alone: Run) -> None:
    """One rank on each of two nodes, each of which holds a copy of the whole state."""
    job = Job.submit(cluster, yard, "f", "duration=100 steps", "parallel.replicate=nodes", options=("--ntasks-per-node=1",))
    job.wait_for_step(12)
    victim, daemons = cluster.rank(job.id, 1), {job.step_daemon(rank) for rank in range(2)}
    with cluster.without_controller(killed=False):      # the ranks end, and nobody answers what is to become of the job
        os.kill(victim, signal.SIGKILL)
        job.wait_for_words("slurmctld does not answer (Socket timed out")
        assert cluster.processes(f"SLURM_JOB_ID={job.id}")      # the batch script waits
    job.wait_for_restart_without(1, daemons)
    assert "slurmctld answers again" in job.log
    one_story(job.run.folder, log=job.log, state="stopped early", cause="killed", words=("rank 1 on n2 was ended by SIGKILL",))

    job.wait_for_step(20, attempt=2)
    daemons = {job.step_daemon(rank) for rank in range(2)}
    cluster.command("scancel", "--batch", "--signal=USR1", job.id)
    job.wait_for_words("the ranks are told to save and stop")       # scancel does not wait until the signal has come
    with cluster.without_controller(killed=True):
        told = [subprocess.run([sys.executable, "-m", "vitscale", *words], cwd=yard, env=cluster.environment, capture_output=True,
                               text=True, timeout=120) for words in (("status", "--json"), ("cancel", "f"))]
        job.wait_for_words("slurmctld does not answer (Unable to contact slurm controller")
    assert [one.returncode for one in told] == [0, 75]
    assert all("slurmctld does not answer: slurm_load_jobs error: Unable to contact" in one.stderr for one in told), told
    assert "not in the queue" not in told[0].stdout
    job.wait_for_restart_without(2, daemons)
    stopped = job.run.outcome
    assert stopped["state"] == "stopped early", stopped
    assert stopped["cause"] in ("signal", "time_limit")     # the former if slurmctld could be asked why just before it died
    assert job.run.checkpoints[-1] == f"step-{stopped['step']:08d}"     # no step is lost on a signal

    job.complete(restarts=2, steps=100)
    job.goes_like(alone, 45)
    assert "2 ranks" in job.log
    first, second, third = job.attempts
    assert first["ranks"] == 2
    assert 10 <= second["step"] < 100       # the last checkpoint before the kill
    assert second["step"] % 10 == 0
    assert second["cause"] == "killed"
    assert (third["step"], third["cause"]) == (stopped["step"], stopped["cause"])
    assert {row["node"] for row in job.attempts} == {"n1"}      # rank 0's


def test_zero_preempted_then_on_the_one_node_that_is_left(cluster: Cluster, yard: Path, alone: Run) -> None:
    """Two ranks make way for a job of the partition `high`; then one of their nodes is set down, and one rank goes on."""
    job = Job.submit(cluster, yard, "p", "duration=60 steps", "parallel.engine=zero", options=("--exclude=n3,n4", "--ntasks-per-node=1"))
    job.wait_for_step(12)
    urgent = cluster.sbatch(yard, "--partition=high", "--nodes=4", "--exclusive", "--output=urgent.log", "--wrap=sleep 1")
    job.wait_for_restart(1)
    preempted = job.run.outcome
    one_story(job.run.folder, log=job.log, state="stopped early", cause="preemption", words=(f"job {job.id} is preempted",), lost=0)
    assert job.run.checkpoints[-1] == f"step-{preempted['step']:08d}"
    cluster.wait_for(urgent, "COMPLETED")

    job.wait_for_step(preempted["step"] + 5, attempt=2)
    cluster.command("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    job.wait_for_restart(2)
    one_story(job.run.folder, log=job.log, state="stopped early", cause="node_failure", words=("lost its node n2 (test)",), lost=0)
    cluster.command("scontrol", "update", f"jobid={job.id}", "NumNodes=1", "NumTasks=1", "NumCPUs=1")     # or it waits for the node

    job.complete(restarts=2, steps=60)
    job.goes_like(alone, 60)
    assert [row["ranks"] for row in job.attempts] == [2, 2, 1]
    assert job.attempts[1]["step"] == preempted["step"]


def test_the_time_limit_beside_a_node_that_loses_its_slurmd(cluster: Cluster, yard: Path, alone: Run) -> None:
    def time_limit() -> None:
        job = Job.submit(cluster, yard, "t", "duration=2000 steps",       # SLURM sends the signal up to half a minute early
                         options=("--exclude=n3,n4", "--ntasks-per-node=1", "--time=3", "--signal=B:USR2@90"))
        job.wait_for_restart(1)
        stopped = job.run.outcome
        assert (stopped["state"], stopped["cause"]) == ("stopped early", "time_limit"), stopped
        job.wait_for_step(stopped["step"] + 10, attempt=2)
        cluster.command("scancel", job.id)
        cluster.wait_for(job.id, "CANCELLED")
        one_story(job.run.folder, log=job.log, state="stopped early", cause="cancelled", words=("was cancelled (scancel)",))
        assert job.attempts[1]["step"] == stopped["step"]
        job.goes_like(alone, min(stopped["step"] + 10, 120))

    def lost_slurmd() -> None:
        """SLURM gives the node up and starts the job on another, while the old batch script and its ranks are still at work."""
        job = Job.submit(cluster, yard, "o", "duration=2000 steps", options=("--nodes=1", "--exclude=n1,n2"))
        job.wait_for_step(12)
        node = cluster.job(job.id)["BatchHost"]
        orphans = cluster.processes(f"SLURM_JOB_ID={job.id}")
        assert len(orphans) >= 4        # the batch script, srun, two ranks
        cluster.kill_node(node)
        job.wait_for_restart(1)
        job.wait_for_step(30, attempt=2)
        cluster.wait_until(lambda: not set(cluster.processes()) & set(orphans), "the old attempt does not end")
        assert "given up by SLURM" in job.log
        assert cluster.job(job.id)["Restarts"] == "1"
        assert cluster.job(job.id)["BatchHost"] != node
        assert [row["attempt"] for row in job.attempts] == [1, 2]
        steps = [row["step"] for row in job.run.rows() if row["attempt"] == 1 and "loss" in row]
        assert steps == sorted(steps)
        job.goes_like(alone, 30)

    side_by_side(time_limit, lost_slurmd)


def test_a_step_daemon_that_dies_beside_a_run_that_gets_nowhere(cluster: Cluster, yard: Path, alone: Run) -> None:
    def killed_daemon() -> None:
        """SLURM never hears of the ranks again whose slurmstepd was killed; they train on, and the job ends when the run is done."""
        job = Job.submit(cluster, yard, "d", "duration=100 steps", "resilience.hang_timeout=10",
                         options=("--exclude=n3,n4", "--export=ALL,LAST_RANK_S=15"))
        job.wait_for_step(12)
        job.kill_step_daemon(0)
        cluster.wait_for(job.id, "COMPLETED", restarts=0)
        assert job.run.outcome["cause"] == "done"
        job.goes_like(alone, 60)

    def gets_nowhere() -> None:
        """Killed as often as it starts; a fourth attempt is not waited for."""
        job = Job.submit(cluster, yard, "n", "duration=40000 steps", "checkpoint.every=20000 steps", "parallel.engine=ddp",
                         options=("--nodes=1", "--exclude=n1,n2"))
        for attempt in (1, 2, 3):
            job.wait_for_step(1, attempt)
            job.kill_rank(1)
            if attempt < 3:
                job.wait_for_restart(attempt)
        known = cluster.wait_for(job.id, "FAILED", restarts=2)
        assert known["ExitCode"] == "3:0"
        assert job.run.outcome["state"] == "failed"
        assert job.run.outcome["cause"] == "restarts"
        assert "3 attempts in a row began at the very beginning" in job.log

    side_by_side(killed_daemon, gets_nowhere)
