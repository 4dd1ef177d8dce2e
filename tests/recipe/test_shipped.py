"""Every recipe that is shipped loads, is sound, says where it comes from, and fits the schema that editors use."""

import jsonschema
import pytest
import yaml

from vitscale.recipe import RECIPES, Recipe, load_recipe, recipe_files
from vitscale.recipe.jsonschema import recipe_schema
from vitscale.recipe.load import check_recipe
from vitscale.recipe.text import read_yaml, write_yaml

FILES = recipe_files()
shipped = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def test_there_are_recipes():
    assert {"quickstart", "vit_s16_in1k", "vit_b16_in21k", "vit_large", "vit_huge"} <= {file.stem for file in FILES}


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


def validator():
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)
