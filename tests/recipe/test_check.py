"""Contradictions between keys, each by the key to mend."""

import pytest

from vitscale.errors import RecipeError
from vitscale.recipe import Recipe, parse_override
from vitscale.recipe.check import contradictions, default_group, default_lanes
from vitscale.recipe.load import check_recipe

SOUND = {
    "name": "run", "model": {"size": "tiny"}, "data": {"train": "a.tar", "num_samples": 100}, "optim": {"lr": 1e-3},
    "global_batch": 8, "duration": "10 epochs",
}


CUT = ["parallel.engine=fsdp", "parallel.tensor=2"]


def recipe_with(*overrides: str) -> Recipe:
    values = dict(SOUND)
    for override in overrides:
        (section, *rest), value = parse_override(override)
        if rest:
            inner = dict(values.get(section, {}))
            values[section] = inner
            for key in rest[:-1]:
                inner[key] = dict(inner.get(key, {}))
                inner = inner[key]
            inner[rest[-1]] = value
        else:
            values[section] = value
    return Recipe.model_validate(values)


def test_the_sound_one_is_sound():
    assert contradictions(recipe_with()) == []


@pytest.mark.parametrize(("overrides", "key", "sentence"), [
    (["model.size=null", "model.width=96"], "model.size", "give a size, or also model.depth, model.heads, model.mlp"),
    (["model.image=225"], "model.image", "the nearest sizes are 224 or 240"),
    (["model.image=8"], "model.image", "the nearest sizes are 16"),
    (["model.width=100", "model.heads=3"], "model.heads", "3 heads do not divide the width 100"),
    (["model.width=90", "model.position=sincos"], "model.width", "divisible by 4, got 90"),
    (["model.classes=0"], "model.classes", "at least 1 class"),
    (["model.drop_path_group=8"], "model.drop_path_group", "belongs to model.drop_path, which is 0"),
    (["model.drop_path_group=4", "model.drop_path=0.1"], "model.drop_path_group", "0.1 of 4 images are none; 6 are enough"),
    (["model.drop_path_group=8", "model.drop_path=0.5", "model.parallel=true"], "model.drop_path_group", "not go with model.parallel"),
    (["model.drop_path_group=4", "model.drop_path=1e-12"], "model.drop_path_group", "500000000001 are enough"),
    (["model.drop_path_group=2", "model.drop_path=0.5", "data.group=1"], "data.group", "1 is not a multiple of model.drop_path_group 2"),
    (["data.group=3"], "global_batch", "8 is not a multiple of data.group 3"),
    (["data.group=4", "data.lanes=6"], "data.lanes", "6 is not a multiple of data.group 4"),
    (["data.group=4", "micro_batch=6"], "micro_batch", "6 is not a multiple of data.group 4"),
    (["micro_batch=9"], "micro_batch", "9 is more than global_batch 8"),
    (["data.lanes=101"], "data.lanes", "101 lanes are more than the 100 samples"),
    (["data.augment.scale=[0.9, 0.5]"], "data.augment.scale", "wants [low, high]"),
    (["data.augment.ratio=[2, 1]"], "data.augment.ratio", "wants [low, high]"),
    (["data.augment.scale=[0.5, 2]"], "data.augment.scale", "at most 1, got 2"),
    (["data.augment.std=[1, 1, 0]"], "data.augment.std", "wants numbers > 0"),
    (["data.label=.cls"], "data.label", "got '.cls'"),
    (["data.train=pipe:cat x"], "data.train", "pipe: URLs run a shell"),
    (["data.val=[a.tar, 'pipe:cat x']"], "data.val", "pipe: URLs run a shell"),
    (["optim.schedule=rsqrt"], "optim.timescale", "rsqrt wants a timescale"),
    (["optim.cooldown=1 epochs"], "optim.cooldown", "not to cosine"),
    (["optim.schedule=wsd"], "optim.cooldown", "wsd wants a cooldown"),
    (["optim.timescale=1 epochs"], "optim.timescale", "not to cosine"),
    (["optim.min_lr=1"], "optim.min_lr", "1 is more than optim.lr 0.001"),
    (["duration=0 epochs"], "duration", "wants more than 0"),
    (["checkpoint.every=0 steps"], "checkpoint.every", "wants more than 0"),
    (["evaluate.every=0 steps"], "evaluate.every", "wants more than 0"),
    (["optim.warmup=11 epochs"], "optim.warmup", "take 1100 images, more than the 1000"),
    (["optim.schedule=wsd", "optim.cooldown=9 epochs", "optim.warmup=2 epochs"], "optim.warmup", "take 1100 images, more than the 1000"),
    (["evaluate.early_stopping={}"], "evaluate.early_stopping", "wants data.val and evaluate.every"),
    (["ema.decay=0.9", "parallel.engine=zero"], "ema", "ema: null"),
    (["optim.name=lamb", "parallel.engine=zero"], "optim.name", "lengths of whole tensors"),
    (["parallel.zero_offload=true"], "parallel.zero_offload", "not to ddp"),
    (["parallel.recompute_every=2"], "parallel.recompute_every", "not to none"),
    (["parallel.engine=zero", "parallel.zero_stage=3", "parallel.compile=true"], "parallel.compile", "is not proven with zero_stage 3"),
    (["parallel.tensor=2"], "parallel.tensor", "belongs to parallel.engine fsdp, not to ddp"),
    (["parallel.replicate=nodes"], "parallel.replicate", "not to ddp, which keeps the whole model on every rank"),
    (["parallel.engine=zero", "parallel.replicate=2"], "parallel.replicate", "not to zero, whose zero_stage says what is sharded"),
    (["parallel.engine=accelerate", "parallel.gather=once"], "parallel.gather", "not to accelerate, which its own configuration"),
    ([*CUT, "parallel.processes=3"], "parallel.tensor", "2 does not divide parallel.processes 3"),
    ([*CUT, "parallel.compile=true"], "parallel.tensor", "parallel.compile"),
    ([*CUT, "model={family: swin}"], "parallel.tensor", "not those of swin"),
    ([*CUT, "model.attention=linear"], "parallel.tensor", "model.attention linear"),
    ([*CUT, "model.qk_norm=true", "model.gated=true"], "parallel.tensor", "model.qk_norm True, model.gated True"),
    ([*CUT, "model.position=relative"], "parallel.tensor", "does not go with model.position relative"),
    ([*CUT, "objective={name: rotation}"], "parallel.tensor", "classification and distillation, not with rotation"),
])
def test_a_contradiction_is_found(overrides, key, sentence):
    found = contradictions(recipe_with(*overrides))
    assert [where for where, _ in found] == [key]
    assert sentence in found[0][1]


