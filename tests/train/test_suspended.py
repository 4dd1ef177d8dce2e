"""Runs that are stopped and continued as a whole (Ctrl-Z and fg, `scontrol suspend`) go on as if nothing had happened."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import SMALL, TIMEOUT_S, Run, ranks_of, same_as, start

pytestmark = pytest.mark.slow       # whole runs of real processes, and they are stopped for longer than a hang takes
HANG_S = 4


def groups_of(process: subprocess.Popen[str]) -> list[int]:
    """A launcher's and its ranks' process groups: the launcher first, as SLURM or a shell would come to them in any order."""
    return [process.pid, *ranks_of(process)]


def test_a_run_that_is_stopped_for_longer_than_a_hang_may_take_and_continued(place: Path, unbroken: Run) -> None:
    """One process, and two ranks with their launcher; of these, one rank alone for a moment as well."""
    settings = [*SMALL, "duration=60 steps", f"resilience.hang_timeout={HANG_S}", "resilience.startup_timeout=8"]
    started = {name: start(place, *settings, f"name={name}", *more, new_session=True)
               for name, more in {"one": [], "two": ["parallel.processes=2"]}.items()}
    try:
        stopped = []
        for name, process in started.items():
            Run(place / "runs" / name).wait_for_step(12, process)
            stopped += groups_of(process)
            for group in groups_of(process):
                os.killpg(group, signal.SIGSTOP)
        time.sleep(HANG_S + 5 + 4)      # the backstop comes 5 s after the watchdog
        for group in stopped:
            os.killpg(group, signal.SIGCONT)
        rank = ranks_of(started["two"])[1]
        os.kill(rank, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(rank, signal.SIGCONT)
        for name, process in started.items():
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output
            run = Run(place / "runs" / name)
            same_as(unbroken, run)
            assert len(run.rows("attempts.jsonl")) == 1
            assert not list((run.folder / "logs").glob("stacks-*"))
    finally:
        for process in started.values():
            for group in groups_of(process) if process.poll() is None else []:
                os.killpg(group, signal.SIGKILL)
