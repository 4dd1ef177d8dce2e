"""Sweeps and the laws that are fitted to them."""

from pathlib import Path
from typing import Annotated

import typer

from vitscale.cli.app import app


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep recipe, or the name of a shipped one (quickstart).")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where everything goes; default: sweeps/NAME.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time on this machine.")] = 1,
    submit: Annotated[bool, typer.Option("--submit", help="As an array on SLURM instead; the same command resumes it later.")] = False,
    at_once: Annotated[int | None, typer.Option(min=1, help="Of an array: tasks that run at the same time; default: all.")] = None,
    cluster: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: ./slurm/cluster.yaml, then the user's own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the bill; start nothing.")] = False,
) -> None:
    """Many runs from one recipe: shows the bill, runs or submits what is not done, predicts the largest before it runs, fits.

    Killed at any moment, the same command goes on; a run that is done never runs again.
    """
    from vitscale.cluster.site import find_site
    from vitscale.scaling.stages import sweep as go_on

    raise typer.Exit(go_on(recipe, out, jobs, submit, dry_run, find_site(cluster)[0], at_once))


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(metavar="SWEEP_DIR|CSV", help="The folder of a sweep, or a CSV with a row for each point.")],
    form: Annotated[str | None, typer.Option(help="Forms, with commas; default: those the columns allow, chosen by backtest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where results go; default: the sweep's folder, or NAME-fit beside the CSV.")] = None,
    n: Annotated[str | None, typer.Option("--n", metavar="COLUMN", help="Model size.  Any column may be scaled: 'Size (M)*1e6'.")] = None,
    d: Annotated[str | None, typer.Option("--d", metavar="COLUMN", help="Samples or tokens seen.")] = None,
    u: Annotated[str | None, typer.Option("--u", metavar="COLUMN", help="Unique samples.")] = None,
    c: Annotated[str | None, typer.Option("--c", metavar="COLUMN", help="FLOPs of the training.")] = None,
    x: Annotated[str | None, typer.Option("--x", metavar="COLUMN", help="The one variable of a law in one.")] = None,
    t: Annotated[str | None, typer.Option("--t", metavar="COLUMN", help="FLOPs, of a shape law in --x.")] = None,
    loss: Annotated[str | None, typer.Option(metavar="COLUMN", help="A metric that falls.")] = None,
    accuracy: Annotated[str | None, typer.Option(metavar="COLUMN", help="A metric that rises to --bound; what it lacks is fitted.")] = None,
    bound: Annotated[float, typer.Option(help="Of --accuracy: 1, or 100 for per cent.")] = 1.0,
    run: Annotated[str | None, typer.Option(metavar="COLUMN", help="Which points are of one run; default: each its own.")] = None,
    where: Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Only such rows.")] = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN,...", help="Fit each value of these columns by itself.")] = None,
    train: Annotated[str | None, typer.Option(metavar="COLUMN", help="1 or true: fitted; all others are held out.")] = None,
    hold_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of points, those of the largest budgets, held out.")] = 0.0,
    flops_per: Annotated[float | None, typer.Option(help="FLOPs = this x n x d where no column gives them (6 for text).")] = None,
    fix: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A parameter that is known.")] = None,
    delta: Annotated[float | None, typer.Option(help="Of Huber's function; default: the form's, else by the residuals.")] = None,
    drop_outliers: Annotated[bool, typer.Option("--drop-outliers", help="Fit again without points named as outliers.")] = False,
    draws: Annotated[int, typer.Option(min=50, help="Of the bootstrap.")] = 400,
    budget: Annotated[str | None, typer.Option(help="Plan for 1e21 (FLOP), '500 GPU-hours on H100', '2000 EUR at 2.5 on H100'.")] = None,
    serve: Annotated[float, typer.Option(min=0, help="Images the model will be asked of later: their FLOPs count too.")] = 0.0,
    figures: Annotated[bool, typer.Option(help="Draw them.")] = True,
) -> None:
    """Fit scaling laws to a sweep or a CSV: numbers with intervals, a choice by backtest, figures, and what to train next."""
    from vitscale.scaling.analyse import FitRequest
    from vitscale.scaling.command import columns_of, fit_csv, fixed_of, forms_of

    asked = FitRequest(forms_of(form), delta, fixed_of(fix or []), drop_outliers, draws, hold_out=hold_out)
    if data.is_dir():
        from vitscale.scaling.report import fit_sweep

        fit_sweep(data, asked, out or data, budget, serve, figures)
        return
    columns = columns_of({"n": n, "d": d, "u": u, "c": c, "x": x, "t": t}, loss, accuracy, bound, run, where or [], flops_per)
    fit_csv(data, columns, asked, out or data.with_name(f"{data.stem}-fit"), by, train, figures, budget, serve)
