"""A recipe's text with other values in it: nothing else changes, comments least of all."""

import pytest

from vitscale.errors import RecipeError
from vitscale.recipe import load_recipe, recipe_files
from vitscale.recipe.edit import edited, write_edited
from vitscale.recipe.text import read_yaml

TEXT = """# head
name: a         # beside
model: {size: base}     # sizes
parallel:
  # why ddp
  engine: ddp   # for now
optim: {lr: 1e-3,
        clip_norm: 1.0}     # two lines
empty:
list: [1, 2]
# tail
"""


@pytest.mark.parametrize(("key", "value", "line"), [
    ("parallel.engine", "fsdp", "  engine: fsdp   # for now"),
    ("name", "b", "name: b         # beside"),
    ("model.size", "huge", "model: {size: huge}     # sizes"),
    ("model.patch", 14, "model: {size: base, patch: 14}     # sizes"),
    ("parallel.zero_offload", True, "  zero_offload: true"),
    ("micro_batch", None, "micro_batch: null"),
    ("ema.decay", 0.99, "ema: {decay: 0.99}"),
    ("empty.key", "no", "empty: {key: 'no'}"),
    ("optim.clip_norm", 2.0, "        clip_norm: 2.0}     # two lines"),
    ("list", [3], "list: [3]"),
    ("parallel", {"engine": "zero"}, "parallel:"),
])
def test_one_key(key, value, line):
    found = edited(TEXT, {key: value}, "a.yaml")
    assert line in [one.rstrip() if line == "parallel:" else one for one in found.splitlines()] or key == "parallel"
    wanted = read_yaml(TEXT, "a")
    inner = wanted
    *sections, last = key.split(".")
    for section in sections:
        inner[section] = inner.get(section) or {}
        inner = inner[section]
    inner[last] = value
    assert read_yaml(found, "a") == wanted
    kept = ["# head", "# beside", "# sizes", "# two lines", "# tail"] + (["# why ddp", "# for now"] if key != "parallel" else [])
    assert all(comment in found for comment in kept)


def test_anchors_are_refused_rather_than_changed_elsewhere():
    with pytest.raises(RecipeError, match=r"cannot be edited without changing more than b\.x"):
        edited("a: &one {x: 1}\nb: *one\n", {"b.x": 2}, "a.yaml")


@pytest.mark.parametrize("file", recipe_files(), ids=lambda file: file.stem)
def test_every_shipped_recipe_can_be_edited(file, tmp_path):
    out = tmp_path / "new.yaml"
    changes = {"parallel.engine": "fsdp", "parallel.zero_offload": False, "micro_batch": None}
    write_edited(file, ["optim.lr=2e-3", "name=another"], changes, out)
    recipe = load_recipe(out)
    assert (recipe.name, recipe.optim.lr, recipe.parallel.engine, recipe.micro_batch) == ("another", 2e-3, "fsdp", None)
    same = {"optim", "name", "parallel", "micro_batch"}
    before = load_recipe(file)
    assert before.model_dump(exclude=same) == recipe.model_dump(exclude=same)
    comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert [line for line in out.read_text().splitlines() if line.startswith("#")] == comments


def test_nothing_is_written_over(tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    with pytest.raises(RecipeError, match="is there already, and is not written over"):
        write_edited(recipe_files()[0], [], {"micro_batch": 8}, out)
    assert out.read_text() == "mine"
    with pytest.raises(RecipeError, match="cannot be written"):
        write_edited(recipe_files()[0], [], {}, tmp_path / "no" / "such.yaml")
