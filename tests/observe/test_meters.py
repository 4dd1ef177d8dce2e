"""Phases, speed, MFU, time left and goodput, on a clock that the test moves."""

import pytest

from vitscale.metrics.system import BUCKETS, PHASES
from vitscale.observe.meters import Meters, data_wait_share

approx = pytest.approx


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def fail(self, after_s):
        self.now += after_s
        raise ArithmeticError


@pytest.fixture
def clock():
    return Clock()


def spend(clock, meters, **phases):
    for name, seconds in phases.items():
        with meters.phase(name):
            clock.now += seconds


def test_phases_of_a_step_and_of_a_row(clock):
    meters = Meters(clock=clock)
    meters.begin()
    spend(clock, meters, data_wait=1, compute=2)
    spend(clock, meters, compute=3)                     # accumulates, as over micro-batches
    assert meters.end_step(10) == approx(dict.fromkeys(PHASES, 0.0) | {"data_wait": 1, "compute": 5})
    spend(clock, meters, data_wait=1, compute=2, optimizer=0.5)
    assert meters.end_step(10)["compute"] == 2
    row = meters.row()
    assert (row["seconds_data_wait"], row["seconds_compute"], row["seconds_optimizer"]) == (2, 7, 0.5)
    assert data_wait_share(row) == approx(2 / 9.5)
    assert meters.row()["seconds_compute"] == 0         # a row starts anew


def test_an_inner_phase_interrupts_the_outer_one(clock):
    meters = Meters(clock=clock)
    meters.begin()
    with meters.phase("compute"):
        clock.now += 1
        with meters.phase("data_wait"):
            clock.now += 2
        clock.now += 4
    phases = meters.end_step(1)
    assert (phases["compute"], phases["data_wait"]) == (5, 2)


def test_a_phase_is_booked_also_after_an_error(clock):
    meters = Meters(clock=clock)
    meters.begin()
    with pytest.raises(ArithmeticError), meters.phase("compute"):
        clock.fail(after_s=1)
    clock.now += 7                                      # no phase is open any more
    assert meters.end_step(1)["compute"] == 1


def test_an_unknown_phase_is_named():
    with pytest.raises(ValueError, match="'forward' is no phase"), Meters().phase("forward"):
        pass


def test_speed_and_mfu_leave_evaluations_and_checkpoints_out(clock):
    meters = Meters(clock=clock)
    assert meters.mfu is None                           # no peak is known yet
    meters.rate(3e9, 1e12, world=4)
    assert meters.images_per_second == 0
    assert meters.mfu == 0
    meters.begin()
    spend(clock, meters, compute=2, evaluate=5, checkpoint=3)
    meters.end_step(1000)
    assert meters.images_per_second == approx(500)
    assert meters.mfu == approx(3e9 * 500 / 4e12)
    meters.rate(3e9, 0, world=4)
    assert meters.mfu is None


def test_speed_is_that_of_the_window(clock):
    meters = Meters(window_s=10, clock=clock)
    meters.begin()
    spend(clock, meters, compute=100)                   # compilation
    meters.end_step(10)
    assert meters.images_per_second == approx(0.1)      # all there is
    spend(clock, meters, compute=1)
    meters.end_step(10)
    assert meters.images_per_second == approx(10)       # not that of the first step any more
    for _ in range(20):
        spend(clock, meters, compute=2)
        meters.end_step(10)
    assert meters.images_per_second == approx(5)


def test_time_left_counts_evaluations_at_their_share(clock):
    meters = Meters(clock=clock)
    assert meters.eta_s(100) is None
    meters.begin()
    spend(clock, meters, compute=1, evaluate=1)
    meters.end_step(10)
    assert meters.eta_s(100) == approx(20)


def test_goodput_adds_up_to_the_wall_time(clock):
    meters = Meters(clock=clock)
    meters.repeat(15)
    clock.now += 3                                      # starting
    spend(clock, meters, restore=4)
    clock.now += 1
    meters.begin()
    for images in (10, 10, 10):                         # the first two begin inside what was trained before
        spend(clock, meters, data_wait=0.5, h2d=0.25, compute=2)
        clock.now += 0.25                               # between phases
        meters.end_step(images)
    spend(clock, meters, compute=1, evaluate=6, checkpoint=7)
    meters.end_step(10)
    spent = meters.run_seconds()
    assert spent == approx(dict.fromkeys(BUCKETS, 0) | {
        "startup": 4, "restore": 4, "repeated": 5, "train": 3.5, "data_wait": 1.5, "checkpoint": 7, "evaluate": 6,
    })
    assert sum(spent.values()) == approx(clock.now - 100)
    spend(clock, meters, evaluate=2, checkpoint=3)      # after the last step
    assert sum(meters.run_seconds().values()) == approx(clock.now - 100)


def test_a_rollback_inside_a_run_is_booked_as_restore(clock):
    meters = Meters(clock=clock)
    meters.begin()
    spend(clock, meters, compute=1, restore=9, data_wait=1)
    meters.end_step(10)
    assert meters.images_per_second == approx(5)
    assert meters.run_seconds()["restore"] == 9
    assert sum(meters.run_seconds().values()) == 11


def test_asked_in_the_middle_of_a_phase(clock):
    """By a thread that keeps the books, at any time."""
    meters = Meters(clock=clock)
    clock.now += 3
    assert meters.run_seconds()["startup"] == 3
    with meters.phase("restore"):
        clock.now += 2
        assert (meters.run_seconds()["restore"], meters.run_seconds()["startup"]) == (2, 3)
    clock.now += 1
    meters.begin()
    with meters.phase("data_wait"):
        clock.now += 5
        assert meters.run_seconds()["data_wait"] == 5
    with meters.phase("compute"):
        clock.now += 7
        assert meters.run_seconds()["train"] == 0           # the step has not ended
    with meters.phase("evaluate"):
        clock.now += 2
        assert meters.run_seconds()["evaluate"] == 2
    assert sum(meters.run_seconds().values()) == meters.age_s - 7
    meters.end_step(1)
    assert sum(meters.run_seconds().values()) == meters.age_s == 20
