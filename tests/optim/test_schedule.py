"""Schedules at closed-form points, and their continuity."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.errors import RecipeError
from vitscale.optim.schedule import Schedule, lr_at
from vitscale.recipe import Duration, Optim

approx = pytest.approx
SCHEDULES = ["cosine", "linear", "rsqrt", "wsd", "constant"]


def optim(schedule: str, **more: object) -> Optim:
    return Optim.model_validate({"lr": 1.0, "min_lr": 0.1, "schedule": schedule, **more})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_warm_up_is_a_line_from_zero_to_the_peak(schedule):
    at = {images: lr_at(images, optim=optim(schedule), total=110, warmup=10, timescale=10) for images in (0, 1, 5, 10)}
    assert at == approx({0: 0.0, 1: 0.1, 5: 0.5, 10: 1.0})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_a_warm_up_it_starts_at_the_peak(schedule):
    assert lr_at(0, optim=optim(schedule), total=100, warmup=0, cooldown=20, timescale=10) == 1.0


def test_cosine():
    def at(images):
        return lr_at(images, optim=optim("cosine"), total=110, warmup=10)

    assert at(60) == approx(0.55)                                   # the midpoint
    assert at(35) == approx(0.1 + 0.9 * (0.5 + math.sqrt(2) / 4))   # a quarter: (1 + cos 45 degrees) / 2
    assert at(110) == 0.1
    assert at(500) == 0.1


def test_linear():
    at = [lr_at(images, optim=optim("linear"), total=110, warmup=10) for images in (10, 35, 60, 110, 500)]
    assert at == approx([1.0, 0.775, 0.55, 0.1, 0.1])


def test_rsqrt():
    def at(images, cooldown):
        return lr_at(images, optim=optim("rsqrt", min_lr=0.0), total=1000, warmup=10, cooldown=cooldown, timescale=30)

    assert at(10 + 90, 0) == approx(0.5)                            # sqrt(30 / 120)
    assert at(10 + 450, 0) == approx(0.25)                          # sqrt(30 / 480)
    assert at(1000, 0) == approx(math.sqrt(30 / 1020))
    assert at(460, 540) == approx(0.25)                             # where the cooldown begins
    assert at(730, 540) == approx(0.5 * math.sqrt(30 / 750))        # its midpoint
    assert at(1000, 540) == 0.0


def test_rsqrt_never_falls_under_the_floor():
    assert lr_at(10**6, optim=optim("rsqrt"), total=10**7, warmup=10, timescale=10) == 0.1


def test_wsd():
    at = [lr_at(images, optim=optim("wsd"), total=110, warmup=10, cooldown=50) for images in (10, 40, 60, 85, 110, 500)]
    assert at == approx([1.0, 1.0, 1.0, 0.55, 0.1, 0.1])


def test_constant():
    assert {lr_at(images, optim=optim("constant"), total=110, warmup=10) for images in (10, 60, 110, 500)} == {1.0}


lengths = st.integers(0, 10**6)


@given(st.sampled_from(SCHEDULES), st.integers(1, 10**6), lengths, lengths, st.integers(1, 10**6), st.floats(0, 1))
def test_continuous_and_within_floor_and_peak(schedule, stable, warmup, cooldown, timescale, share):
    total = warmup + stable + cooldown
    shape = {"optim": optim(schedule), "total": total, "warmup": warmup, "cooldown": cooldown, "timescale": timescale}
    images = share * total
    assert 0 <= lr_at(images, **shape) <= 1.0
    assert images < warmup or lr_at(images, **shape) >= 0.1 - 1e-12
    # The steepest place of any of them: warm-up 1 / warmup, cosine (pi / 2) / span, rsqrt 1 / (2 timescale), cooldown 1 / cooldown.
    span = total - warmup
    slope = max(1 / warmup if warmup else 0, math.pi / 2 / span, 0.5 / timescale + (1 / cooldown if cooldown else 0))
    step = 1e-3
    assert abs(lr_at(images + step, **shape) - lr_at(images, **shape)) <= 1.01 * slope * step + 1e-9


def test_durations_are_resolved_into_images_once():
    section = optim("rsqrt", warmup="3 steps", cooldown="0.5 epochs", timescale="100 images")
    schedule = Schedule.of(section, Duration(2, "epochs"), num_samples=100, global_batch=32)
    assert (schedule.total, schedule.warmup, schedule.cooldown, schedule.timescale) == (200, 96, 50, 100)
    assert schedule.lr(32) == approx(1 / 3)     # the first update is not lost
    assert schedule.lr(96) == 1.0
    assert schedule.lr(200) == approx(0.1)      # the last has the floor


def test_timescale_is_the_warm_up_unless_given():
    section = optim("rsqrt", warmup="10 steps")
    assert Schedule.of(section, Duration(100, "steps"), num_samples=None, global_batch=8).timescale == 80


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(RecipeError, match=r"optim\.warmup: .* 96 images, more than the 64"):
        Schedule.of(optim("cosine", warmup="3 steps"), Duration(2, "steps"), num_samples=None, global_batch=32)
