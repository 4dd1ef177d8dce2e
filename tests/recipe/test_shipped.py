"""Every recipe that is shipped loads, is sound, says where it comes from, and fits the schema that editors use."""

import re
from functools import cache

import jsonschema
import pytest
import yaml

from vitscale.plan.flops import forward_flops, training_flops_per_image
from vitscale.plan.params import count_params
from vitscale.recipe import RECIPES, Recipe, load_recipe, recipe_files
from vitscale.recipe.jsonschema import recipe_schema
from vitscale.recipe.load import check_recipe
from vitscale.recipe.text import read_yaml, write_yaml

FILES = recipe_files()
shipped = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])

# As published: parameters with the recipe's classes and image size, samples of a step, length.
PUBLISHED = {
    "vit_s16_in1k": (21_974_632, 1024, "90 epochs"),        # no class token; fixed positions
    "vit_b16_in21k": (103_184_977, 4096, "90 epochs"),      # 86,567,656 with 1000 classes, and the hidden layer
    "vit_large_in21k": (326_738_257, 4096, "90 epochs"),    # 304,326,632 with 1000 classes, and the hidden layer
    "vit_huge_in21k": (658_740_561, 4096, "90 epochs"),     # 632,045,800 with 1000 classes and a class token
    "deit_s16_in1k": (22_050_664, 1024, "300 epochs"),
    "deit_b16_in1k": (86_567_656, 1024, "300 epochs"),
    "deit3_l16_in1k": (304_321_512, 2048, "800 epochs"),    # 304,374,760 at 224 pixels
    "deit3_h14_in1k": (631_953_640, 2048, "800 epochs"),    # 632,126,440 at 224 pixels
    "swin_b_in1k": (87_768_224, 1024, "300 epochs"),
    "convnext_b_in1k": (88_591_464, 4096, "300 epochs"),
    "convnext_l_in1k": (197_767_336, 4096, "300 epochs"),
    "mae_l16_in1k": (329_541_888 - 197 * (1024 + 512), 4096, "800 epochs"),     # the fixed positions are no parameters here
    "mae_h14_in1k": (657_074_508 - 257 * (1280 + 512), 4096, "1600 epochs"),
    "finetune_mae_l16_in1k": (304_326_632 - 1024, 1024, "50 epochs"),           # the class token has no place of its own
    "finetune_mae_h14_in1k": (632_045_800 - 1280, 1024, "50 epochs"),
    "finetune_deit3_l16_in1k": (304_374_760, 512, "20 epochs"),
    "dino_s16_in1k": (22_050_664 - 385_000 + 22_286_592, 512, "100 epochs"),    # no classifier, but a head over prototypes
    "dino_cifar10": (1_277_952, 64, "10 epochs"),                               # our own settings, these four
    "ibot_cifar10": (1_278_080, 64, "10 epochs"),
    "lejepa_cifar10": (1_157_008, 128, "14 epochs"),
    "mae_cifar10": (1_057_984, 128, "66 epochs"),
    "ibot_b16_in1k": (94_192_384, 1024, "400 epochs"),      # no classifier, but one head over prototypes, and the token of what is hidden
    "dinov2_l14": (418_483_200, 3072, "625000 steps"),      # two heads over prototypes
    "dinov3_l16": (350_344_704, 2048, "125000 steps"),
    "dinov3_l16_gram": (350_344_704, 2048, "25000 steps"),          # of these two the length is ours
    "dinov3_l16_highres": (350_344_704, 2048, "10000 steps"),
    "lejepa_b14": (91_617_088, 512, "100 epochs"),          # our own projector
    "lejepa_s8_imagenette": (26_493_328, 256, "800 epochs"),
    "vit_so400m14": (427_680_704 + 29_593 * 1_153, 16_384, "40000000000 images"),
}


def test_there_are_recipes():
    own = {"quickstart", "compare_vit", "compare_swin", "compare_convnext"}
    assert {load_recipe(file).name for file in FILES} == PUBLISHED.keys() | own


def test_names_are_not_shared():
    names = [load_recipe(file).name for file in FILES]
    assert len(names) == len(set(names))        # a run folder is runs/NAME


@shipped
def test_it_loads_and_comes_back_from_its_own_text(file):
    recipe = load_recipe(file)
    resolved = read_yaml(write_yaml(recipe.model_dump(mode="json")), "resolved")
    assert check_recipe(resolved, "resolved") == recipe


