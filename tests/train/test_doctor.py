"""`vitscale doctor`, the real command: what it finds on a sound machine, and how it says what would end a run."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from running import SMALL, command

pytestmark = pytest.mark.slow       # starts the program, and two ranks that import torch


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command("doctor", *arguments), cwd=folder, capture_output=True, text=True, timeout=180,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_sound_machine_and_recipe(place: Path) -> None:
    done = doctor(place, "quickstart", *SMALL, "name=x", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["sound"] is True
    findings = {finding["name"]: finding for finding in answer["findings"]}
    assert {finding["state"] for finding in answer["findings"]} <= {"ok", "warning"}
    expected = {"python", "torch", "JPEG decoder", "CPU cores", "GPUs", "SLURM", "GEMM", "all-reduce", "disk space", "disk speed",
                "run folder", "shards", "open files", "kernels", "clock", "training samples", "memory"}
    assert expected <= findings.keys()
    assert findings["training samples"]["value"] == 1438
    assert findings["all-reduce"]["value"] > 0
    assert (findings["kernels"]["value"], findings["kernels"]["words"]) == ("torch's own", "they are for GPUs on rank 0")
    assert "over 2 ranks" in findings["all-reduce"]["words"]       # of its own accord: the recipe wants one
    assert 0 < findings["memory"]["value"] < 1
    assert not list((place / "runs" / "x").glob(".preflight*"))


def test_what_would_end_a_run_is_said_at_once_and_all_of_it(place: Path) -> None:
    """A model that no disk and no memory here holds, on one rank."""
    done = doctor(place, "quickstart", "parallel.processes=1", "model.width=65536", "model.heads=64", "model.depth=200", "model.mlp=262144")
    assert done.returncode == 2, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert [row.split()[0] for row in rows] == ["disk", "memory"]
    assert "give another runs_dir" in done.stdout
    assert "parallel.engine=fsdp" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_shards_that_are_not_there(place: Path) -> None:
    done = doctor(place, "quickstart", *SMALL, "data.train=nowhere.tar", "data.prepare=null", "parallel.processes=1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "nowhere.tar: no such shard" in done.stdout
    assert "GEMM" in done.stdout                # the rest is looked at all the same
    assert "Traceback" not in done.stdout + done.stderr


def test_a_mistyped_key_is_named(place: Path) -> None:
    done = doctor(place, "quickstart", "optim.learning_rate=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "optim.learning_rate  is no key of optim" in done.stderr
