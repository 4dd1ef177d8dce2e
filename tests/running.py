"""Run the real program in a folder of its own and read what it left."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PEAK = "observe.peak_flops=1e11"        # which else takes half a second of each start to measure
# as small as the real path allows: 1,438 digits, 3 blocks, 45 batches of 32 an epoch, the last one of 30
SMALL = ["model.width=32", "model.depth=3", "model.heads=2", "model.mlp=64", "global_batch=32", "data.lanes=16", "checkpoint.every=8 steps",
         "evaluate.every=null", "data.log_samples=true", "observe.exporter=false", "checkpoint.keep=3", "optim.warmup=10 steps",
         PEAK]
TIMEOUT_S = 180
# of digits without labels, judged by features
UNLABELLED = """
name: seen
model: {width: 32, depth: 2, heads: 2, mlp: 48, image: 8, patch: 2, channels: 1, classes: 10, drop_path: 0.1}
data:
  train: "data/digits/train-*.tar"
  val: "data/digits/val-*.tar"
  views:
    - {name: global, count: 2, augment: {scale: [0.4, 1], flip: 0}}
    - {name: local, count: 2, image: 4, augment: {scale: [0.1, 0.4], flip: 0}}
objective: {name: dinov2, prototypes: 64, patch_prototypes: 32, hidden: 32, bottleneck: 16, koleo_group: 4}
optim: {lr: 2e-3, warmup: 10 steps}
global_batch: 64
micro_batch: 32
duration: 40 steps
evaluate: {every: 10 steps, features: [knn, linear, rankme], early_stopping: {metric: eval_linear, patience: 1, min_gain: 1}}
checkpoint: {every: 100 steps, keep: 1, best: eval_knn}
observe: {exporter: false, peak_flops: 1e11}
parallel: {device: cpu}
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vitscale", *arguments]


def start(folder: Path, *arguments: str, recipe: str = "quickstart", environment: dict[str, str] | None = None,
          new_session: bool = False) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(command("train", recipe, PEAK, *arguments), cwd=folder, text=True, start_new_session=new_session,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def train(folder: Path, *arguments: str, recipe: str = "quickstart", code: int = 0) -> str:
    """Run to the end; asserts the exit code; returns what was printed."""
    process = start(folder, *arguments, recipe=recipe)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    folder: Path

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        path = self.folder / name
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []

    @property
    def losses(self) -> dict[int, float]:
        """step -> loss; of a repeated step the last."""
        return {row["step"]: row["loss"] for row in self.rows() if "loss" in row}

    @property
    def samples(self) -> str:
        return (self.folder / "logs" / "samples.jsonl").read_text()

    @property
    def outcome(self) -> dict[str, Any]:
        return json.loads((self.folder / "outcome.json").read_text())

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir() if not path.name.startswith("."))

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until the run has recorded `step` in its present attempt."""
        deadline = time.monotonic() + TIMEOUT_S
        while not any(row["step"] >= step and "loss" in row for row in self.rows()):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the run did not come that far in time"
            time.sleep(0.02)


def same_as(unbroken: Run, run: Run, first: int = 1, last: int = 60) -> None:
    """Assert identical sample ids in identical steps, losses within 1e-5 of each other over the 30 steps after `first`, 5e-5 to the end."""
    assert run.samples == unbroken.samples
    ours, theirs = run.losses, unbroken.losses
    assert list(ours) == list(range(1, last + 1))
    for step in range(first, last + 1):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-5 if step < first + 30 else 5e-5), step


def same_so_far(unbroken: Run, run: Run) -> int:
    """Assert that what a run has recorded up to now is how the unbroken one begins; returns the last step of it."""
    whole = run.samples[:run.samples.rfind("\n") + 1]      # the last line may be torn
    assert unbroken.samples.startswith(whole)
    losses = run.losses
    assert list(losses) == list(range(1, len(losses) + 1))
    for step, loss in losses.items():
        assert loss == pytest.approx(unbroken.losses[step], rel=1e-5 if step <= 30 else 5e-5), step
    return len(losses)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks that a launcher started, in rank order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in children:
        try:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = next((int(item[5:]) for item in environment if item.startswith(b"RANK=")), None)
        if rank is not None:
            found[rank] = int(child)
    return [found[rank] for rank in sorted(found)]


def kill_rank(process: subprocess.Popen[str], rank: int) -> None:
    os.kill(ranks_of(process)[rank], signal.SIGKILL)
