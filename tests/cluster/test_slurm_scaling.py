"""`vitscale sweep --submit`: the runs as an array of real SLURM; the same command again predicts, submits the largest, and judges."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import JOB_S, Cluster

SWEEP = """
name: array
base: quickstart
set: {global_batch: 32, optim.warmup: 2 steps, evaluate.every: null, checkpoint.every: null, checkpoint.best: null, observe.exporter: false,
      resilience.preflight: false, data.lanes: 16, parallel.device: cpu, observe.peak_flops: 1.0e+11}
mode: isoflop
sizes: {rule: aspect, widths: [4, 8, 16], width_per_layer: 16, head_width: 4, mlp_ratio: 2}
budgets: [5.0e7, 1.0e8, 2.0e8]
hold_out: 1
epochs: [0.1, 10]
fit: {forms: [chinchilla3]}
"""


def sweep(cluster: Cluster, yard: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vitscale", "sweep", "array.yaml", "--submit", "--at-once", "2", "--cluster", "site.yaml"],
        cwd=yard,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait(cluster: Cluster, yard: Path, count: int) -> None:
    deadline = time.monotonic() + 2 * JOB_S
    while True:
        states = [json.loads(path.read_text()).get("state") for path in (yard / "sweeps" / "array" / "runs").glob("*/outcome.json")]
        if states.count("done") >= count:
            return
        assert time.monotonic() < deadline, f"{states}\n{cluster.logs()}"
        time.sleep(0.5)


@pytest.mark.all  # nine jobs, each a process that imports torch, two at a time; test_slurm_sweep.py has an array for every change
def test_a_sweep_as_an_array(cluster: Cluster, yard: Path) -> None:
    (yard / "array.yaml").write_text(SWEEP)
    (yard / "site.yaml").write_text("gpus_per_node: 0\ncpus_per_task: 1\ntime: '0:20:00'\n")
    assert "6 runs" in sweep(cluster, yard)
    folder = yard / "sweeps" / "array"
    again = sweep(cluster, yard)  # nothing is submitted twice
    assert "submitted" not in again
    wait(cluster, yard, 6)
    deadline = time.monotonic() + 60
    while "submitted" not in (said := sweep(cluster, yard)):  # until SLURM has let go of the first array
        assert time.monotonic() < deadline, said
        time.sleep(1)
    assert "predicted before it runs" in said
    prediction = json.loads((folder / "prediction.json").read_text())
    assert len(prediction["runs"]) == 3
    assert prediction["already_started"] == []
    wait(cluster, yard, 9)
    last = sweep(cluster, yard)
    assert "verdict on chinchilla3" in last
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["of"] == 3
    assert verdict["predicted_before_start"]
    assert (folder / "report.html").exists()
