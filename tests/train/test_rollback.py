"""A run whose loss spikes, or is not finite any more, goes back and passes over the batches at fault, whatever happens to it meanwhile."""

import json
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, faults, happened
from running import SMALL, TIMEOUT_S, Run, start, train

from vitscale.observe.targets import target_file
from vitscale.parallel.rank_info import node_name
from vitscale.resilience.skips import remember

pytestmark = pytest.mark.slow       # whole runs of real processes: several seconds each for starting alone

SPIKE = ["resilience.spike.window=10", "resilience.spike.in_a_row=4"]
AT_FAULT = (19 * 32, 24 * 32)       # positions of steps 20 to 24


def go(place: Path, *arguments: str, meeting: list[Fault], code: int = 0) -> str:
    process = start(place, *SMALL, *arguments, environment=faults(place, *meeting))
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def passed_over(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Run:
    """A run of one process, never disturbed, that was told from the beginning to pass over steps 20 to 24."""
    folder = tmp_path_factory.mktemp("passed_over")
    (folder / "data").mkdir()
    (folder / "data" / "digits").symlink_to(digits)
    (folder / "runs" / "r").mkdir(parents=True)
    remember(folder / "runs" / "r", *AT_FAULT, "a test wants it")
    train(folder, *SMALL, "name=r", "duration=60 steps", "ema.decay=0.9")
    return Run(folder / "runs" / "r")


def same_but_for(unbroken: Run, passed_over: Run, run: Run) -> None:
    """The samples of the unbroken run less those at fault; the losses of the run that never saw them."""
    expected = [row for row in map(json.loads, unbroken.samples.splitlines()) if not AT_FAULT[0] <= row["position"] < AT_FAULT[1]]
    assert [json.loads(line) for line in run.samples.splitlines()] == expected
    assert run.samples == passed_over.samples
    ours = run.losses
    for step, loss in passed_over.losses.items():
        assert ours[step] == pytest.approx(loss, rel=1e-5 if step < 46 else 5e-5), step     # back to 16: 30 steps from there
    assert run.outcome["state"] == "done"
    assert run.outcome["step"] == 60


def events(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.rows() if row.get("event") == "rollback"]


@pytest.mark.parametrize(("engine", "cause"), [
    pytest.param("ddp", "nonfinite", marks=pytest.mark.all), ("fsdp", "spike"), ("zero", "nonfinite"),
    pytest.param("zero", "spike", marks=pytest.mark.all)])
def test_back_in_the_same_process(place: Path, unbroken: Run, passed_over: Run, engine: str, cause: str) -> None:
    """NaN comes from one rank of two alone; a spike from an update that all ranks made."""
    fault = Fault("nan", step=20, until=24, rank=1) if cause == "nonfinite" else Fault("spike", step=20)
    averaging = ["ema.decay=0.9"] if engine != "zero" else []
    output = go(place, *SPIKE, "name=b", "duration=60 steps", f"parallel.engine={engine}", "parallel.processes=2", *averaging,
                meeting=[fault])
    run = Run(place / "runs" / "b")
    same_but_for(unbroken, passed_over, run)
    if averaging:
        assert run.outcome["eval_ema_loss"] == pytest.approx(passed_over.outcome["eval_ema_loss"], abs=1e-4)
    (event,) = events(run)
    assert event | {"time": 0, "reason": ""} == {
        "event": "rollback", "step": 24, "to_step": 16, "skip": list(AT_FAULT), "cause": cause, "time": 0, "reason": "", "attempt": 1}
    assert "4 steps in a row (steps 21 to 24, losses" in event["reason"] or "5 steps in a row (steps 20 to 24, losses" in event["reason"]
    assert f"rolled back from step 24 to step 16, passing over images {AT_FAULT[0]} to {AT_FAULT[1]}: {event['reason']}" in output
    assert run.outcome["rollbacks"] == 1
    assert run.outcome["attempt"] == 1
    assert run.outcome["run_seconds"]["repeated"] > 0
    assert output.count("the update was skipped on all ranks") == (5 if cause == "nonfinite" else 0)


def test_kills_around_a_rollback(place: Path, unbroken: Run, passed_over: Run) -> None:
    """Killed when it is remembered and nothing else is done: the checkpoint of step 24 knows nothing of it and must not be resumed.
    Killed again three steps after the rollback."""
    arguments = ["resilience.spike.window=10", "resilience.spike.in_a_row=4", "name=k", "duration=60 steps", "checkpoint.every=10 steps"]
    arguments += ["ema.decay=0.9"]
    meeting = [Fault("spike", step=20), Fault("kill", after="vitscale.resilience.skips:remember"), Fault("kill", step=28)]
    run = Run(place / "runs" / "k")
    output = go(place, *arguments, meeting=meeting, code=-signal.SIGKILL)
    assert "rolled back" not in output
    assert "step-00000020" in run.checkpoints       # it holds the update at fault
    output = go(place, *arguments, meeting=meeting, code=-signal.SIGKILL)
    assert "checkpoint step-00000020 is from after the update at fault (step 20); kept as undone-step-00000020" in output
    assert "resuming from step-00000010" in output
    output = go(place, *arguments, meeting=meeting)
    assert happened(place) == ["kill-1-rank-0", "kill-2-rank-0"]
    assert "undone-step-00000020" in run.checkpoints
    same_but_for(unbroken, passed_over, run)
    assert events(run) == []        # the rollback itself was cut short; what it led to was not
    assert run.outcome["rollbacks"] == 1
    assert [row["before_step"] for row in run.rows("skips.jsonl")] == [20]


@pytest.mark.all        # three more runs
def test_a_kill_while_checkpoints_are_set_aside(place: Path, unbroken: Run, passed_over: Run) -> None:
    """Three of them are undone; the kill comes after the first."""
    arguments = ["name=a", "ema.decay=0.9"]
    train(place, *SMALL, *arguments, "duration=60 steps", "checkpoint.every=10 steps", "checkpoint.keep=9", "evaluate.every=null")
    run = Run(place / "runs" / "a")
    shutil.rmtree(run.folder / "checkpoints" / "step-00000060")
    (run.folder / "outcome.json").unlink()      # as if it had been killed at that step
    remember(run.folder, *AT_FAULT, "a test wants it", cause="spike", before_step=20)
    meeting = [Fault("kill", after="vitscale.checkpoint.resume:set_aside", nth=2)]
    go(place, *arguments, "duration=60 steps", meeting=meeting, code=-signal.SIGKILL)
    assert len([name for name in run.checkpoints if name.startswith("undone")]) == 2
    output = go(place, *arguments, "duration=60 steps", meeting=meeting)
    assert "resuming from step-00000010" in output
    assert {f"undone-step-{step:08d}" for step in (20, 30, 40, 50)} <= set(run.checkpoints)
    same_but_for(unbroken, passed_over, run)


def test_a_checkpoint_of_a_streak_never_displaces_a_good_one(place: Path) -> None:
    """One is due after every step, and two are kept: none is taken of the steps that are not finite."""
    go(place, "name=d", "duration=20 steps", "checkpoint.every=1 steps", "checkpoint.keep=2", "data.val=null",
       meeting=[Fault("nan", step=10, until=14)])
    run = Run(place / "runs" / "d")
    (event,) = events(run)
    assert event["to_step"] == 9
    assert run.outcome["state"] == "done"


def test_a_stop_within_a_streak_leaves_no_checkpoint_of_it(place: Path) -> None:
    """The next attempt meets the same losses again, and has not forgotten what they are high against."""
    arguments = [*SPIKE, "name=w", "duration=30 steps", "data.val=null"]
    go(place, *arguments, meeting=[Fault("spike", step=20), Fault("term", step=21)], code=75)
    run = Run(place / "runs" / "w")
    assert run.outcome["step"] == 22         # a signal within a step is read by the next
    assert run.checkpoints == ["step-00000008", "step-00000016"]
    go(place, *arguments, meeting=[Fault("spike", step=20)])
    (event,) = events(run)
    assert (event["step"], event["to_step"], event["attempt"]) == (24, 16, 2)
    assert run.outcome["state"] == "done"


def test_it_gives_up_after_max_rollbacks_over_all_attempts(place: Path) -> None:
    meeting = [Fault("nan", step=12, until=100), Fault("kill", step=24)]
    arguments = ["name=g", "duration=60 steps", "resilience.max_rollbacks=2", "data.val=null"]
    go(place, *arguments, meeting=meeting, code=-signal.SIGKILL)
    output = go(place, *arguments, meeting=meeting, code=3)
    run = Run(place / "runs" / "g")
    assert [row["skip"] for row in events(run)] == [[11 * 32, 16 * 32], [16 * 32, 21 * 32]]
    assert (run.outcome["state"], run.outcome["cause"], run.outcome["rollbacks"]) == ("failed", "nonfinite", 2)
    assert "5 steps in a row (steps 22 to 26, losses nan, nan, nan, nan, nan); 2 rollbacks before it" in run.outcome["reason"]
    assert run.outcome["reason"].partition("; lost: ")[0] in output
    assert run.outcome["attempt"] == 2


@pytest.mark.all        # the guard's verdict is in the tests above, the end in the one before
def test_without_rollbacks_it_stops_at_once(place: Path) -> None:
    go(place, *SPIKE, "name=o", "duration=60 steps", "resilience.max_rollbacks=0", "data.val=null", meeting=[Fault("spike", step=20)],
       code=3)
    run = Run(place / "runs" / "o")
    assert (run.outcome["step"], run.outcome["cause"], run.outcome["rollbacks"]) == (24, "spike", 0)
    assert run.outcome["reason"].startswith("loss above ")


@pytest.mark.parametrize(("engine", "ranks"), [
    ("ddp", 1), pytest.param("fsdp", 2, marks=pytest.mark.all), pytest.param("zero", 2, marks=pytest.mark.all)])
def test_back_to_first_values(place: Path, engine: str, ranks: int) -> None:
    """No checkpoint is there yet: before the first update, and after some."""
    arguments = ["duration=12 steps", "optim.warmup=0 steps", "checkpoint.every=null", "data.val=null", "resilience.max_nonfinite=2"]
    for name, ranges in (("whole", ((0, 2), (5, 7))), ("back", ())):
        (place / "runs" / name).mkdir(parents=True)
        for first, last in ranges:
            remember(place / "runs" / name, 32 * first, 32 * last, "a test wants it")
    train(place, *SMALL, *arguments, "name=whole")
    go(place, *arguments, "name=back", f"parallel.engine={engine}", f"parallel.processes={ranks}",
       meeting=[Fault("nan", step=1, until=2), Fault("nan", step=6, until=7)])
    whole, back = Run(place / "runs" / "whole"), Run(place / "runs" / "back")
    assert [(row["step"], row["to_step"]) for row in events(back)] == [(2, 0), (7, 0)]
    assert back.samples == whole.samples
    assert [back.losses[step] for step in whole.losses] == pytest.approx(list(whole.losses.values()), abs=1e-5)


def test_what_cannot_be_gone_back_to_ends_the_run(place: Path) -> None:
    """One checkpoint is kept, and it is of the update at fault: the run is not begun anew without a word."""
    arguments = [*SPIKE, "name=n", "duration=60 steps", "checkpoint.every=20 steps", "checkpoint.keep=1", "data.val=null"]
    go(place, *arguments, meeting=[Fault("spike", step=20)], code=3)
    run = Run(place / "runs" / "n")
    assert "no checkpoint from before step 20 is left to go back to: loss above" in run.outcome["reason"]
    output = train(place, *SMALL, *arguments, code=2)
    assert "no checkpoint from before step 20 is left to go back to: loss above" in output


def test_a_checkpoint_from_which_no_step_can_be_made_is_left_too(place: Path) -> None:
    """Back from step 18 to 16, where the next batches are not finite either: so back to 8, and 16 is written anew.  Prometheus sees it."""
    process = start(place, *SMALL, "name=m", "duration=2000 steps", "observe.exporter=true", "resilience.max_nonfinite=2", "data.val=null",
                    "checkpoint.keep=100", environment=faults(place, Fault("nan", step=17, until=20)))
    run = Run(place / "runs" / "m")
    try:
        run.wait_for_step(30, process)
        (target,) = json.loads(target_file(run.folder, node_name()).read_text())
        with urllib.request.urlopen(f"http://{target['targets'][0]}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    finally:
        process.terminate()
        process.wait(30)
    assert 'vitscale_rollbacks_total{cause="nonfinite"} 2.0' in lines
    assert "vitscale_nonfinite_steps_total 4.0" in lines
    assert [(row["step"], row["to_step"], row["skip"]) for row in events(run)] == [(18, 16, [512, 576]), (20, 8, [576, 640])]
    assert {"step-00000008", "step-00000016", "undone-step-00000016"} <= set(run.checkpoints)
