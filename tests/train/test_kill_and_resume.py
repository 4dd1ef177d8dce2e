"""A run that is killed, stopped or damaged goes on, on any number of ranks and with any engine, as if nothing had happened."""

import json
import signal
import time
from pathlib import Path

import pytest
from running import SMALL, Run, kill_rank, same_as, start, train

from vitscale.resilience.restarts import attempts_of
from vitscale.resilience.skips import remember

pytestmark = pytest.mark.slow       # whole runs of real processes: several seconds each for starting alone


COPIES = ["parallel.engine=fsdp", "parallel.replicate=2", "parallel.gather=once"]      # on four ranks two groups of two


@pytest.mark.parametrize(("begun", "before", "killed", "continued", "after"), [
    pytest.param([], 2, 1, [], 3, marks=pytest.mark.all), (COPIES, 4, 0, ["parallel.engine=fsdp"], 3)], ids=["ddp", "fsdp"])
def test_kill_9_of_a_rank(place: Path, unbroken: Run, begun: list[str], before: int, killed: int, continued: list[str], after: int) -> None:
    """Killed in the middle of an epoch on some ranks, continued on another number, killed again, ended by one process."""
    arguments = [*SMALL, "name=k", "duration=60 steps"]
    run = Run(place / "runs" / "k")
    began = time.time()
    process = start(place, *arguments, *begun, f"parallel.processes={before}")
    run.wait_for_step(19, process)
    kill_rank(process, killed)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert f"rank {killed} was ended by SIGKILL" in output
    steps_before = max(run.losses)

    process = start(place, *arguments, *continued, f"parallel.processes={after}")
    run.wait_for_step(steps_before + 10, process)
    kill_rank(process, after - 1)
    assert process.wait(60) == 75

    output = train(place, *arguments, "parallel.processes=1")
    assert "resuming from step-" in output
    same_as(unbroken, run)
    assert run.outcome["state"] == "done"
    assert run.outcome["attempt"] == 3
    spent = run.outcome["run_seconds"]
    assert spent["repeated"] > 0
    assert sum(spent.values()) == pytest.approx(run.outcome["time"] - began, rel=0.01, abs=0.2)
    assert [(row.ranks, row.cause) for row in attempts_of(run.folder)] == [(before, None), (after, "killed"), (1, "killed")]
    assert {row["attempt"] for row in run.rows()} == {1, 2, 3}


def test_kill_9_of_the_launcher_leaves_nothing_running(place: Path, unbroken: Run) -> None:
    arguments = [*SMALL, "name=l", "duration=60 steps", "parallel.processes=2"]
    run = Run(place / "runs" / "l")
    process = start(place, *arguments)
    run.wait_for_step(12, process)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    train(place, *arguments)        # the lease is free because its holder is gone
    same_as(unbroken, run)


@pytest.mark.parametrize("engine", ["zero"])
def test_a_signal_stops_in_good_order_and_another_engine_goes_on(place: Path, unbroken: Run, engine: str) -> None:
    arguments = [*SMALL, "name=s", "duration=60 steps"]
    run = Run(place / "runs" / "s")
    process = start(place, *arguments, f"parallel.engine={engine}", "parallel.zero_stage=3", "parallel.processes=2",
                    "checkpoint.every=null")
    run.wait_for_step(10, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert run.outcome["state"] == "stopped early"
    assert "SIGTERM" in run.outcome["reason"]
    stopped_at = run.outcome["step"]
    assert run.checkpoints == [f"step-{stopped_at:08d}"]        # no step is lost on a signal
    output = train(place, *arguments)
    assert f"step-{stopped_at:08d}" in output
    assert "written by zero stage 3 on 2 ranks" in output
    same_as(unbroken, run)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(place: Path, unbroken: Run) -> None:
    arguments = [*SMALL, "name=d", "duration=60 steps"]
    run = Run(place / "runs" / "d")
    process = start(place, *arguments)
    run.wait_for_step(30, process)
    process.kill()
    process.wait(10)
    assert len(run.checkpoints) >= 2
    newest, before = run.checkpoints[-1], run.checkpoints[-2]
    victim = next((run.folder / "checkpoints" / newest / "state").glob("*.distcp"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    output = train(place, *arguments)
    assert f"checkpoint {newest} is damaged: state/{victim.name} is not what was written" in output
    assert f"resuming from {before}" in output
    assert f"damaged-{newest}" in run.checkpoints
    same_as(unbroken, run)
    assert run.losses == unbroken.losses        # on the same world, bit for bit


def test_a_skip_list_survives_a_second_kill(place: Path, unbroken: Run) -> None:
    """Batches 21 and 22 (positions 640..704) are passed over; two kills later they still are, and nothing else is."""
    arguments = [*SMALL, "name=skip", "duration=60 steps"]
    run = Run(place / "runs" / "skip")
    process = start(place, *arguments)
    run.wait_for_step(18, process)
    process.kill()
    process.wait(10)
    remember(run.folder, 640, 704, "a test wants it")
    with open(run.folder / "skips.jsonl", "a") as file:
        file.write('{"start": 9')       # a decision torn by a kill was never acted on
    process = start(place, *arguments)
    run.wait_for_step(27, process)
    process.kill()
    process.wait(10)
    train(place, *arguments)
    expected = [json.loads(line) for line in unbroken.samples.splitlines()]
    found = [json.loads(line) for line in run.samples.splitlines()]
    assert found == [row for row in expected if not 640 <= row["position"] < 704]
    assert json.loads((run.folder / "checkpoints" / run.checkpoints[-1] / "run.json").read_text())["data"]["skips"] == [[640, 704]]


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_lives(place: Path) -> None:
    arguments = [*SMALL, "name=two", "duration=2000 steps"]
    run = Run(place / "runs" / "two")
    process = start(place, *arguments)
    try:
        run.wait_for_step(2, process)
        output = train(place, *arguments, code=2)
        assert "is going on already" in output
        assert "runs/two" in output
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert process.returncode == 75
