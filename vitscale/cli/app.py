"""What all commands share: the program, its groups of commands, arguments that several take."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:       # a recipe is read only by the commands that have one
    from vitscale.recipe.known import Note

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Pretrain Vision Transformers from one YAML recipe.")
recipes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and check recipes; needs no shards.")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Pack, index, check and look into WebDataset shards.")
bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure this machine with a recipe, part by part.")
job_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What the batch scripts of slurm/ ask; not for people.")
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(job_app, name="job", hidden=True)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as optim.lr=3e-4; values are YAML.")]
Shards = Annotated[list[str], typer.Argument(help="Brace URLs or globs of shards, quoted.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of one in ./runs.")]
ModelArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder or its name, a checkpoint, or an exported folder.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", metavar="RUN", help="A run folder or its name, a checkpoint, or an export.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, globs, shards (quoted).")]
WhichCheckpoint = Annotated[str, typer.Option("--checkpoint", metavar="last|best|STEP", help="Of a run folder.")]
Averaged = Annotated[bool, typer.Option("--ema", help="The averaged weights, if the run kept them.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def tell(note: "Note") -> None:
    """What data and weights say of themselves, beside what a command prints."""
    print(f"vitscale: {note.text}", file=sys.stderr)