@shipped
def test_its_head_tells_source_command_cost_and_accuracy(file):
    head = file.read_text(encoding="utf-8").split("\nname:")[0]
    for word in ("Source", "Command", "Cost", "Accuracy"):
        assert f"\n# {word} " in head
    assert f"recipes/{file.relative_to(RECIPES)}" in head
    if load_recipe(file).data.prepare is None:
        assert "Not measured here." in " ".join(head.replace("#", " ").split())


@shipped
def test_it_is_what_was_published(file):
    recipe = load_recipe(file)
    if recipe.data.prepare:         # our own settings
        return
    parameters, batch, duration = PUBLISHED[recipe.name]
    assert count_params(recipe.model, recipe.objective) == parameters
    assert str(recipe.duration) == duration
    if recipe.data.repeats == 1:
        assert recipe.global_batch == batch
    else:                           # DeiT's three copies do not divide its batches
        assert 0 < batch - recipe.global_batch <= batch // 16


@shipped
def test_its_cost_is_the_planners(file):
    recipe = load_recipe(file)
    cost = " ".join(file.read_text(encoding="utf-8").split("\n# Accuracy")[0].split("\n# Cost")[1].replace("#", " ").split())
    images = recipe.duration.images(recipe.data.num_samples, recipe.global_batch, recipe.data.repeats)
    flops = training_flops_per_image(recipe.model, recipe.objective, recipe.data.views)

    def told(pattern):
        [number] = re.findall(pattern, cost)
        return float(number.replace(",", ""))

    assert told(r"^([\d.e]+) FLOP") == pytest.approx(images * flops, rel=0.02)
    if recipe.data.prepare is None:
        assert told(r"\(([\d.]+) GFLOP an image") == pytest.approx(flops / 1e9, rel=0.005)
        hours = images * flops / (0.4 * 989e12) / 3600
        assert told(r"([\d,.]+) GPU-hours of an H200 at 40 % MFU of its 989 TFLOP/s") == pytest.approx(hours, rel=0.02)


def test_the_table_of_recipes_has_them_all():
    """docs/recipes.md: recipe, architecture, source, parameters, GFLOP an image forward, GPU-hours, published, measured."""
    blocks = (RECIPES.parent / "docs" / "recipes.md").read_text(encoding="utf-8").split("\n\n")
    table = next(block for block in blocks if block.startswith("| recipe |")).splitlines()[2:]
    rows = {cells[1].strip(" `"): [cell.strip() for cell in cells[2:-1]] for cells in (line.split("|") for line in table)}
    assert rows.keys() == {file.stem for file in FILES}
    for file in FILES:
        recipe, row = load_recipe(file), rows[file.stem]
        assert row[2] == f"{count_params(recipe.model, recipe.objective):,}"
        assert row[3] == f"{forward_flops(recipe.model, recipe.objective, recipe.data.views) / 1e9:.4g}"
        head = " ".join(file.read_text(encoding="utf-8").split("\nname:")[0].replace("#", " ").split())
        assert row[4] == "none" or f"{row[4]} GPU-hours" in head
        assert all(figure in head for figure in re.findall(r"[\d.]+ %", " ".join(row[5:])))


@shipped
def test_what_opens_no_shards_knows_its_size(file):
    assert load_recipe(file).data.num_samples is not None


@shipped
def test_it_fits_the_schema(file):
    validator().validate(read_yaml(file.read_text(encoding="utf-8"), str(file)))


def test_the_schema_finds_mistakes():
    values = read_yaml(FILES[0].read_text(encoding="utf-8"), "r")
    for section, key, value in [
        ("optim", "lr", "abc"), ("optim", "learning_rate", 1), ("model", "size", "giantic"), ("data", "workers", 0), ("data", "train", []),
        ("data", "train", 3), ("evaluate", "every", "3 weeks"), ("checkpoint", "keep", 1.5),
    ]:
        wrong = {**values, section: {**values.get(section, {}), key: value}}
        assert not validator().is_valid(wrong), (section, key, value)


def test_the_schema_tells_what_keys_mean():
    schema = recipe_schema()
    assert schema["properties"]["global_batch"]["description"] == "samples of one optimizer step over all ranks"
    assert "peak learning rate" in schema["$defs"]["Optim"]["properties"]["lr"]["description"]
    assert set(schema["properties"]) == set(Recipe.model_fields)


def test_other_yaml_readers_see_the_same_sections():
    """Editors check with readers of their own: nothing in a recipe may hang on ours but the form of numbers."""
    for file in FILES:
        assert list(yaml.safe_load(file.read_text(encoding="utf-8"))) == list(read_yaml(file.read_text(encoding="utf-8"), "r"))


@cache
def validator():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)
