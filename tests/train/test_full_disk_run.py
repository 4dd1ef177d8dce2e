"""Whole runs whose disk fills up: training goes on, says so, and loses nothing once there is room; it never ends as if all were well."""

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import small_disk
from faults import Fault, faults
from running import SMALL, TIMEOUT_S, Run, same_as, start, train

from vitscale.checkpoint.room import free_bytes

pytestmark = pytest.mark.slow       # whole runs of real processes


@pytest.fixture
def small(place: Path) -> Iterator[Path]:
    """The runs/ folder: a file system of its own of 4 MiB."""
    with small_disk(place / "runs", megabytes=4) as folder:
        yield folder


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with open(ballast, "ab") as file:
        while room := free_bytes(folder):
            file.write(bytes(min(room, 65536)))
            file.flush()
    return ballast


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What the process prints until a line with these words, which must come."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    pytest.fail(f"{words!r} was never said:\n{''.join(lines)}")


def wait_for_checkpoint(run: Run, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while f"step-{step:08d}" not in (run.checkpoints if (run.folder / "checkpoints").exists() else []):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no such checkpoint was published in time"
        time.sleep(0.01)


def slowly(place: Path) -> dict[str, str]:
    """Steps that leave a test time to act between two checkpoints."""
    return faults(place, Fault("sleep", step=9, until=60, seconds=0.15, always=True))


def test_a_run_goes_on_and_the_next_checkpoint_is_whole(place: Path, small: Path, unbroken: Run) -> None:
    arguments = [*SMALL, "name=full", "duration=60 steps", "checkpoint.keep=1", "parallel.processes=2"]
    run = Run(small / "full")
    process = start(place, *arguments, environment=slowly(place))
    wait_for_checkpoint(run, 8, process)
    ballast = fill(small)
    said = read_until(process, "the checkpoint of step 16 is lost: ")
    assert "runs/full/checkpoints" in said
    ballast.unlink()
    wait_for_checkpoint(run, 24, process)
    process.kill()
    process.wait(10)
    assert run.checkpoints == ["step-00000024"]
    output = train(place, *arguments)
    assert "resuming from step-00000024" in output
    same_as(unbroken, run)
    assert run.outcome["state"] == "done"


def test_a_run_that_is_told_to_stop_says_that_its_work_is_lost(place: Path, small: Path, unbroken: Run) -> None:
    arguments = [*SMALL, "name=lost", "duration=60 steps", "checkpoint.keep=1"]
    run = Run(small / "lost")
    process = start(place, *arguments, environment=slowly(place))
    wait_for_checkpoint(run, 8, process)
    ballast = fill(small)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3, output
    assert "asked to stop by SIGTERM, but the last checkpoint is lost: " in output
    assert "are free; make room there" in output
    assert "Traceback" not in output
    output = train(place, *arguments, code=2)       # the next attempt says so before it trains
    assert re.search(r"runs/lost: (cannot be written \(No space left on device\)|a checkpoint takes .* free); make room", output), output
    ballast.unlink()
    output = train(place, *arguments)
    assert "resuming from step-00000008" in output
    same_as(unbroken, run)
