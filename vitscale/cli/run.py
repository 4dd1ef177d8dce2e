"""Train, plan, look at the machine."""

from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli.app import Overrides, RecipeArgument, app, tell


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    accept_changes: Annotated[bool, typer.Option("--accept-changes", help="Go on although settings that shape training differ.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Start again after a crash or a hang, where no scheduler does.")] = False,
) -> None:
    """Train a recipe, or resume its run.

    Starts one process per local GPU (on a CPU: parallel.processes), or joins the ranks that torchrun or SLURM started.
    """
    from vitscale.resilience.signals import listening
    from vitscale.train.start import train as start

    with listening() as stop:       # from the first moment on: imports and indexing take a while too
        raise typer.Exit(start(recipe, overrides or [], accept_changes, keep_going, stop))


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Default: the machine alone, no run folder, no shards.")] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine (inside srun: all nodes) for a recipe: devices, exchange, disk, shards, versions, clocks.

    Exit code 0: nothing would end a run; 2: something would, and the table says what.
    """
    from vitscale.recipe import load_recipe

    read = load_recipe(recipe or "quickstart", overrides or [], tell)
    from vitscale.train.doctor import doctor as examine

    raise typer.Exit(examine(read, recipe is not None, as_json))


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    on: Annotated[str | None, typer.Option(metavar="NODESxGPUSxGPU", help="4x8xH200, 8xA100, cpu, ...; default: cluster.yaml's.")] = None,
    gpu: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Describes a GPU that the table lacks: docs/planner.md.")] = None,
    price: Annotated[float | None, typer.Option(help="Of a GPU-hour, in any currency; default: cluster.yaml's.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Assume this share of the peak for one GPU that waits for nobody, 0..1.")] = None,
    measured: Annotated[Path | None, typer.Option(metavar="FILE", help="Take it from `vitscale bench step --save FILE` instead.")] = None,
    storage: Annotated[float | None, typer.Option(metavar="GB/S", help="What all nodes together can read; default: enough.")] = None,
    image_kb: Annotated[float | None, typer.Option(help="Of a stored image; default 110.")] = None,
    images_per_core: Annotated[float | None, typer.Option(help="Images that a core decodes in a second; default 865.")] = None,
    mtbf: Annotated[float | None, typer.Option(metavar="HOURS", help="Between failures of one GPU; default 50000.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Also track the memory of the real model on fake tensors; loads torch.")] = False,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a copy of the recipe with what is proposed.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./slurm/cluster.yaml, then the user's own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON; the keys stay: docs/planner.md.")] = False,
) -> None:
    """Say what a recipe needs and costs on hardware: memory, speed, days, money, what limits it, what would be better.  No torch.

    Exit code 0: it fits; 2: it does not, and the page says what would.
    """
    from vitscale.cluster.planned import with_site
    from vitscale.plan.command import PlanOptions, as_text, plan_command

    options = with_site(PlanOptions(on or "", price, mfu, measured, storage, image_kb, images_per_core, mtbf, write, gpu), cluster)
    found, code = plan_command(recipe, overrides or [], options, tell)
    if exact:
        from vitscale.train.exact import hold_against

        found = hold_against(found, recipe, overrides or [], options)
    if as_json:
        print(as_text(found))
    else:
        from rich.console import Console

        from vitscale.plan.report import show_plan

        show_plan(found, Console())
    raise typer.Exit(code)