@pytest.mark.parametrize("overrides", [
    ["optim.schedule=rsqrt", "optim.warmup=10 steps"], ["optim.schedule=rsqrt", "optim.timescale=1 epochs"],
    ["optim.schedule=wsd", "optim.cooldown=5 epochs", "optim.warmup=5 epochs"], ["parallel.recompute=blocks", "parallel.recompute_every=2"],
    ["parallel.engine=zero", "parallel.zero_offload=true"], ["ema.decay=0.9"], ["data.group=8", "micro_batch=8"],
    ["evaluate.early_stopping={}", "data.val=v.tar", "evaluate.every=1 epochs"],
])
def test_what_goes_together_is_let_through(overrides):
    assert contradictions(recipe_with(*overrides)) == []


def test_contradictions_are_listed_like_other_mistakes():
    with pytest.raises(RecipeError) as caught:
        check_recipe({**SOUND, "micro_batch": 9, "model": {"size": "tiny", "image": 225}}, "here")
    assert str(caught.value).splitlines() == [
        "here: 2 mistakes",
        "  model.image  225 is not divisible by model.patch 16; the nearest sizes are 224 or 240",
        "  micro_batch  9 is more than global_batch 8",
    ]


@pytest.mark.parametrize(("batch", "group", "lanes"), [
    (4096, 1, 1024), (48, 1, 48), (1025, 1, 205), (2039, 1, 1), (4096, 8, 1024), (24, 8, 24),
])
def test_lanes_divide_the_batch_and_are_a_multiple_of_the_group(batch, group, lanes):
    recipe = recipe_with(f"global_batch={batch}", f"data.group={group}", "data.num_samples=100000")
    assert default_lanes(recipe) == lanes
    assert contradictions(recipe) == []


def test_lanes_that_are_given_stay():
    assert default_lanes(recipe_with("data.lanes=5")) == 5


def test_groups_of_stochastic_depth_are_groups_of_the_order():
    dropping = ["model.drop_path=0.5", "model.drop_path_group=6", "global_batch=48"]
    assert default_group(recipe_with(*dropping)) == 6
    assert default_group(recipe_with(*dropping, "data.augment.mixup=0.8")) == 24       # mixed in groups of 8
    assert contradictions(recipe_with(*dropping, "data.group=12")) == []
