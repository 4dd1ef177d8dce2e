"""Why SLURM ends a job: from its own words, as SLURM 22.05 gave them at that moment, and from a real SLURM."""

from pathlib import Path

import pytest
from accounts import one_story
from jobs import Job

from slurm import Cluster
from vitscale.cluster.ending import FACTS, down_of, ending, facts_of, judge

NOW = 1_800_000_000.0
# As `scontrol show job --oneliner` told them while the ranks had their signal, of all its words those that differ.
SAID = {
    "scancel": "JobState=COMPLETING Reason=None Restarts={same} TimeLimit=365-00:00:00 EndTime={now} PreemptTime=None",
    "requeue": "JobState=COMPLETING Reason=None Restarts={more} TimeLimit=UNLIMITED EndTime=Unknown",
    "requeue-hold": "JobState=COMPLETING Reason=job_requeued_in_held_state Restarts={more} TimeLimit=UNLIMITED EndTime=Unknown",
    "preempt": "JobState=RUNNING Reason=None Restarts={same} TimeLimit=01:00:00 EndTime={soon} PreemptTime={now}",
    "preempt-at-once": "JobState=COMPLETING Reason=None Restarts={more} TimeLimit=01:00:00 EndTime={later}",
    "node-down": "JobState=COMPLETING Reason=None Restarts={more} TimeLimit=365-00:00:00 EndTime={later}",
    "node-down-no-requeue": "JobState=COMPLETING Reason=NodeDown Restarts={same} TimeLimit=365-00:00:00 EndTime={now} PreemptTime=None",
    "near-the-limit": "JobState=RUNNING Reason=None Restarts={same} TimeLimit=01:00:00 EndTime={soon} PreemptTime=None",
    "limit": "JobState=COMPLETING Reason=TimeLimit Restarts={same} TimeLimit=00:01:00 EndTime={now} PreemptTime=None",
    "person": "JobState=RUNNING Reason=None Restarts={same} TimeLimit=365-00:00:00 EndTime={later} PreemptTime=None",
    "suspended": "JobState=SUSPENDED Reason=None Restarts={same} TimeLimit=365-00:00:00 EndTime={later} PreemptTime=None",
}
CAUSES = {"scancel": "cancelled", "requeue": "requeued", "requeue-hold": "requeued", "preempt": "preemption", "preempt-at-once": "requeued",
          "node-down": "node_failure", "node-down-no-requeue": "node_failure", "near-the-limit": "time_limit", "limit": "time_limit",
          "person": "signal", "suspended": "signal"}
NODES = {True: "n1|completing|none\nn1|completing|none\nn2|down|broken fan\nn2|down|broken fan\n",
         False: "n1|completing|none\nn2|idle|none\n"}


@pytest.mark.parametrize("by", SAID)
@pytest.mark.parametrize("restart", [0, 2])
def test_each_end_has_its_cause(by: str, restart: int) -> None:
    words = SAID[by].format(same=restart, more=restart + 1, now=int(NOW), soon=int(NOW + 20), later=int(NOW + 86400))
    found = judge(facts_of(f"JobId=7 JobName=x {words}"), restart, down_of(NODES["node-down" in by]), NOW)
    assert found is not None
    assert found.cause == CAUSES[by]
    assert "job 7" in found.words
    assert ("n2 (broken fan)" in found.words) == ("node-down" in by)
    assert ("scontrol release" in found.words) == (by == "requeue-hold")


@pytest.mark.parametrize("said", ["", "slurm_load_jobs error: Invalid job id", "JobId=7 JobState=PENDING Restarts=0", "JobState="])
def test_what_says_nothing_decides_nothing(said: str) -> None:
    assert ending({"SLURM_JOB_ID": "7", FACTS: said, "PATH": ""}) is None
    assert ending({}) is None


def stop(job: Job, cause: str, *words: str, state: str = "stopped early") -> None:
    """Assert that all accounts of the attempt that has just ended say so."""
    one_story(job.run.folder, log=job.log, state=state, cause=cause, words=words)


@pytest.mark.slow
@pytest.mark.all        # five starts; tests/cluster/test_slurm_runs.py has most of these ends too
def test_who_ended_a_job_is_told_in_every_account(cluster: Cluster, yard: Path) -> None:
    """One job: requeued by hand, then one of its nodes set down, then signalled by a person, then cancelled."""
    job = Job.submit(cluster, yard, "e", "duration=4000 steps", "checkpoint.every=1000 steps", options=("--ntasks-per-node=1",))
    job.wait_for_step(3)
    cluster.command("scontrol", "requeue", job.id)
    job.wait_for_restart(1)
    stop(job, "requeued", f"job {job.id} was put back into the queue")

    job.wait_for_step(job.run.outcome["step"] + 2, attempt=2)
    lost = next(node for node in ("n1", "n2", "n3", "n4") if node in _nodes(cluster, job) and node != cluster.job(job.id)["BatchHost"])
    cluster.command("scontrol", "update", f"nodename={lost}", "state=down", "reason=fan")
    job.wait_for_restart(2)
    stop(job, "node_failure", f"job {job.id} lost its node {lost} (fan)")

    job.wait_for_step(job.run.outcome["step"] + 2, attempt=3)
    cluster.command("scancel", "--batch", "--signal=USR2", job.id)
    job.wait_for_restart(3)
    stop(job, "signal", "asked to stop by SIGUSR2", "by a person or a program")

    job.wait_for_step(job.run.outcome["step"] + 2, attempt=4)
    cluster.command("scancel", job.id)
    cluster.wait_for(job.id, "CANCELLED")
    stop(job, "cancelled", f"job {job.id} was cancelled (scancel)")
    assert [row["cause"] for row in job.attempts] == [None, "requeued", "node_failure", "signal"]


def _nodes(cluster: Cluster, job: Job) -> list[str]:
    return cluster.command("scontrol", "show", "hostnames", cluster.job(job.id)["NodeList"]).stdout.split()
