"""Jobs that can get nowhere end by themselves, on a real SLURM, after resilience.max_restarts: whatever ends them, whatever they print."""

from pathlib import Path

import pytest
from accounts import one_story
from faults import Fault, faults
from jobs import Job
from test_slurm_runs import side_by_side

from slurm import REPOSITORY, Cluster

pytestmark = pytest.mark.slow       # whole jobs, requeued, and SLURM holds each of them for nine seconds
ONE = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1")


def hurt(yard: Path, name: str, fault: Fault) -> str:
    """A variable for a job whose ranks all meet `fault` whenever they start."""
    (place := yard / f"faults-{name}").mkdir()
    return f"PYTHONPATH={faults(place, fault)['PYTHONPATH'].split(':')[0]}:{REPOSITORY}"


def ends_for_good(cluster: Cluster, job: Job) -> str:
    """Assert that the second restart is the last one and that all accounts say so; returns the reason."""
    known = cluster.wait_for(job.id, "FAILED", restarts=2, timeout_s=480)
    assert known["ExitCode"] == "3:0", job.words
    told = one_story(job.run.folder, log=job.log, queue=[], state="failed", cause="restarts")
    reason = str(told.outcome["reason"])
    assert f"{job.run.folder.relative_to(job.yard)}: 3 attempts in a row began at the very beginning and ended" in reason
    assert [path.name.split(".")[2] for path in sorted((job.run.folder / "tries").glob("*.step-*"))] == [
        "new", "restart", "restart", "refused"]
    assert not list(job.yard.glob(".vitscale*"))        # nothing is kept where the job was submitted
    return reason


def test_a_stop_in_each_start_a_setup_that_prints_and_one_that_breaks(cluster: Cluster, yard: Path) -> None:
    def no_time() -> None:
        """The signal is due before the job has begun: it comes while the ranks start."""
        waits = hurt(yard, "no-time", Fault("sleep", before="vitscale.train.start:train", seconds=600, always=True))
        job = Job.submit(cluster, yard, "no-time", options=(*ONE, "--exclude=n2,n3,n4", "--time=4", "--signal=B:USR2@300",
                                                            f"--export=ALL,{waits}"))
        reason = ends_for_good(cluster, job)
        assert "3 x time_limit (the last: asked to stop by SIGUSR2 " in reason
        assert "the time limit leaves no time: the signal to stop came " in reason
        assert "then submit it again" in reason

    def prints() -> None:
        """As `module load` may; what it says is taken for no answer, also when it looks like one."""
        dies = hurt(yard, "prints", Fault("kill", before="vitscale.train.start:train", always=True))
        setup = "echo Loading cuda/12.8; echo runs/another; echo vitscale-folder: runs/another; echo vitscale-code: 0"
        job = Job.submit(cluster, yard, "prints", options=(*ONE, "--exclude=n1,n3,n4", f"--export=ALL,{dies},SETUP={setup}"))
        reason = ends_for_good(cluster, job)
        assert "3 x killed (the last: it was ended by SIGKILL and said nothing" in reason
        assert "Loading cuda/12.8" in job.log
        assert not (yard / "runs" / "another").exists()

    def breaks() -> None:
        """From the first restart on vitscale cannot be started: then nothing can be noted but by SLURM, in the job's comment."""
        dies = hurt(yard, "breaks", Fault("kill", before="vitscale.train.start:train", always=True))
        job = Job.submit(cluster, yard, "breaks", options=(*ONE, "--exclude=n1,n2,n4", "--comment=of mine",
                                                           f"--export=ALL,{dies},SETUP=[ ! -e broken ]"))
        job.wait_for_restart(1)
        (yard / "broken").touch()
        known = cluster.wait_for(job.id, "FAILED", restarts=3, timeout_s=480)
        assert known["ExitCode"] == "3:0", job.words
        assert "stopped for good: 3 attempts in a row could not start vitscale" in job.log
        line = cluster.command("scontrol", "show", "job", "--oneliner", job.id).stdout
        assert " Comment=of mine vitscale-broken-starts=3@3 " in line

    side_by_side(no_time, prints, breaks)
