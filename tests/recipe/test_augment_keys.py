"""The keys of augmentation, mixing, repeats and labels: off unless asked for, as people write them, and what contradicts what."""

import pytest

from vitscale.errors import RecipeError
from vitscale.recipe import Recipe
from vitscale.recipe.check import default_group, default_lanes, mixes
from vitscale.recipe.jsonschema import recipe_schema
from vitscale.recipe.load import check_recipe


def recipe(augment=None, batch=64, **data) -> Recipe:
    return check_recipe({
        "name": "run", "model": {"size": "tiny"}, "data": {"train": "a.tar", "num_samples": 1000, "augment": augment or {}, **data},
        "optim": {"lr": 1e-3}, "global_batch": batch, "duration": "10 epochs",
    }, "here")


def test_everything_is_off_by_default():
    augment = recipe().data.augment
    assert (augment.rand_augment, augment.three_augment, augment.erasing) == (None, False, None)
    assert (augment.color_jitter, augment.mixup, augment.cutmix) == ((0, 0, 0, 0), 0, 0)
    assert not mixes(recipe())
    assert (default_group(recipe()), default_lanes(recipe()), recipe().data.repeats) == (1, 64, 1)


@pytest.mark.parametrize(("given", "meant"), [
    (0.4, (0.4, 0.4, 0.4, 0)), (1, (1, 1, 1, 0)), ([0.1, 0.2, 0.3], (0.1, 0.2, 0.3, 0)), ([0.1, 0.2, 0.3, 0.5], (0.1, 0.2, 0.3, 0.5)),
])
def test_colour_jitter_is_a_number_or_a_list(given, meant):
    assert recipe({"color_jitter": given}).data.augment.color_jitter == meant


@pytest.mark.parametrize("given", [-0.1, [0.1, 0.1], [0.1, 0.1, 0.1, 0.6], True, "strong", [0.1, 0.1, 0.1, 0.1, 0.1]])
def test_other_colour_jitters_are_refused(given):
    with pytest.raises(RecipeError, match=r"data\.augment\.color_jitter"):
        recipe({"color_jitter": given})


@pytest.mark.parametrize("augment", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_what_mixes_wants_groups(augment):
    mixing = recipe(augment)
    assert mixes(mixing)
    assert default_group(mixing) == 8
    assert default_group(recipe(augment, group=4)) == 4
    with pytest.raises(RecipeError, match=r"data\.group +mixup and cutmix mix samples of a group, which wants at least 2"):
        recipe(augment, group=1)
    with pytest.raises(RecipeError, match=r"global_batch +12 is not a multiple of data\.group 8"):
        recipe(augment, batch=12)


@pytest.mark.parametrize(("augment", "message"), [
    ({"rand_augment": {}, "three_augment": True}, r"data\.augment\.three_augment +takes the place of rand_augment"),
    ({"erasing": {"scale": [0.5, 0.1]}}, r"data\.augment\.erasing\.scale +wants \[low, high\]"),
    ({"erasing": {"ratio": [5, 0.1]}}, r"data\.augment\.erasing\.ratio +wants \[low, high\]"),
    ({"erasing": {"scale": [0.5, 2]}}, r"data\.augment\.erasing\.scale +is a share of the image's area, at most 1, got 2"),
    ({"rand_augment": {"num_ops": 6}}, r"data\.augment\.rand_augment\.num_ops +wants a number <= 5"),
    ({"rand_augment": {"magnitud": 6}}, r"is no key of data\.augment\.rand_augment; the keys are num_ops, magnitude"),
    ({"mix_prob": 1.5}, r"data\.augment\.mix_prob"),
])
def test_contradictions_of_augmentation(augment, message):
    with pytest.raises(RecipeError, match=message):
        recipe(augment)


def test_repeats_divide_the_batch_and_the_lanes_divide_what_is_left():
    assert default_lanes(recipe(repeats=2)) == 32
    assert default_lanes(recipe({"mixup": 0.2}, repeats=2)) == 32
    with pytest.raises(RecipeError, match=r"data\.repeats +global_batch 64 is not a multiple of 3 repeats of data\.group 1"):
        recipe(repeats=3)


@pytest.mark.parametrize("label", ["cls", "json:label", "json:annotation.classes.0"])
def test_labels(label):
    assert recipe(label=label).data.label == label


@pytest.mark.parametrize("label", ["", ".cls", "a/b", "json:", "json:a..b", "json:.a"])
def test_no_labels(label):
    with pytest.raises(RecipeError, match=r"data\.label +wants the extension of a member, such as cls, or json:path\.to\.field"):
        recipe(label=label)


def test_classification_wants_labels():
    with pytest.raises(RecipeError, match=r"data\.label +classification wants labels, got null\n.*data\.class_map"):
        recipe(label=None, class_map="names.txt")


def test_the_schema_knows_them():
    definitions = recipe_schema()["$defs"]
    assert {"num_ops", "magnitude", "magnitude_std", "prob", "increasing"} == set(definitions["RandAugment"]["properties"])
    assert "Hoffer" in definitions["Data"]["properties"]["repeats"]["description"]
    assert len(definitions["Augment"]["properties"]["color_jitter"]["anyOf"]) == 3
