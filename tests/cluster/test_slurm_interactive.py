"""In a shell inside an allocation of four tasks nobody has started ranks: `vitscale train` starts its own there.  With a real salloc."""

import subprocess
from pathlib import Path

import pytest
from jobs import TINY
from running import Run

from slurm import JOB_S, Cluster

SAY = "python -c 'import os; from vitscale.parallel.rank_info import how_started; print(how_started(os.environ).told)'"


@pytest.mark.slow       # two ranks that import torch
def test_shells_inside_an_allocation(cluster: Cluster, yard: Path) -> None:
    """salloc's own interactive step, a step of one task in it, and one of all four, which are ranks."""
    train = " ".join(f"'{word}'" for word in ("vit_huge", *TINY, "name=shell", "duration=12 steps", "parallel.processes=2",
                                              "parallel.engine=ddp"))
    script = f"""
        {SAY}
        srun --overlap -n1 bash -c "{SAY}; true" < /dev/null
        srun --overlap -n4 --label {SAY} < /dev/null | sort
        vitscale train {train}
        exit $?
    """
    done = subprocess.run(["salloc", "--nodes=2", "--ntasks-per-node=2"], cwd=yard, env=cluster.environment | {"SHELL": "/bin/bash"},
                          input=script, capture_output=True, text=True, timeout=JOB_S)
    job = done.stderr.partition("Granted job allocation ")[2].split()[0]
    said = f"{done.stdout}\n{done.stderr}{cluster.logs()}"
    assert done.returncode == 0, said
    assert done.stdout.splitlines()[:6] == [
        f"started by hand inside an interactive step of job {job}",
        f"started by hand inside step 0, which has one task, of job {job}",
        *(f"{rank}: ranks: 4 of srun step {job}.1, this is rank {rank} on node n{1 + rank // 2}" for rank in range(4)),
    ], said
    assert f"started by hand inside an interactive step of job {job}: starting 2 ranks here" in done.stdout + done.stderr
    run = Run(yard / "runs" / "shell")
    assert run.outcome["state"] == "done"
    assert run.rows("attempts.jsonl")[0]["ranks"] == 2
