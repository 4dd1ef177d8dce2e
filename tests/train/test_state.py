"""When something is due, what counts as better, and when patience runs out."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.recipe import Duration
from vitscale.recipe.schema import EarlyStopping
from vitscale.train import state
from vitscale.train.state import Moment, Progress, SaveClock, better, due

EPOCH = 10
BATCH = 4       # an epoch is batches of 4, 4 and 2


def moments(epochs: int, num_samples: int = EPOCH, batch: int = BATCH) -> list[Moment]:
    """Every step boundary: an epoch ends with a partial batch."""
    found = [Moment(0, 0)]
    for epoch in range(epochs):
        for start in range(0, num_samples, batch):
            found.append(Moment(len(found), epoch * num_samples + min(start + batch, num_samples)))
    return found


def due_at(every: str, epochs: int = 4, **sizes: int) -> list[tuple[int, int]]:
    boundaries = moments(epochs, **sizes)
    num_samples = sizes.get("num_samples", EPOCH)
    return [(after.step, after.images) for before, after in pairwise(boundaries)
            if due(Duration.parse(every), before, after, num_samples)]


def test_the_boundaries() -> None:
    assert [moment.images for moment in moments(2)] == [0, 4, 8, 10, 14, 18, 20]


@pytest.mark.parametrize(("every", "expected"), [
    ("1 steps", [(1, 4), (2, 8), (3, 10), (4, 14), (5, 18), (6, 20), (7, 24), (8, 28), (9, 30), (10, 34), (11, 38), (12, 40)]),
    ("2 steps", [(2, 8), (4, 14), (6, 20), (8, 28), (10, 34), (12, 40)]),
    ("5 steps", [(5, 18), (10, 34)]),
    ("13 steps", []),
    ("1 epochs", [(3, 10), (6, 20), (9, 30), (12, 40)]),        # at the end of each, though no batch divides it
    ("2 epochs", [(6, 20), (12, 40)]),
    ("0.5 epochs", [(2, 8), (3, 10), (5, 18), (6, 20), (8, 28), (9, 30), (11, 38), (12, 40)]),     # 5, 10, 15, 20, ...
    ("1.5 epochs", [(5, 18), (9, 30)]),
    ("8 images", [(2, 8), (5, 18), (7, 24), (10, 34), (12, 40)]),
    ("10 images", [(3, 10), (6, 20), (9, 30), (12, 40)]),
    ("40 images", [(12, 40)]),
    ("41 images", []),
    ("1 images", [(1, 4), (2, 8), (3, 10), (4, 14), (5, 18), (6, 20), (7, 24), (8, 28), (9, 30), (10, 34), (11, 38), (12, 40)]),
])
def test_due_at_the_first_boundary_that_reaches_a_multiple(every: str, expected: list[tuple[int, int]]) -> None:
    assert due_at(every) == expected


def test_never_due() -> None:
    assert not due(None, Moment(0, 0), Moment(10, 100), EPOCH)


def test_not_due_without_progress() -> None:
    for every in ("1 steps", "1 images", "1 epochs"):
        assert not due(Duration.parse(every), Moment(3, 10), Moment(3, 10), EPOCH)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 500), st.integers(1, 4))
def test_fractions_of_an_epoch_are_due_where_the_duration_says(tenths: int, num_samples: int, epochs: int) -> None:
    """One image a step: due exactly at the whole images that multiples of the duration stand for, whatever floats make of 0.7 * 10."""
    amount = tenths / 10
    last = epochs * num_samples
    multiples = range(tenths * num_samples, 10 * last + 1, tenths * num_samples)        # in tenths of an image
    found = [images for _, images in due_at(f"{amount} epochs", epochs, num_samples=num_samples, batch=1)]
    assert found == sorted({-(-multiple // 10) for multiple in multiples})


@given(st.integers(1, 30), st.sampled_from(["steps", "images", "epochs"]), st.integers(1, 40), st.integers(1, 12))
def test_due_does_not_hang_on_where_a_run_was_interrupted(amount: int, unit: str, num_samples: int, batch: int) -> None:
    """Between 0 and the end there are as many due moments as multiples, unless several fall into one step."""
    boundaries = moments(3, num_samples, batch)
    every = Duration(amount, unit)
    length = {"steps": amount, "images": amount, "epochs": amount * num_samples}[unit]
    done = [moment.step if unit == "steps" else moment.images for moment in boundaries]
    expected = [any(before < k * length <= after for k in range(1, after // length + 1)) for before, after in pairwise(done)]
    assert [due(every, before, after, num_samples) for before, after in pairwise(boundaries)] == expected


def test_accuracy_rises_and_loss_falls() -> None:
    assert better("eval_top1", 0.0, None)
    assert better("eval_loss", 9.0, None)
    assert better("eval_top1", 0.6, 0.5)
    assert not better("eval_top1", 0.5, 0.6)
    assert better("eval_loss", 0.5, 0.6)
    assert not better("eval_loss", 0.6, 0.5)
    for metric in ("eval_top1", "eval_loss"):
        assert not better(metric, 0.5, 0.5)


def test_a_gain_has_to_be_large_enough() -> None:
    assert not better("eval_top1", 0.75, 0.5, by=0.25)
    assert better("eval_top1", 0.76, 0.5, by=0.25)
    assert not better("eval_loss", 0.25, 0.5, by=0.25)
    assert better("eval_loss", 0.24, 0.5, by=0.25)


@pytest.mark.parametrize("metric", ["eval_top1", "eval_loss"])
def test_what_is_no_number_is_never_better(metric: str) -> None:
    assert not better(metric, float("nan"), 0.5)
    assert not better(metric, float("nan"), None)


def test_evaluations_that_are_no_numbers_lose_patience_but_are_never_best() -> None:
    progress, nan = Progress(), float("nan")
    answers = feed(progress, [nan, nan, 0.5, nan, nan, nan], "eval_top1", EarlyStopping(patience=3))
    assert [best for best, _ in answers] == [False, False, True, False, False, False]
    assert [over for _, over in answers] == [False] * 5 + [True]
    assert progress.best == {"step": 3, "metric": "eval_top1", "value": 0.5}


def feed(progress: Progress, values: list[float], metric: str | None, rule: EarlyStopping | None) -> list[tuple[bool, bool]]:
    answers = []
    for value in values:
        progress.now = Moment(progress.now.step + 1, progress.now.images + 8)
        answers.append(progress.note({"eval_top1": value, "eval_loss": 1 - value}, metric, rule))
    return answers


def test_the_best_is_the_first_of_equals() -> None:
    progress = Progress()
    assert [best for best, _ in feed(progress, [0.2, 0.5, 0.5, 0.4, 0.6], "eval_top1", None)] == [True, True, False, False, True]
    assert progress.best == {"step": 5, "metric": "eval_top1", "value": 0.6}
    assert progress.stopping == {}
    by_loss = Progress()
    assert [best for best, _ in feed(by_loss, [0.2, 0.5, 0.5, 0.4], "eval_loss", None)] == [True, True, False, False]
    assert by_loss.best == {"step": 2, "metric": "eval_loss", "value": 0.5}


def test_without_a_metric_nothing_is_best() -> None:
    progress = Progress()
    assert feed(progress, [0.2, 0.5], None, None) == [(False, False)] * 2
    assert progress.best is None


def test_patience_runs_out() -> None:
    progress = Progress()
    over = [over for _, over in feed(progress, [0.5, 0.4, 0.6, 0.6, 0.5, 0.6], None, EarlyStopping(patience=3))]
    assert over == [False, False, False, False, False, True]        # 0.6, then three evaluations without a gain
    assert progress.stopping == {"metric": "eval_top1", "value": 0.6, "evaluations": 3}


def test_another_metric_starts_afresh() -> None:
    """A resumed run may be told to judge by the loss: an accuracy is no mark for it."""
    progress = Progress()
    progress.note({"eval_top1": 0.5, "eval_loss": 2.0}, "eval_top1", EarlyStopping(patience=1))
    best, over = progress.note({"eval_top1": 0.5, "eval_loss": 1.9}, "eval_loss", EarlyStopping(metric="eval_loss", patience=1))
    assert (best, over) == (True, False)
    assert progress.best == {"step": 0, "metric": "eval_loss", "value": 1.9}
    assert not progress.out_of_patience(EarlyStopping(patience=1))


def test_a_gain_too_small_counts_as_none() -> None:
    progress = Progress()
    rule = EarlyStopping(patience=2, min_gain=0.1)
    answers = feed(progress, [0.5, 0.55, 0.65, 0.7, 0.74], "eval_top1", rule)
    assert [over for _, over in answers] == [False, False, False, False, True]
    assert [best for best, _ in answers] == [True] * 5      # the best checkpoint is a matter of its own
    assert progress.stopping["value"] == 0.65


def test_many_small_gains_add_up() -> None:
    """They are measured from the last gain that counted, so slow progress is progress."""
    values = [0.5 + 0.04 * number for number in range(10)]
    assert not any(over for _, over in feed(Progress(), values, None, EarlyStopping(patience=3, min_gain=0.1)))


def test_an_interrupted_run_stops_where_an_unbroken_one_does() -> None:
    values, rule = [0.5, 0.6, 0.55, 0.6, 0.58, 0.57], EarlyStopping(patience=4)
    unbroken = feed(Progress(), values, "eval_top1", rule)
    for cut in range(len(values)):
        first = Progress()
        answers = feed(first, values[:cut], "eval_top1", rule)
        second = Progress(first.now, first.best, dict(first.stopping))
        assert answers + feed(second, values[cut:], "eval_top1", rule) == unbroken
    assert unbroken[-1] == (False, True)


def test_a_time_since_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(state.time, "monotonic", lambda: now)
    every = Duration(2, "minutes")
    clock, other, counted = SaveClock(every, asks=True), SaveClock(every, asks=False), SaveClock(Duration(1, "steps"), asks=True)
    now = 219.9
    assert not clock.due
    now = 220.0
    assert (clock.due, other.due, counted.due, SaveClock(None, asks=True).due) == (True, False, False, False)
    assert clock.due        # for as long as none is saved
    clock.restart()
    assert not clock.due
    assert not any(due(every, before, after, EPOCH) for before, after in pairwise(moments(3)))
