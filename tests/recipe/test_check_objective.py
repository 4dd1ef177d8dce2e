"""What an objective asks of the rest of a recipe, each contradiction by the key to mend; and what is judged where there is no accuracy."""

import pytest
from test_check import SOUND, recipe_with

from vitscale.errors import RecipeError
from vitscale.recipe import Recipe
from vitscale.recipe.check import contradictions
from vitscale.recipe.load import check_recipe

MAE, INPAINTING, JIGSAW = ["objective.name=mae"], ["objective.name=inpainting"], ["objective.name=jigsaw"]
SMALL = ["model.image=32", "model.patch=8"]


@pytest.mark.parametrize(("overrides", "key", "sentence"), [
    (["data.label=null"], "data.label", "classification wants labels, got null"),
    (["objective.name=distillation", "objective.teacher=absent", "data.label=null"], "data.label", "distillation wants labels, got null"),
    ([*MAE, "data.augment.mixup=0.8", "data.group=2"], "data.augment.mixup", "mixes labels, of which mae has none"),
    (["objective.name=rotation", "data.augment.cutmix=1", "data.group=2"], "data.augment.cutmix", "of which rotation has none"),
    ([*MAE, "checkpoint.best=eval_top1"], "checkpoint.best", "mae is not evaluated by eval_top1; take eval_loss, or leave it out"),
    ([*INPAINTING, "evaluate.early_stopping.metric=eval_top1", "data.val=v.tar", "evaluate.every=1 steps"],
     "evaluate.early_stopping.metric", "inpainting is not evaluated by eval_top1"),
    ([*MAE, "model={family: swin, size: tiny}"], "objective.name", "mae wants model.family vit, whose patches can be hidden one by one, "
     "not swin"),
    ([*INPAINTING, "model={family: convnext, size: tiny}"], "objective.name", "inpainting wants model.family vit"),
    ([*MAE, "model.position=rotary"], "model.position", "it wants learned or sincos, not rotary"),
    ([*MAE, "model.position=relative"], "model.position", "it wants learned or sincos, not relative"),
    ([*MAE, "model.patch_embed=overlap"], "model.patch_embed", "mae hides patches, of which overlap would see more"),
    ([*INPAINTING, "model.patch_embed=hybrid"], "model.patch_embed", "inpainting hides patches, of which hybrid would see more"),
    ([*MAE, "model.attention=axial"], "model.attention", "there is no grid for attention axial"),
    ([*MAE, *SMALL, "objective.mask_ratio=0.95"], "objective.mask_ratio", "0.95 of 16 patches leaves 0 to be seen"),
    ([*MAE, "objective.decoder.heads=7"], "objective.decoder.heads", "7 heads do not divide the decoder's width 512"),
    ([*MAE, "objective.decoder={width: 66, heads: 3}"], "objective.decoder.width", "divisible by 4, got 66"),
    ([*INPAINTING, "objective.mask_patch=24"], "objective.mask_patch", "24 is not a multiple of model.patch 16 that divides model.image"),
    ([*INPAINTING, "objective.mask_patch=48"], "objective.mask_patch", "48 is not a multiple"),
    ([*INPAINTING, "objective.mask_patch=112", "objective.mask_ratio=0.8"], "objective.mask_ratio", "0.8 masks all 4 squares"),
    ([*JIGSAW, "objective.grid=3"], "objective.grid", "3 tiles on a side must be whole patches of 16 pixels, but model.image is 224"),
    ([*JIGSAW, "objective.grid=4"], "objective.grid", "must be whole patches"),
    ([*JIGSAW, "objective.permutations=25"], "objective.permutations", "of 2 x 2 tiles there are 24, got 25"),
])
def test_a_contradiction_is_found(overrides, key, sentence):
    found = contradictions(recipe_with(*overrides))
    assert [where for where, _ in found] == [key]
    assert sentence in found[0][1]


@pytest.mark.parametrize("objective", ["mae", "inpainting", "rotation", "jigsaw"])
@pytest.mark.parametrize("overrides", [["data.label=null"], ["model.classes=0"], ["model.size=null", "model.width=32", "model.depth=2",
                                                                                 "model.heads=2", "model.mlp=64"]], ids=str)
def test_no_labels_and_no_classes_are_needed(objective, overrides):
    assert contradictions(recipe_with(f"objective.name={objective}", *overrides)) == []


def test_inpainting_goes_with_every_position_and_attention():
    for option in ("model.position=rotary", "model.position=relative", "model.attention=axial", "model.attention=linear"):
        assert contradictions(recipe_with(*INPAINTING, option)) == []


def test_rotation_and_jigsaw_go_with_every_backbone():
    for family in ("swin", "convnext"):
        for objective in ("rotation", "jigsaw"):
            assert contradictions(recipe_with(f"objective.name={objective}", f"model={{family: {family}, size: tiny}}")) == []


STOPPING = ["evaluate.early_stopping={}", "data.val=v.tar", "evaluate.every=1 epochs"]


@pytest.mark.parametrize(("objective", "metric"), [
    ("mae", "eval_loss"), ("inpainting", "eval_loss"), ("rotation", "eval_top1"), ("jigsaw", "eval_top1"), ("classification", "eval_top1"),
])
def test_the_best_is_judged_by_what_the_objective_tells(objective, metric):
    recipe = recipe_with(f"objective.name={objective}", *STOPPING)
    assert (recipe.checkpoint.best, recipe.evaluate.early_stopping.metric) == (metric, metric)
    assert contradictions(recipe) == []
    again = check_recipe(recipe.model_dump(mode="json"), "resolved")
    assert again == recipe


def test_what_is_given_stays():
    recipe = recipe_with(*MAE, "checkpoint={best: null, keep: 7}", *STOPPING, "evaluate.early_stopping={patience: 3, metric: eval_loss}")
    assert (recipe.checkpoint.best, recipe.checkpoint.keep) == (None, 7)
    assert (recipe.evaluate.early_stopping.patience, recipe.evaluate.early_stopping.metric) == (3, "eval_loss")
    built = Recipe(**{name: getattr(recipe, name) for name in Recipe.model_fields})
    assert built == recipe


def test_sections_that_are_none_are_still_named():
    with pytest.raises(RecipeError) as caught:
        check_recipe({**SOUND, "objective": {"name": "mae", "decoder": {"width": "wide"}}, "checkpoint": 5, "evaluate": []}, "here")
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:]] == ["objective.decoder.width", "checkpoint", "evaluate"]
    with pytest.raises(RecipeError, match=r"objective\.name +wants one of classification, .*, got 'mea'"):
        check_recipe({**SOUND, "objective": {"name": "mea"}}, "here")
