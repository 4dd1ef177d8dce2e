"""The guard calls a spike a spike, and ordinary training, however noisy, ordinary."""

import json
import math
import random
from collections.abc import Callable, Iterator

import pytest

from vitscale.recipe.schema import Resilience, Spike
from vitscale.resilience.guard import Guard, RollBack

NAN = math.nan
BATCH = 32


def feed(guard: Guard, losses: list[float], step: int = 0) -> list[RollBack | None]:
    """A step for each loss, after `step`; one that is not finite was not applied."""
    return [guard.judge(number + 1, number * BATCH, (number + 1) * BATCH, loss, math.isfinite(loss))
            for number, loss in enumerate(losses, step)]


def quick(**more: object) -> Resilience:
    return Resilience(max_nonfinite=3, spike=Spike(window=10, deviations=5.0, in_a_row=3), **more)


CALM = [2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.0, 2.1, 1.9, 2.0]      # median 2, median absolute deviation 0.05: limit 2 + 5 * 0.07413


def test_the_limit_is_median_and_spread_of_the_window() -> None:
    limit = 2.0 + 5 * 1.4826 * 0.05
    assert feed(Guard(quick(), 0, {}), [*CALM, *[limit - 1e-9] * 3]) == [None] * 13
    *before, verdict = feed(Guard(quick(), 0, {}), [*CALM, *[limit + 1e-6] * 3])
    assert before == [None] * 12
    # the batch before the first suspicious loss made the update at fault: that of step 10
    assert verdict == RollBack("spike", 10, (9 * BATCH, 13 * BATCH), "loss above 2.371 in 3 steps in a row (steps 11 to 13, losses 2.371, "
                              "2.371, 2.371); the median of 10 before is 2")


def test_not_finite_in_a_row() -> None:
    *before, verdict = feed(Guard(quick(), 0, {}), [2.0, NAN, NAN, 2.0, 2.0, NAN, math.inf, NAN])
    assert before == [None] * 7
    assert verdict == RollBack("nonfinite", 6, (5 * BATCH, 8 * BATCH), "loss or gradient was not finite in 3 steps in a row (steps 6 to 8, "
                              "losses nan, inf, nan)")


def test_a_finite_loss_whose_update_was_left_out_counts() -> None:
    guard = Guard(quick(), 0, {})
    assert guard.judge(1, 0, 32, 2.0, True) is None
    verdicts = [guard.judge(step, 32 * step - 32, 32 * step, 2.0, False) for step in (2, 3, 4)]
    assert verdicts[:2] == [None, None]
    assert verdicts[2] is not None
    assert verdicts[2].cause == "nonfinite"


def test_what_a_run_began_from_is_at_fault_when_it_cannot_go_one_step_from_there() -> None:
    """A checkpoint of step 40: not to be used again, whether losses are not finite or high from the first on."""
    assert feed(Guard(quick(), 40, {}), [NAN] * 3, 40)[-1].before_step == 40
    known = {"losses": CALM, "scale": 2.0}
    verdict = feed(Guard(quick(), 40, known), [9.0] * 3, 40)[-1]
    assert (verdict.cause, verdict.before_step, verdict.skip) == ("spike", 40, (40 * BATCH, 43 * BATCH))
    assert feed(Guard(quick(), 40, known), [2.0, *[NAN] * 3], 40)[-1].before_step == 42
    assert feed(Guard(quick(), 40, known), [2.0, *[9.0] * 3], 40)[-1].before_step == 41


