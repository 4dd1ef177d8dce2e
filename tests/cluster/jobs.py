"""A run that is a job: submitted as a user does it, watched, hurt, and held against the run that nothing happened to."""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults import Fault
from running import Run

from slurm import ENDED, JOB_S, Cluster

# ViT-Huge's own recipe and script, cut down to digits.  At a constant rate runs of any length agree as far as they go.
TINY = [
    "model.size=null", "model.width=32", "model.depth=3", "model.heads=2", "model.mlp=64", "model.patch=2", "model.image=8",
    "model.channels=1", "model.classes=10", "model.drop_path=0.2", "data.train=data/digits/train-*.tar", "data.val=null",
    "data.num_samples=1438", "data.lanes=16", "data.workers=1", "data.log_samples=true", "data.augment.flip=0.0", "global_batch=32",
    "optim.schedule=constant", "optim.warmup=10 steps", "parallel.device=cpu", "parallel.precision=fp32", "parallel.compile=false",
    "checkpoint.every=10 steps", "evaluate.every=null", "observe.exporter=false",
    "observe.peak_flops=1e11",
]
# A job that waits for what SLURM does, in seconds, would else take both cores from the tests beside it.
PACE = Fault("sleep", step=1, until=1_000_000, seconds=0.1, always=True)


@dataclass(frozen=True)
class Job:
    """A job of `sbatch slurm/vit_huge.sh`, and its run folder."""

    cluster: Cluster
    id: str
    yard: Path
    run: Run

    @classmethod
    def submit(cls, cluster: Cluster, yard: Path, name: str, *overrides: str, options: tuple[str, ...] = ()) -> "Job":
        """On two nodes, unless `options` say otherwise, with two ranks on each."""
        job = cluster.sbatch(yard, "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", *options, "slurm/vit_huge.sh",
                             *TINY, f"name={name}", *overrides)
        return cls(cluster, job, yard, Run(yard / "runs" / name))

    @property
    def log(self) -> str:
        path = self.yard / f"vit_huge-{self.id}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """attempts.jsonl of the run."""
        return self.run.rows("attempts.jsonl")

    def wait_for_step(self, step: int, attempt: int = 1) -> None:
        """Until `attempt` has recorded `step`."""
        deadline = time.monotonic() + JOB_S
        while not any(row["attempt"] == attempt and row["step"] >= step for row in self.run.rows() if "loss" in row):
            state = self.cluster.job(self.id)["JobState"]
            assert state not in ENDED, f"{state}\n{self.words}"
            assert time.monotonic() < deadline, f"attempt {attempt} did not come to step {step}\n{self.words}"
            time.sleep(0.2)

    def wait_for_words(self, *words: str) -> None:
        """Until the job's log has said each of `words`, one after the other.  Asks SLURM nothing."""
        deadline, rest = time.monotonic() + JOB_S, self.log
        while not all(word in rest for word in words):
            assert time.monotonic() < deadline, f"not said: {words}\n{self.words}"
            time.sleep(0.2)
            rest = self.log

    def wait_for_restart(self, restarts: int) -> None:
        """Until SLURM has put it back into the queue for the `restarts`-th time."""
        self.cluster.wait_for(self.id, "PENDING", "RUNNING", restarts=restarts)

    def complete(self, restarts: int, steps: int) -> None:
        """Wait for the end; asserts that the run is done after so many restarts."""
        self.cluster.wait_for(self.id, "COMPLETED", restarts=restarts)
        assert self.run.outcome["state"] == "done", self.words
        assert self.run.outcome["step"] == steps

    def kill_rank(self, rank: int) -> None:
        os.kill(self.cluster.rank(self.id, rank), signal.SIGKILL)

    def kill_step_daemon(self, rank: int) -> None:
        """The slurmstepd that started this rank; the rank itself lives on."""
        os.kill(self.step_daemon(rank), signal.SIGKILL)

    def step_daemon(self, rank: int) -> int:
        status = Path(f"/proc/{self.cluster.rank(self.id, rank)}/stat").read_text().rpartition(")")[2].split()
        return int(status[1])

    def wait_for_restart_without(self, restarts: int, daemons: set[int]) -> None:
        """As wait_for_restart, after slurmctld was away when the ranks ended: their slurmstepds then sleep for a minute before they report
        it again, and SLURM keeps the nodes until they have.  They are ended."""
        self.wait_for_words(f"is requeued (it was restarted {restarts - 1} times before)")
        for pid in daemons:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd":
                    os.kill(pid, signal.SIGKILL)
        self.wait_for_restart(restarts)

    @property
    def words(self) -> str:
        """All that the job and its ranks said, for a failed test's message."""
        parts = [f"--- job {self.id}\n{self.log}"]
        for path in sorted((self.run.folder / "logs").glob("rank-*")):
            parts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts) + self.cluster.logs()

    def goes_like(self, alone: Run, steps: int) -> None:
        """Asserts the same samples and losses in the first `steps` steps as in those of `alone`, to which nothing happened."""
        def samples(run: Run) -> list[Any]:
            return [json.loads(line) for line in run.samples.splitlines()][:steps]

        assert samples(self.run) == samples(alone)
        ours, theirs = self.run.losses, alone.losses
        assert list(ours)[:steps] == list(range(1, steps + 1)), list(ours)
        assert [ours[step] for step in range(1, steps + 1)] == pytest.approx([theirs[step] for step in range(1, steps + 1)], rel=1e-5)
