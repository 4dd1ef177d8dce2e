"""`sbatch slurm/sweep.sh`: a task of an array for each recipe, so many at a time; and whether SLURM takes every script as it lies there."""

import os
import signal
import time
from pathlib import Path

import pytest
from jobs import TINY
from running import Run

from slurm import JOB_S, REPOSITORY, Cluster


@pytest.mark.slow       # five starts of a process that imports torch, two at a time
def test_an_array_two_at_a_time_one_of_which_is_killed(cluster: Cluster, yard: Path) -> None:
    from vitscale.recipe import load_recipe
    from vitscale.recipe.text import write_yaml

    rates = ("1e-3", "2e-3", "3e-3", "4e-3")
    (yard / "rates").mkdir()
    for number, rate in enumerate(rates):
        recipe = load_recipe("vit_huge", [*TINY, f"name=rate-{number}", f"optim.lr={rate}", "parallel.engine=ddp"])
        (yard / "rates" / f"{number}.yaml").write_text(write_yaml(recipe.model_dump(mode="json")))
    runs = [Run(yard / "runs" / f"rate-{number}") for number in range(4)]

    array = cluster.sbatch(yard, "--array=0-3%2", "slurm/sweep.sh", "rates", "duration=60 steps")
    most, killed = 0, False
    deadline = time.monotonic() + JOB_S
    while not all((run.folder / "outcome.json").exists() and run.outcome["state"] == "done" for run in runs):
        states = cluster.command("squeue", "--noheader", "--array", f"--jobs={array}", "--format=%T").stdout.split()
        most = max(most, states.count("RUNNING"))
        assert time.monotonic() < deadline, cluster.logs()
        if not killed and any(row["step"] >= 12 for row in runs[1].rows()):
            ranks = cluster.processes("SLURM_ARRAY_TASK_ID=1", f"SLURM_ARRAY_JOB_ID={array}", "SLURM_STEP_ID=0", "SLURM_PROCID=0")
            os.kill(ranks[0], signal.SIGKILL)
            killed = True
        time.sleep(0.3)
    assert killed
    assert most == 2
    assert [len(run.rows("attempts.jsonl")) for run in runs] == [1, 2, 1, 1]
    assert len({run.losses[60] for run in runs}) == 4       # each had its own rate
    assert all(list(run.losses) == list(range(1, 61)) for run in runs)
    for number in range(4):
        cluster.wait_for(f"{array}_{number}", "COMPLETED")


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "slurm").glob("*.sh")))
def test_slurm_takes_the_script_as_it_lies_there(cluster: Cluster, yard: Path, script: str) -> None:
    said = cluster.command("sbatch", "--test-only", f"slurm/{script}", folder=yard).stderr
    assert "to start at" in said
