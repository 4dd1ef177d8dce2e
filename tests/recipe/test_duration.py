"""Durations: what people write, and the images that it means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.recipe import Duration


@pytest.mark.parametrize(("text", "amount", "unit"), [
    ("300 epochs", 300, "epochs"), ("1 epoch", 1, "epochs"), ("0.5 epochs", 0.5, "epochs"), ("1e-1 epochs", 0.1, "epochs"),
    ("90000 steps", 90000, "steps"), ("5e8 images", 5e8, "images"), ("5E+8images", 5e8, "images"), ("  7   steps ", 7, "steps"),
])
def test_text(text, amount, unit):
    assert Duration.parse(text) == Duration(amount, unit)


@pytest.mark.parametrize("text", [
    "300", "epochs", "", "3 weeks", "-1 epochs", "1.5 steps", "0.5 images", "1_000 steps", "1e999 epochs", "nan steps", "5 Epochs",
    300, None, ["1 epochs"],
])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="wants a"):
        Duration.parse(text)


@given(st.builds(Duration, st.integers(0, 10**12), st.sampled_from(["epochs", "steps", "images"])))
def test_text_and_back(duration):
    assert Duration.parse(str(duration)) == duration


def test_fractions_of_an_epoch_come_back():
    assert Duration.parse(str(Duration(0.125, "epochs"))) == Duration(0.125, "epochs")


def images(text, num_samples, global_batch):
    return Duration.parse(text).images(num_samples, global_batch)


def test_an_epoch_ends_with_a_partial_batch():
    # 100 samples in batches of 32: steps of 32, 32, 32, 4.
    assert [images(f"{steps} steps", 100, 32) for steps in range(10)] == [0, 32, 64, 96, 100, 132, 164, 196, 200, 232]
    assert images("2 epochs", 100, 32) == images("8 steps", 100, 32) == images("200 images", 100, 32)


def test_where_the_batch_divides_the_epoch_there_is_none():
    assert [images(f"{steps} steps", 96, 32) for steps in (1, 3, 7)] == [32, 96, 224]


def test_a_batch_may_be_larger_than_the_data():
    assert images("3 steps", 100, 256) == 300


def test_part_of_an_epoch_is_rounded_to_images():
    assert images("0.333 epochs", 100, 32) == 33


def test_a_mixture_has_steps_and_images_but_no_epochs():
    assert images("10 steps", None, 32) == 320
    assert images("1e3 images", None, 32) == 1000
    with pytest.raises(ValueError, match="a mixture has no epochs"):
        images("1 epochs", None, 32)


@given(st.integers(1, 500), st.integers(1, 100), st.integers(0, 300))
def test_each_step_takes_one_batch_or_what_is_left_of_the_epoch(num_samples, global_batch, steps):
    seen = 0
    for _ in range(steps):
        seen += min(global_batch, num_samples - seen % num_samples)
    assert images(f"{steps} steps", num_samples, global_batch) == seen
