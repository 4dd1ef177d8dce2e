"""`vitscale train --keep-going`: a machine without a scheduler starts its ranks again by itself, counts, keeps the books, and knows when
to stop."""

import re
import time
from pathlib import Path

import pytest
from accounts import one_story
from faults import Fault, faults
from running import SMALL, Run, same_as, start, train

from vitscale.resilience.restarts import attempts_of
from vitscale.train.goodput import goodput_ratio, read_books

pytestmark = pytest.mark.slow       # whole runs of real processes: several seconds each for starting alone


def test_two_kills_cost_what_the_books_say(place: Path, unbroken: Run) -> None:
    """Killed once on either rank, between checkpoints; the buckets add up to the time that a clock outside measures."""
    began = time.time()
    process = start(place, *SMALL, "name=g", "duration=60 steps", "parallel.processes=2", "--keep-going",
                    environment=faults(place, Fault("kill", step=20, rank=1), Fault("kill", step=44, rank=0)))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    run = Run(place / "runs" / "g")
    for rank in (1, 0):
        assert re.search(f"rank {rank} was ended by SIGKILL; lost: \\d+ steps? since the checkpoint of step \\d+; starting again", output)
    one_story(run.folder, log=output, state="done")
    same_as(unbroken, run)

    rows = attempts_of(run.folder)
    assert [(row.attempt, row.ranks, row.cause) for row in rows] == [(1, 2, None), (2, 2, "killed"), (3, 2, "killed")]
    # of checkpoints, which are written behind the steps
    assert [row.step % 8 for row in rows] == [0, 0, 0]
    assert rows[0].step == 0
    assert rows[1].step <= 16
    assert rows[1].step <= rows[2].step <= 40
    assert [row.images for row in rows] == [32 * row.step for row in rows]
    assert (rows[1].reason or "").startswith("rank 1 was ended by SIGKILL; lost: ")
    spent, wall_s = run.outcome["run_seconds"], run.outcome["time"] - began
    assert sum(spent.values()) == pytest.approx(wall_s, rel=0.01, abs=0.2)
    assert min(spent.values()) >= 0
    assert spent["repeated"] > 0                        # steps 17 to 19 and 41 to 43 at least
    assert spent["waiting"] < 0.2 * wall_s              # the launcher starts them at once
    assert run.outcome["goodput_ratio"] == goodput_ratio(spent) > 0
    books = read_books(run.folder)
    assert books is not None
    assert books.seconds == pytest.approx(spent, abs=0.5)


def test_what_dies_at_every_start_is_stopped_and_can_be_started_again_by_hand(place: Path) -> None:
    arguments = [*SMALL, "name=loop", "duration=2000 steps", "parallel.processes=1", "--keep-going"]
    process = start(place, *arguments, environment=faults(place, Fault("kill", step=3, always=True)))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 3, output
    for words in ("runs/loop: 3 attempts in a row began at the very beginning",
                  "3 x killed (the last: rank 0 was ended by SIGKILL; lost: 2 steps, there is no checkpoint)",
                  "the logs are in runs/loop/logs", "run the same command again"):
        assert words in output
    assert output.count("starting again") == 3
    assert "Traceback" not in output
    run = Run(place / "runs" / "loop")
    assert (run.outcome["state"], run.outcome["cause"]) == ("failed", "restarts")
    one_story(run.folder, log=output, state="failed", cause="restarts", lost=2)

    process = start(place, *arguments)      # mended
    run.wait_for_step(10, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "starting again" not in output   # it was asked to stop
    assert [row.cause for row in attempts_of(run.folder)] == [None, "killed", "killed", "restarts"]
    one_story(run.folder, log=output, state="stopped early", cause="signal", lost=0)


def test_ranks_that_die_before_they_hold_the_run_folder_are_counted_too(place: Path) -> None:
    process = start(place, *SMALL, "name=early", "duration=8 steps", "optim.warmup=0 steps", "resilience.max_restarts=2", "--keep-going",
                    environment=faults(place, Fault("kill", before="vitscale.checkpoint.lease:Lease.take", always=True)))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 3, output
    assert "2 attempts in a row began at the very beginning" in output
    assert "2 x killed (the last: rank 0 was ended by SIGKILL)" in output
    run = Run(place / "runs" / "early")
    one_story(run.folder, log=output, state="failed", cause="restarts")
    assert attempts_of(run.folder) == []
    train(place, *SMALL, "name=early", "duration=8 steps", "optim.warmup=0 steps")


def test_what_blocks_all_python_at_every_start_is_stopped_and_named(place: Path) -> None:
    """One process, in which nothing of Python runs that could say so; it is not taken for a request to stop."""
    block = Fault("block", step=3, seconds=600, always=True)
    process = start(place, *SMALL, "name=blocked", "duration=2000 steps", "parallel.processes=1", "resilience.hang_timeout=4",
                    "resilience.max_restarts=2", "--keep-going", environment=faults(place, block))
    output, _ = process.communicate(timeout=480)
    assert process.returncode == 3, output
    run = Run(place / "runs" / "blocked")
    told = one_story(run.folder, log=output, state="failed", cause="restarts", words=(
        "2 attempts in a row began at the very beginning", "2 x hang (the last: rank 0 on ", " has not let any Python run for "))
    assert " in strike" in (run.folder / "logs" / "stacks-rank-0.txt").read_text()
    assert [row["cause"] for row in told.attempts] == [None, "hang"]
    assert "before the ranks had joined" not in output
