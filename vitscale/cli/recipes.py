"""Recipes: listed, shown, checked."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli.app import Overrides, RecipeArgument, recipes_app, tell


@recipes_app.command("list")
def recipes_list() -> None:
    """Every recipe that vitscale ships, with the first line of its header."""
    from vitscale.recipe import RECIPES, recipe_files
    from vitscale.terminal import console, table

    firsts = {str(path.relative_to(RECIPES).with_suffix("")): path.read_text(encoding="utf-8").splitlines()[0] for path in recipe_files()}
    rows = [(name, first.lstrip("# ") if first.startswith("#") else "") for name, first in firsts.items()]
    console().print(table(["recipe", "what it is"], rows, words=(0, 1), fold=True))


@recipes_app.command("show")
def recipes_show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """A recipe with every default and override filled in."""
    from vitscale.recipe import load_recipe
    from vitscale.recipe.text import write_yaml

    print(write_yaml(load_recipe(recipe, overrides or [], tell).model_dump(mode="json")), end="")


@recipes_app.command("check")
def recipes_check(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[FILE|FOLDER]...", help="Default: the shipped recipes.")] = None,
) -> None:
    """Check recipes without opening a shard; lists every mistake of every file."""
    from vitscale.errors import EXIT_WRONG_INPUT, RecipeError
    from vitscale.plan.families import has_formulas
    from vitscale.plan.forecast import check_micro_batch
    from vitscale.plan.params import count_params
    from vitscale.recipe import RECIPES, load_recipe, recipe_files
    from vitscale.recipe.known import Note
    from vitscale.shapes.families import check_model
    from vitscale.shapes.tensor import check_tensor

    wrong = 0
    for path in paths or [RECIPES]:
        files = recipe_files(path) if path.is_dir() else [path]
        if not files:
            wrong += 1
            print(f"{path}: holds no recipes (*.yaml)", file=sys.stderr)
        for file in files:
            try:
                notes: list[Note] = []
                recipe = load_recipe(file, tell=notes.append)
                check_model(recipe.model)
                check_tensor(recipe)
                check_micro_batch(recipe)
                known = has_formulas(recipe.model)
                print(f"{file}: sound" + (f"; {count_params(recipe.model, recipe.objective):,} parameters" if known else ""))
                for note in notes:
                    print(f"  {note.text}")
            except RecipeError as error:
                wrong += 1
                text = str(error)
                print(text if text.startswith(str(file)) else f"{file}: {text}", file=sys.stderr)
    if wrong:
        raise typer.Exit(EXIT_WRONG_INPUT)


@recipes_app.command("schema")
def recipes_schema() -> None:
    """The JSON Schema of a recipe, for editors."""
    import json

    from vitscale.recipe.jsonschema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
