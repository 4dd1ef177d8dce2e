"""Durations: what people write, and the images that it means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.errors import RecipeError
from vitscale.recipe import Checkpoint, Duration, load_recipe
from vitscale.recipe.bound import changes, settings_of


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


@pytest.mark.parametrize(("text", "seconds"), [("15 minutes", 900), ("1 hour", 3600), ("0.5 hours", 1800), ("90 seconds", 90)])
def test_a_time_is_for_checkpoints_alone(text, seconds):
    time = Duration.parse(text, or_time=True)
    assert time.seconds == seconds
    assert Duration.parse(str(time), or_time=True) == time
    assert load_recipe("quickstart", [f"checkpoint.every={text}"]).checkpoint.every == time
    with pytest.raises(ValueError, match="is known only as the run goes"):
        time.images(100, 10)
    with pytest.raises(ValueError, match=r"a time is for checkpoint.every alone"):
        Duration.parse(time)
    for key in ("duration", "evaluate.every", "optim.warmup"):
        with pytest.raises(RecipeError, match=f"{key}.* a time is for checkpoint.every alone"):
            load_recipe("quickstart", [f"{key}={text}"])
    with pytest.raises(RecipeError, match=r"checkpoint.every.* wants more than 0"):
        load_recipe("quickstart", ["checkpoint.every=0 minutes"])


def test_who_does_not_say_when_to_save_has_a_quarter_of_an_hour():
    assert Checkpoint().every == Duration(15, "minutes")
    assert load_recipe("quickstart", ["checkpoint.every=null"]).checkpoint.every is None       # only at the end and when stopped
    assert Checkpoint().model_dump(mode="json")["every"] == "15 minutes"        # as `recipes show` and the run folder have it
    old = load_recipe("quickstart").model_dump(mode="json")
    new = old | {"checkpoint": old["checkpoint"] | {"every": None}}
    found = changes(settings_of(old, "x"), settings_of(new, "x"))
    assert [(one.key, one.kind) for one in found] == [("checkpoint.every", "free")]     # a run that began with another value goes on


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


@given(st.integers(1, 200), st.integers(1, 5), st.integers(1, 100), st.integers(0, 200))
def test_with_repeats_only_the_last_epoch_of_that_many_ends_with_a_partial_batch(num_samples, repeats, global_batch, steps):
    seen = 0
    for _ in range(steps):
        seen += min(global_batch, num_samples * repeats - seen % (num_samples * repeats))
    assert Duration.parse(f"{steps} steps").images(num_samples, global_batch, repeats) == seen