def test_a_loss_not_finite_counts_in_a_spike_too() -> None:
    verdict = feed(Guard(quick(), 0, {}), [*CALM, 9.0, NAN, 9.0])[-1]
    assert (verdict.cause, verdict.before_step, verdict.skip) == ("spike", 10, (9 * BATCH, 13 * BATCH))
    # alone it begins none
    assert feed(Guard(quick(), 0, {}), [*CALM, NAN, 9.0, 9.0]) == [None] * 13
    # the update at fault is the last that was made, not a step that made none
    verdict = feed(Guard(quick(), 0, {}), [*CALM, NAN, 9.0, 9.0, 9.0])[-1]
    assert (verdict.before_step, verdict.skip) == (10, (9 * BATCH, 14 * BATCH))
    # a high loss, then nothing finite any more: the update before the high loss is at fault
    settings = Resilience(max_nonfinite=3, spike=Spike(window=10, deviations=5.0, in_a_row=9))
    verdict = feed(Guard(settings, 0, {}), [*CALM, 9.0, NAN, NAN, NAN])[-1]
    assert (verdict.cause, verdict.before_step, verdict.skip) == ("nonfinite", 10, (9 * BATCH, 14 * BATCH))


def test_high_losses_enter_the_window_once_proven_harmless() -> None:
    guard = Guard(quick(), 0, {})
    assert feed(guard, [*CALM, 9.0, 9.0]) == [None] * 12
    assert not guard.calm
    assert 9.0 not in guard.memory()["losses"]
    assert feed(guard, [2.0], 12) == [None]
    assert guard.calm
    assert guard.memory()["losses"][-3:] == [9.0, 9.0, 2.0]


def test_calm_is_the_absence_of_any_streak() -> None:
    guard = Guard(quick(), 0, {})
    for loss, calm in [(2.0, True), (NAN, False), (2.0, True)]:
        feed(guard, [loss])
        assert guard.calm is calm


def test_no_rule_before_the_window_is_full_and_none_if_there_is_none() -> None:
    assert feed(Guard(quick(), 0, {}), [*CALM[:9], 50.0, 60.0, 70.0]) == [None] * 12
    assert feed(Guard(Resilience(spike=None), 0, {}), [*CALM * 20, *[1e6] * 50]) == [None] * 250


def test_a_flat_loss_is_no_reason_for_alarm() -> None:
    """1 % of what the loss began with is the least spread assumed, also when the loss has fallen far below it."""
    flat = [6.907] * 10
    assert feed(Guard(quick(), 0, {}), [*flat, *[6.907 + 5 * 0.06906] * 50]) == [None] * 60
    assert feed(Guard(quick(), 0, {}), [*flat, *[6.907 + 5 * 0.0692] * 3])[-1] is not None
    low = [*flat, *[0.001] * 20]
    assert feed(Guard(quick(), 0, {}), [*low, *[0.3] * 3])[-1] is None
    assert feed(Guard(quick(), 0, {}), [*low, *[0.4] * 3])[-1] is not None


def test_a_resumed_guard_comes_to_the_same_verdicts() -> None:
    """Whatever moment without a streak it is saved at, through JSON, as a checkpoint does."""
    losses = [*CALM, 2.2, 9.0, 2.0, *CALM, *[2.5] * 3]
    whole = feed(Guard(quick(), 0, {}), losses)
    assert whole[-1] is not None
    for cut in range(len(losses)):
        first = Guard(quick(), 0, {})
        feed(first, losses[:cut])
        if first.calm:
            rest = feed(Guard(quick(), cut, json.loads(json.dumps(first.memory()))), losses[cut:], cut)
            ends = [(verdict.cause, verdict.before_step) if verdict else None for verdict in whole[cut:]]
            assert [(verdict.cause, verdict.before_step) if verdict else None for verdict in rest] == ends, cut


# Losses as trainings have them.  Each yields STEPS losses.

STEPS = 1500


def heavy(draw: random.Random, freedom: int = 4) -> float:
    """Student's t: what a batch's mean of losses does when few samples carry most of it."""
    return draw.gauss(0, 1) / math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(freedom)) / freedom)


def pretraining(draw: random.Random) -> Iterator[float]:
    """1000 classes: flat at ln 1000 while the learning rate warms up, then a power law; noise of large batches, which wanders."""
    wander = 0.0
    for step in range(STEPS):
        level = 6.9078 if step < 50 else 1.5 + 5.4 * (1 + (step - 50) / 200) ** -0.7
        wander = 0.9 * wander + 0.02 * heavy(draw)
        yield level + wander + (0.002 if step < 50 else 0.05) * heavy(draw)


