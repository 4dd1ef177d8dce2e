"""A stretch of steps as it is written, and what is said of one that is none."""

import pytest

from vitscale.errors import RecipeError
from vitscale.recipe import load_recipe
from vitscale.recipe.jsonschema import recipe_schema
from vitscale.recipe.steps import Steps


def test_it_is_read_as_people_write_it_and_written_back() -> None:
    recipe = load_recipe("quickstart", ["profile=steps:20-25"])
    assert recipe.profile == Steps(20, 25)
    assert recipe.model_dump(mode="json")["profile"] == "steps:20-25"
    assert load_recipe("quickstart").profile is None


@pytest.mark.parametrize(("text", "words"), [
    ("steps:25-20", "a last one not before it"), ("steps:0-3", "at least 1"), ("20-25", "such as 'steps:20-25'"), ("[1, 2]", "such as"),
    ("steps:1-101", "at most 100 steps"), ("steps:1-", "such as"),
])
def test_what_is_none_is_refused_with_its_key(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=rf"profile.*{words}"):
        load_recipe("quickstart", [f"profile={text}"])


def test_editors_know_it() -> None:
    assert recipe_schema()["properties"]["profile"]["anyOf"][0]["examples"] == ["steps:20-25"]
