"""A rank that hangs, is stopped or blocked is named, ends the attempt, and the next one goes on; a slow rank is named and ends nothing."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from faults import Fault, faults
from running import SMALL, TIMEOUT_S, Run, same_as, start, train

pytestmark = pytest.mark.slow       # whole runs of real processes, and a hang takes its time
HANG_S = 4
TWO = ["parallel.processes=2"]


def hang(place: Path, name: str, fault: Fault, *arguments: str) -> tuple[Run, str]:
    """Run into `fault`, asserting that the run is ended for it in time.  -> run, what was printed"""
    settings = [*SMALL, f"name={name}", "duration=60 steps", f"resilience.hang_timeout={HANG_S}", *arguments]
    process = start(place, *settings, environment=faults(place, fault))
    run = Run(place / "runs" / name)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 75, output
    return run, output


def stacks(run: Run, rank: int) -> str:
    return (run.folder / "logs" / f"stacks-rank-{rank}.txt").read_text()


def assert_named(run: Run, place: Path, rank: int, others: list[int]) -> str:
    """That the outcome and the logs of the living ranks name `rank`, in time; returns the reason."""
    outcome = run.outcome
    assert (outcome["state"], outcome["cause"], outcome["attempt"]) == ("stopped early", "hang", 1)
    assert [one["rank"] for one in outcome["stuck"]] == [rank]
    node = outcome["stuck"][0]["node"]
    assert outcome["reason"].startswith(f"rank {rank} on {node} ")
    verdict, _, lost = outcome["reason"].partition("; lost: ")
    assert verdict.endswith("ending this attempt so that it can be started again")
    assert lost
    for other in others:
        assert verdict in (run.folder / "logs" / f"rank-{other}.log").read_text()
    (marker,) = (place / "faults").glob("*-rank-*")
    assert 0.9 * HANG_S <= outcome["time"] - marker.stat().st_mtime < HANG_S + 10       # two looks before the end of the timeout
    assert time.time() - outcome["time"] < 20       # nobody waits for what cannot end by itself
    return verdict


def test_a_data_thread_that_hangs(place: Path, unbroken: Run) -> None:
    """The main thread of rank 1 waits for it, rank 0 waits for rank 1; afterwards the run is as if nothing had happened."""
    fault = Fault("sleep", before="vitscale.data.batch:Fetcher.fill", nth=30, rank=1, seconds=600)
    run, output = hang(place, "d", fault, *TWO, "data.workers=1")
    reason = assert_named(run, place, 1, others=[0, 1])
    assert " has been in data_wait of step " in reason
    assert "; the other rank waits for it; " in reason
    assert reason in output
    assert reason in stacks(run, 1)
    assert "faults.py" in stacks(run, 1)
    assert " in strike" in stacks(run, 1)
    assert "_engine_run_backward" in stacks(run, 0)
    exchanges = json.loads((run.folder / "logs" / "stuck" / "exchanges-rank-0.json").read_text())
    assert any(entry["profiling_name"] == "gloo:all_reduce" for entry in exchanges["entries"])

    output = train(place, *SMALL, "name=d", "duration=60 steps", *TWO)
    assert "resuming from step-" in output
    same_as(unbroken, run)
    assert run.rows("attempts.jsonl")[1]["cause"] == "hang"
    assert not list((run.folder / "logs" / "stuck").glob("rank-*"))      # nothing is left that could be taken for a suspicion


@pytest.mark.parametrize(("engine", "kind", "rank"), [
    ("ddp", "freeze", 0), ("fsdp", "block", 1),
    *(pytest.param(*case, marks=pytest.mark.all) for case in [
        ("ddp", "freeze", 1), ("ddp", "block", 0), ("ddp", "sleep", 0), ("fsdp", "sleep", 1), ("zero", "sleep", 0), ("zero", "block", 0)]),
])
def test_a_rank_that_hangs_in_the_forward_pass(place: Path, engine: str, kind: str, rank: int) -> None:
    run, output = hang(place, "f", Fault(kind, step=12, rank=rank, seconds=600), *TWO, f"parallel.engine={engine}", "parallel.zero_stage=3")
    reason = assert_named(run, place, rank, others=[1 - rank])
    assert reason in output         # on the console, also if it was rank 0 that could not speak
    if kind == "sleep":
        assert "has been in compute of step 12" in reason
    else:
        assert "does not answer" in reason
    if kind != "freeze":            # who is stopped can write nothing
        assert " in strike" in stacks(run, rank)


@pytest.mark.all        # a watchdog alone is tested so in tests/resilience
def test_one_process_that_is_blocked(place: Path) -> None:
    """No other rank is there to say so, and no Python runs any more: the stacks and the exit code are left."""
    run, _ = hang(place, "o", Fault("block", step=12, seconds=600))
    assert " in strike" in stacks(run, 0)
    assert max(run.losses) == 11


def test_what_takes_long_is_no_hang_and_a_slow_rank_is_named(place: Path) -> None:
    """Each of these takes longer than a hang may: compiling for the first evaluation, the whole of it, writing a checkpoint."""
    slow = [
        Fault("sleep", step=5, until=60, rank=1, seconds=0.2, always=True),
        Fault("sleep", before="vitscale.train.evaluate:device_inputs", nth=1, rank=0, seconds=HANG_S + 1),
        *(Fault("sleep", before="vitscale.train.evaluate:device_inputs", nth=nth, rank=1, seconds=1) for nth in range(2, 7)),
        Fault("sleep", before="vitscale.checkpoint.store:CheckpointWriter._publish", rank=0, seconds=HANG_S + 1),
    ]
    process = start(place, *SMALL, "name=s", "duration=44 steps", "checkpoint.every=40 steps", "checkpoint.background=false", *TWO,
                    f"resilience.hang_timeout={HANG_S}", environment=faults(place, *slow))
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, output
    assert len(list((place / "faults").glob("sleep-*-rank-*"))) == 7        # all of them came
    assert "rank 1 on " in output
    assert " is slow: it takes 0.2" in output
    run = Run(place / "runs" / "s")
    row = run.rows()[39]
    assert row["slowest_rank"] == 1
    assert len(row["own_s"]) == 2
    assert row["own_s"][1] > 0.2 > row["own_s"][0]
    assert row["skew"] > 1.5
    assert not list((run.folder / "logs").glob("stacks-*"))
