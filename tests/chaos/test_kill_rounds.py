"""Rounds of `kill -9`: a random rank at a random step, after which another engine on another number of ranks goes on."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from running import SMALL, Run, ranks_of, same_as, same_so_far, start, train

pytestmark = pytest.mark.slow       # whole runs of real processes, one after the other

ENGINES = [["parallel.engine=ddp"], ["parallel.engine=fsdp"], ["parallel.engine=zero", "parallel.zero_stage=2"]]


# 4 rounds for every change; `make test-all` has 14 more
@pytest.mark.parametrize(("seed", "rounds"), [
    pytest.param(0, 4), pytest.param(1, 7, marks=pytest.mark.all), pytest.param(2, 7, marks=pytest.mark.all),
])
def test_kill_9_of_any_rank_at_any_step(place: Path, unbroken: Run, seed: int, rounds: int) -> None:
    """One run that is killed in every round; after each, and at the end, it is as if nothing had happened."""
    draw = random.Random(seed)
    arguments = [*SMALL, "name=k", "duration=60 steps", "checkpoint.every=3 steps"]
    run, reached = Run(place / "runs" / "k"), 0
    for _ in range(rounds):
        engine, ranks = draw.choice(ENGINES), draw.randint(1, 3)
        at, victim, within_s = reached + draw.randint(1, 7), draw.randrange(ranks), draw.uniform(0, 0.05)
        process = start(place, *arguments, *engine, f"parallel.processes={ranks}")
        run.wait_for_step(at, process)
        time.sleep(within_s)        # anywhere in a step
        pids = ranks_of(process) or [process.pid]       # one rank needs no launcher
        os.kill(pids[victim], signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
        if ranks == 1:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 75, output
            assert f"rank {victim} was ended by SIGKILL" in output
            assert run.outcome["cause"] == "killed"
        reached = same_so_far(unbroken, run)
        assert at <= reached < 60
    train(place, *arguments)
    same_as(unbroken, run)
    assert run.outcome["state"] == "done"
    assert run.outcome["attempt"] == rounds + 1
