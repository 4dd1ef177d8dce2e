"""A run that learned nothing, or ends in refused updates, is not done; the best that is told is always a checkpoint that is there."""

import math
from pathlib import Path

import pytest
import torch
from faults import Fault, faults
from hypothesis import given
from hypothesis import strategies as st
from running import SMALL, TIMEOUT_S, Run, start, train
from safetensors.torch import load_file, save_file

import vitscale
from vitscale.checkpoint.retain import to_delete
from vitscale.recipe.schema import EarlyStopping, Resilience
from vitscale.resilience.guard import Guard
from vitscale.train.state import Moment, Progress

NAN = math.nan


def guard(**settings: object) -> Guard:
    return Guard(Resilience(spike=None, **settings), 0, {})


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(2, 50), st.booleans())
def test_no_run_ends_within_a_streak(applied: list[bool], max_nonfinite: int, is_sound: bool) -> None:
    """Whatever the patience: if the last update was refused, or the weights are not finite, the verdict is to go back before it."""
    here, verdict = guard(max_nonfinite=max_nonfinite), None
    for number, good in enumerate(applied):
        verdict = here.judge(number + 1, 8 * number, 8 * number + 8, 2.0 if good else NAN, good)
        if verdict is not None:
            return              # it goes back anyway
    verdict = here.judge_end(len(applied), 8 * len(applied) - 8, 8 * len(applied), is_sound)
    assert here.ever_updated == any(applied)
    if applied[-1] and is_sound:
        assert verdict is None
        return
    assert verdict is not None
    streak = next((count for count, good in enumerate(reversed(applied)) if good), len(applied))
    if not applied[-1]:
        first = len(applied) - streak
        assert verdict.skip == (8 * first, 8 * len(applied))
        assert verdict.before_step == (first + 1 if any(applied) else 0)
    else:
        assert (verdict.before_step, verdict.skip[1]) == (len(applied), 8 * len(applied))


def test_that_a_run_has_made_an_update_is_remembered() -> None:
    first = guard()
    assert not Guard(Resilience(), 3, first.memory()).ever_updated      # three refused ones
    assert Guard(Resilience(), 3, {}).ever_updated                      # of a checkpoint that knows nothing of it
    first.judge(1, 0, 8, 2.0, True)
    assert Guard(Resilience(), 3, first.memory()).ever_updated


numbers = st.one_of(st.floats(-2, 2), st.sampled_from([NAN, math.inf, -math.inf]))


@given(st.lists(st.tuples(numbers, numbers), max_size=12), st.sampled_from(["eval_top1", "eval_loss"]), st.integers(1, 4))
def test_an_evaluation_that_is_not_finite_is_never_best(rows: list[tuple[float, float]], metric: str, patience: int) -> None:
    """An accuracy of weights that are NaN is a number like any other."""
    progress, rule, sound = Progress(), EarlyStopping(metric=metric, patience=patience), []
    for top1, loss in rows:
        progress.now = Moment(progress.now.step + 1, progress.now.images + 8)
        is_best, _ = progress.note({"eval_top1": top1, "eval_loss": loss}, metric, rule)
        value = top1 if metric == "eval_top1" else loss
        if math.isfinite(loss) and math.isfinite(value):
            sound.append(value)
        else:
            assert not is_best
        best = (max if metric == "eval_top1" else min)(sound, default=None)
        assert (progress.best["value"] if progress.best else None) == best
        assert progress.stopping.get("value") == best


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=15), st.integers(1, 3))
def test_the_best_is_held_whatever_is_lost(evaluations: list[tuple[float, bool]], keep: int) -> None:
    """Each evaluation is followed by a checkpoint, that of a new best too; some cannot be written."""
    progress, there = Progress(), set[int]()
    for top1, is_written in evaluations:
        progress.now = Moment(progress.now.step + 1, progress.now.images + 8)
        progress.note({"eval_top1": top1, "eval_loss": 1.0}, "eval_top1", None)
        if is_written:
            there.add(progress.now.step)
            there -= set(to_delete(there, keep, progress.best["step"] if progress.best else None))
        else:
            progress.unwritten(progress.now.step)
        assert progress.best is None or progress.best["step"] in there


ENDING = ["duration=12 steps", "optim.warmup=0 steps", "checkpoint.every=4 steps"]


def go(place: Path, *arguments: str, meeting: list[Fault], code: int = 0) -> str:
    process = start(place, *SMALL, *ENDING, *arguments, environment=faults(place, *meeting))
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def best_is_there(run: Run) -> None:
    """The one account of the best and the other."""
    best = run.outcome["best"]
    assert f"step-{best['step']:08d}" in run.checkpoints
    loaded = vitscale.load(run.folder, checkpoint="best")
    assert loaded.step == best["step"]
    assert all(bool(value.isfinite().all()) for value in loaded.model.parameters())


@pytest.mark.slow       # whole runs
def test_a_run_that_ends_in_refused_updates_goes_back_and_is_done_without_them(place: Path) -> None:
    """Six at the end, where ten in a row would be borne."""
    output = go(place, "name=e", "resilience.max_nonfinite=10", meeting=[Fault("nan", step=7, until=12)])
    run = Run(place / "runs" / "e")
    assert "rolled back from step 12 to step 4, passing over images 192 to 384: loss or gradient was not finite in 6 steps" in output
    assert (run.outcome["state"], run.outcome["rollbacks"]) == ("done", 1)
    assert math.isfinite(run.outcome["eval_loss"])
    best_is_there(run)


@pytest.mark.slow       # whole runs
@pytest.mark.parametrize("rollbacks", [5, pytest.param(0, marks=pytest.mark.all)])
def test_a_run_without_an_update_has_failed(place: Path, rollbacks: int) -> None:
    go(place, "name=n", f"resilience.max_rollbacks={rollbacks}", "resilience.max_nonfinite=20", meeting=[Fault("nan", step=1, until=12)],
       code=3)
    run = Run(place / "runs" / "n")
    assert (run.outcome["state"], run.outcome["cause"], run.outcome["best"]) == ("failed", "nonfinite", None)
    assert ("not one update was made" if rollbacks else "not finite in 12 steps in a row") in run.outcome["reason"]


@pytest.mark.slow       # whole runs
def test_a_stop_in_the_last_evaluation(place: Path) -> None:
    """The next attempt makes it up: that checkpoint is the best, and says so itself."""
    meeting = [Fault("term", before="vitscale.train.run:evaluate")]
    go(place, "name=s", meeting=meeting, code=75)
    run = Run(place / "runs" / "s")
    assert run.outcome["step"] == 12
    assert run.checkpoints[-1] == "step-00000012"
    go(place, "name=s", meeting=meeting)
    assert run.outcome["best"]["step"] == 12
    best_is_there(run)
    assert [name for name in (path.name for path in (run.folder / "checkpoints").iterdir()) if name.startswith(".")] == []


@pytest.mark.slow       # whole runs
def test_first_weights_that_are_not_finite_are_refused(place: Path) -> None:
    train(place, *SMALL, *ENDING, "name=a", "data.val=null")
    file = place / "w.safetensors"
    weights = load_file(Run(place / "runs" / "a").folder / "checkpoints" / "step-00000012" / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[1] = torch.nan
    save_file(weights, file)
    output = train(place, *SMALL, *ENDING, "name=b", f"init={file}", code=2)
    assert f"{file}: '{name}' holds 1 numbers that are not finite" in output.replace("\n", "")