def mixed(draw: random.Random) -> Iterator[float]:
    """Mixup and CutMix: batches differ by how much was mixed, and the mean of few groups lies anywhere between."""
    for step in range(STEPS):
        level = 2.5 + 4.4 * math.exp(-step / 600)
        share = sum(draw.betavariate(0.8, 0.8) for _ in range(8)) / 8
        yield level * (0.7 + 0.6 * share) + 0.1 * heavy(draw)


def bumpy(draw: random.Random) -> Iterator[float]:
    """The end of a warm-up at too high a rate: a fifth up again over a hundred steps, and back."""
    for step in range(STEPS):
        bump = 1.2 * math.exp(-((step - 500) / 50) ** 2)
        yield 1.8 + 4.5 * math.exp(-step / 400) + bump + 0.08 * heavy(draw)


def epochs(draw: random.Random) -> Iterator[float]:
    """Learnt by heart: a fall at each epoch's begin, a slow rise within, and a last batch of two samples at its end."""
    for step in range(STEPS):
        epoch, inner = divmod(step, 180)
        yield max((2.3 * 0.7 ** epoch) * (1 + 0.2 * inner / 180) * (1 + (0.9 if inner == 179 else 0.1) * heavy(draw)), 1e-6)


def tiny_batches(draw: random.Random) -> Iterator[float]:
    """Late in a run that has learnt its data: next to nothing, and now and then a batch with an odd sample in it."""
    for step in range(STEPS):
        level = 2.3 * math.exp(-step / 100) + 0.001
        yield level * math.exp(1.5 * draw.gauss(0, 1)) + (draw.expovariate(20) if draw.random() < 0.2 else 0.0)


def cooldown(draw: random.Random) -> Iterator[float]:
    """A learning rate that falls in steps: the loss falls by a third within a few steps, twice."""
    for step in range(STEPS):
        yield (3.0 if step < 600 else 2.0 if step < 1200 else 1.4) * (1 + math.exp(-step / 200)) + 0.03 * heavy(draw, 3)


def pixels(draw: random.Random) -> Iterator[float]:
    """Masked image modelling, or a binary cross-entropy over 1000 classes: small numbers all along."""
    for step in range(STEPS):
        yield (0.69 * math.exp(-step / 30) + 0.004 + 0.004 * math.exp(-step / 500)) * (1 + 0.03 * heavy(draw))


CURVES: list[Callable[[random.Random], Iterator[float]]] = [pretraining, mixed, bumpy, epochs, tiny_batches, cooldown, pixels]
SEEDS = 8


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.__name__)
def test_ordinary_training_is_let_alone(curve: Callable[[random.Random], Iterator[float]]) -> None:
    """With the settings that recipes have when they say nothing."""
    for seed in range(SEEDS):
        verdicts = feed(Guard(Resilience(), 0, {}), list(curve(random.Random(seed))))
        assert verdicts == [None] * STEPS, seed


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.__name__)
def test_a_spike_is_seen_at_once(curve: Callable[[random.Random], Iterator[float]]) -> None:
    """The loss rises to one and a half times what it began with, or more, and stays there: the third such step brings the verdict."""
    for seed in range(SEEDS):
        draw = random.Random(1000 + seed)
        losses = list(curve(random.Random(seed)))
        at = draw.randrange(STEPS // 2, STEPS - 10)
        for step in range(at, at + 10):
            losses[step] = sum(losses[:20]) / 20 * draw.uniform(1.5, 3)
        verdicts = feed(Guard(Resilience(), 0, {}), losses[:at + 10])
        found = next(number for number, verdict in enumerate(verdicts) if verdict)
        assert found <= at + 2, (seed, at, found)
        assert found == at + 2 or losses[found - 2] > losses[at - 1], (seed, at, found)    # a high loss of its own stood just before
        assert verdicts[found].skip == ((found - 3) * BATCH, (found + 1) * BATCH)
        assert verdicts[found].before_step == found - 2
