"""Two attempts at one run folder: submitted twice at the same moment; one that was thought dead wakes up."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import SMALL, TIMEOUT_S, Run, ranks_of, same_as, start, train

from vitscale.checkpoint.lease import STALE_S

pytestmark = pytest.mark.slow       # four starts of whole runs


def test_of_two_that_are_submitted_at_once_one_refuses(place: Path, unbroken: Run) -> None:
    arguments = [*SMALL, "name=two", "duration=60 steps", "parallel.processes=2"]
    both = [start(place, *arguments) for _ in range(2)]
    said = {process: process.communicate(timeout=2 * TIMEOUT_S)[0] for process in both}
    assert sorted(process.returncode for process in both) == [0, 2], said
    refused = next(text for process, text in said.items() if process.returncode == 2)
    assert refused.count("this run is going on already") == 1, refused
    assert "Traceback" not in refused
    run = Run(place / "runs" / "two")
    same_as(unbroken, run)
    assert run.outcome["state"] == "done"
    assert (run.folder / "lease" / "1.released").exists()


def signal_all(process: subprocess.Popen[str], number: int) -> None:
    for pid in [process.pid, *ranks_of(process)]:
        os.kill(pid, number)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the logs that people read."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if (path.is_file() and path.relative_to(folder).parts[0] != "logs") or path.name == "samples.jsonl"}


def test_an_attempt_that_was_thought_dead_does_no_harm(place: Path, unbroken: Run) -> None:
    """All of its processes stop for a while, as on a node that is cut off; a new attempt takes over and ends; the old one wakes up."""
    arguments = [*SMALL, "name=o", "duration=60 steps", "parallel.processes=2", "checkpoint.every=3 steps"]
    run = Run(place / "runs" / "o")
    orphan = start(place, *arguments, new_session=True)     # whom a stopped process stands beside may be sent SIGHUP
    try:
        run.wait_for_step(12, orphan)
        signal_all(orphan, signal.SIGSTOP)
        lease = run.folder / "lease" / "1"
        lease.write_text(json.dumps(json.loads(lease.read_text()) | {"host": "another"}))      # as seen from another node
        os.utime(lease, (time.time() - STALE_S - 1,) * 2)
        train(place, *arguments)
        same_as(unbroken, run)
        before = contents(run.folder)
        signal_all(orphan, signal.SIGCONT)
        output, _ = orphan.communicate(timeout=TIMEOUT_S)
    finally:
        orphan.kill()
    assert orphan.returncode not in (0, 75), output         # neither done nor to be started again
    assert "attempt 1 no longer holds this run folder, attempt 2 does" in output
    assert "Traceback" not in output
    after = contents(run.folder)
    after.pop("lease/1.released")       # it gives up what it no longer has
    assert after == before
    same_as(unbroken, run)
