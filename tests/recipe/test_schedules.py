"""Numbers that change over a run, at points that can be worked out by hand."""

import pytest

from vitscale.recipe import Duration
from vitscale.recipe.schedules import Now, NumberSchedule, constant


def test_a_schedule_at_chosen_points():
    momentum = NumberSchedule(start=0.996, end=1.0)
    assert [Now(images, 1000).value(momentum) for images in (0, 500, 1000, 2000)] == pytest.approx([0.996, 0.998, 1.0, 1.0])
    assert Now(250, 1000).value(momentum) == pytest.approx(0.996 + 0.004 * (1 - 2**-0.5) / 2)
    warmed = NumberSchedule(start=0.04, end=0.07, over=Duration(30, "epochs"), shape="linear")
    at = [Now(images, 10**6, 100, 10).value(warmed) for images in (0, 1500, 3000, 10**5)]
    assert at == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert Now(7, 10, 10, 3).value(constant(0.3)) == 0.3


def test_a_length_of_nothing_is_over_at_once():
    assert Now(0, 100).value(NumberSchedule(start=1.0, end=2.0, over=Duration(0, "images"))) == 2.0


def test_steps_are_counted_as_the_run_counts_them():
    """An epoch of 25 images in batches of 10 is three steps."""
    line = NumberSchedule(start=0.0, end=1.0, over=Duration(3, "steps"), shape="linear")
    assert [Now(images, 100, 25, 10).value(line) for images in (10, 20, 25)] == pytest.approx([0.4, 0.8, 1.0])
