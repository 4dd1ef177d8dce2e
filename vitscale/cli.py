"""The command line: one function per command; what a command needs is imported inside it, so that --help is quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitscale.errors import EXIT_REQUEUE, UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Pretrain Vision Transformers from one YAML recipe.")
recipes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and check recipes; needs no shards.")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pack and index WebDataset shards.")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as optim.lr=3e-4; values are YAML.")]


def main() -> None:
    """Entry point: a user's mistake ends in one clear message and its exit code, never in a traceback."""
    try:
        app()
    except UserError as error:
        print(f"vitscale: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vitscale: interrupted", file=sys.stderr)
        sys.exit(EXIT_REQUEUE)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="Go on although model, data, seed or batch differ.")] = False,
) -> None:
    """Train a recipe, or go on with its run.

    Starts one process per local GPU (on a CPU: parallel.processes), or joins the ranks that torchrun or SLURM started.
    """
    from vitscale.train.start import train as start

    raise typer.Exit(start(recipe, overrides or [], accept_changes))


@recipes_app.command("list")
def recipes_list() -> None:
    """Every recipe that vitscale ships, with the first line of its header."""
    from rich.console import Console
    from rich.table import Table

    from vitscale.recipe import RECIPES, recipe_files

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it is")
    for path in recipe_files():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(str(path.relative_to(RECIPES).with_suffix("")), first.lstrip("# ") if first.startswith("#") else "")
    Console().print(table)


@recipes_app.command("show")
def recipes_show(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """A recipe with every default and override filled in."""
    from vitscale.recipe import load_recipe
    from vitscale.recipe.text import write_yaml

    print(write_yaml(load_recipe(recipe, overrides or []).model_dump(mode="json")), end="")


@recipes_app.command("check")
def recipes_check(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[FILE|FOLDER]...", help="Default: the shipped recipes.")] = None,
) -> None:
    """Check recipes without opening a shard; lists every mistake of every file."""
    from vitscale.errors import EXIT_WRONG_INPUT, RecipeError
    from vitscale.plan.params import count_params
    from vitscale.recipe import RECIPES, load_recipe, recipe_files

    wrong = 0
    for path in paths or [RECIPES]:
        for file in recipe_files(path) if path.is_dir() else [path]:
            try:
                print(f"{file}: sound; {count_params(load_recipe(file).model):,} parameters")
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


@data_app.command("quickstart")
def data_quickstart(folder: Annotated[Path, typer.Argument(help="Where the shards go.")] = Path("data/digits")) -> None:
    """Pack scikit-learn's 1,797 handwritten digits into shards."""
    from vitscale.data.quickstart import pack_digits

    pack_digits(folder)
    print(f"packed into {folder}")


@data_app.command("index")
def data_index(
    shards: Annotated[list[str], typer.Argument(help="Brace URLs or globs of shards, quoted.")],
    index_dir: Annotated[str | None, typer.Option(help="Where the index goes; default: beside the shards.")] = None,
) -> None:
    """Index shards: what `train` does by itself at its first use of them."""
    from vitscale.data.index import open_index

    index = open_index(tuple(shards), index_dir)
    print(f"{index.num_samples:,} samples in {len(index.counts):,} shards; index hash {index.hash}")


if __name__ == "__main__":
    main()
