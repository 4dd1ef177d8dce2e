"""Measure this machine with a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli.app import AsJson, Overrides, RecipeArgument, bench_app


@bench_app.command("step")
def bench_step(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="That are measured.")] = 20,
    warm_up: Annotated[int, typer.Option(min=0, help="Steps before them.")] = 5,
    micro_steps: Annotated[int, typer.Option(min=1, help="Micro-batches of a step.")] = 1,
    ranks: Annotated[int | None, typer.Option(min=1, help="That are started on this machine; default: this process alone.")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="For `vitscale plan --measured FILE`.")] = None,
    as_json: AsJson = False,
) -> None:
    """A training step on made-up images: images/s, MFU against both peaks, peak memory, time by phase."""
    from vitscale.bench.command import on_ranks, read

    found = read(recipe, overrides or [])
    from vitscale.bench import step

    raise typer.Exit(on_ranks(found, ranks, lambda world: step.measure_step(found, world, steps, warm_up, micro_steps),
                              f"A training step of {found.name}", as_json, (lambda facts: step.save(save, facts)) if save else None))


@bench_app.command("data")
def bench_data(
    recipe: RecipeArgument, overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0, help="To measure for.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """A recipe's shards to batches: images/s, per CPU-second, and the GPUs that feeds."""
    from vitscale.bench.command import read
    from vitscale.bench.figures import show

    found = read(recipe, overrides or [])
    from vitscale.bench.loader import measure_loader
    from vitscale.train.prepare import training_set

    show(f"The data of {found.name}", *measure_loader(found, training_set(found), seconds), as_json)


@bench_app.command("comm")
def bench_comm(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="Whose parallel section is used.")] = "quickstart",
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="That are started on this machine, unless srun or torchrun has.")] = 2,
    largest: Annotated[int, typer.Option(min=4096, metavar="BYTES")] = 64 << 20,
    as_json: AsJson = False,
) -> None:
    """All-reduce and all-gather over all ranks: bandwidth by size."""
    from vitscale.bench.command import on_ranks, read

    found = read(recipe, overrides or [])
    from vitscale.bench.exchange import measure_exchange

    raise typer.Exit(on_ranks(found, ranks, lambda world: measure_exchange(world, largest), "Exchanges", as_json))


@bench_app.command("checkpoint")
def bench_checkpoint(
    recipe: RecipeArgument, overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="On the disk that is meant.")] = Path("."),
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    as_json: AsJson = False,
) -> None:
    """Checkpoints of a recipe's model on a disk: how long training stands still, and how long until they are safe."""
    from vitscale.bench.command import on_ranks, one_rank, read

    found = one_rank(read(recipe, overrides or []), "bench checkpoint")
    from vitscale.bench.checkpoint import measure_checkpoint

    raise typer.Exit(on_ranks(found, 1, lambda world: measure_checkpoint(found, world, folder, repeats),
                              f"A checkpoint of {found.name}", as_json))


@bench_app.command("startup")
def bench_startup(repeats: Annotated[int, typer.Option(min=1)] = 3, as_json: AsJson = False) -> None:
    """From a command to the first step: Python, imports, a run of the quickstart."""
    from vitscale.bench.figures import show
    from vitscale.bench.startup import measure_startup

    show("Start-up", *measure_startup(repeats), as_json)
