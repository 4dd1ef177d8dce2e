"""`vitscale sweep`: expand, show the bill, pass the gate, run here or as an array, predict, run the largest, all of it resumable."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vitscale import terminal
from vitscale.cluster.bill import bill
from vitscale.cluster.site import Site
from vitscale.cluster.slurm import queue
from vitscale.cluster.state import jobs_of
from vitscale.cluster.submit import plan_sweep, send
from vitscale.counts import plural
from vitscale.errors import ClusterError, RecipeError
from vitscale.plan.hardware import DEVICES
from vitscale.recipe.bound import changes, settings_of
from vitscale.recipe.load import read_values
from vitscale.recipe.text import write_yaml
from vitscale.runfolder import JOB
from vitscale.scaling.expand import Run, SweepPlan, expand
from vitscale.scaling.files import read_json, write_json, write_text
from vitscale.scaling.report import fit_now, predict_now, show_runs
from vitscale.scaling.runner import branch_off, is_done, run_all
from vitscale.scaling.sweep import load_sweep

CHECK = "coordinate_check.json"


def sweep(name: str, out: Path | None, jobs: int, submit: bool, dry_run: bool, site: Site, at_once: int | None) -> int:
    """Go on with a sweep as far as it can now; the exit code.  Raises UserError."""
    console = terminal.console()
    asked, source = load_sweep(name)
    folder = out or Path("sweeps") / asked.name
    plan = expand(asked, source, folder)
    console.print(bill_of(plan, site), highlight=False)
    if dry_run:
        return 0
    lay_out(plan, folder, source)
    pass_gate(plan, folder, console)
    stages = [plan.first, plan.held_out] if plan.held_out else [plan.first]
    for number, runs in enumerate(stages):
        if number == 1:
            told = predict_now(folder)
            for one in told["runs"]:
                of = told["of"].replace("metric", told["metric"])
                terminal.say(console, f"predicted before it runs: {one['run']}: {of} {one['predicted']:.4f} ({one['low']:.4f} to "
                             f"{one['high']:.4f}) by {told['law']}")
        if submit:
            waiting = submit_stage(runs, folder, number, site, at_once, console)
            if waiting:
                return 0
        else:
            run_all(runs, folder, jobs, asked.retries, console)
    if asked.models is not None:
        show_runs(folder, console)
    else:
        fit_now(folder, console)
    return 0


def bill_of(plan: SweepPlan, site: Site) -> Table:
    """What the sweep costs, budget by budget, before anything starts."""
    bills = {run.name: bill(run.recipe, site) for run in plan.runs}
    price, gpu = site.price_per_gpu_hour, site.gpu
    gpu_hours = {name: (one.hours * one.ranks if one.hours is not None else None) for name, one in bills.items()}
    cached = {run.name: run.branch_step * run.batch / run.d for run in plan.runs if run.trunk and run.branch_step}
    table = terminal.table(["level", "runs", "parameters", "images", "FLOP", "GPU-hours", "cost"],
                           title=f"{plan.sweep.name}: {plural(len(plan.runs), 'run')}")

    def row(label: str, runs: Sequence[Run]) -> None:
        flops = sum(run.c * (1 - cached.get(run.name, 0.0)) for run in runs)
        known = [hours * (1 - cached.get(run.name, 0.0)) for run in runs if (hours := gpu_hours[run.name]) is not None]
        hours = sum(known) if len(known) == len(runs) else None
        sizes, images = [run.n for run in runs], [run.d for run in runs]
        table.add_row(label, str(len(runs)), _span(sizes), _span(images), f"{flops:.3g}", "?" if hours is None else f"{hours:,.3g}",
                      "?" if hours is None or price is None else f"{hours * price:,.2f}")

    levels: dict[str, list[Run]] = {}
    for run in plan.runs:
        levels.setdefault(f"{run.budget:.3g} FLOP" if run.budget else plural(run.d, 'image'), []).append(run)
    for label, runs in levels.items():
        row(label + (" (held out)" if runs[0].held_out else ""), runs)
    row("all", plan.runs)
    shares = [one.mfu for one in bills.values() if one.mfu is not None]
    notes = [f"GPU-hours assume {min(shares):.2g} to {max(shares):.2g} of the peak of {gpu}, as `vitscale plan` works it out" if shares
             else f"GPU-hours and cost: give gpu ({', '.join(list(DEVICES)[:3])}, ...) and price_per_gpu_hour in cluster.yaml"]
    if cached:
        notes.append(f"{plural(len(cached), 'run')} of another's checkpoint, which cost their cooldown alone")
    notes += [f"pruned: {one['run']}: {one['reason']}" for one in plan.pruned[:6]]
    if len(plan.pruned) > 6:
        notes.append(f"and {len(plan.pruned) - 6} more, in sweep.json")
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return _short(low) if low == high else f"{_short(low)}-{_short(high)}"


def _short(value: float) -> str:
    """26762 -> 26.8k."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def lay_out(plan: SweepPlan, folder: Path, source: Path) -> None:
    """sweep.json and a recipe for each run.  Raises RecipeError when the folder holds runs of another sweep."""
    told: dict[str, Any] = {"format": 1, "sweep": plan.sweep.model_dump(mode="json"), "source": str(source),
                            "metric": plan.sweep.fit.metric, "runs": [run.facts() for run in plan.runs], "pruned": list(plan.pruned)}
    known = {run["name"] for run in read_json(folder / "sweep.json").get("runs", [])}
    lost = sorted(name for name in known - {run.name for run in plan.runs} if (folder / "runs" / name).exists())
    others = [f"{name}: is not in this one" for name in lost] + [line for run in plan.runs for line in _changes(run, folder)]
    if others:
        raise RecipeError("\n  ".join([f"{folder}: holds runs of another sweep; give another --out, or remove it:", *others[:5]]))
    for run in plan.runs:
        file = folder / "recipes" / f"{run.name}.yaml"
        text = f"# Run of the sweep {plan.sweep.name}: {run.c:.4g} FLOP, {run.n:,} parameters.\n" + write_yaml(
            run.recipe.model_dump(mode="json"))
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
    write_json(folder / "sweep.json", told)


def _changes(run: Run, folder: Path) -> list[str]:
    """What has changed since a run was begun that its result depends on."""
    file = folder / "recipes" / f"{run.name}.yaml"
    if not (folder / "runs" / run.name).exists():
        return []
    if not file.exists():
        return [f"{run.name}: {file} is gone"]
    saved, now = read_values(file, "name: ..."), run.recipe.model_dump(mode="json")
    return [
        f"{run.name}: {change}" for change in changes(settings_of(saved, source=str(file)), settings_of(now)) if change.kind != "free"] + [
            f"{run.name}: data.{key}: {saved['data'].get(key)} -> {now['data'][key]}" for key in ("train", "val")
            if saved["data"].get(key) != now["data"][key]]


def pass_gate(plan: SweepPlan, folder: Path, console: Console) -> None:
    """With transfer mup: the coordinate check over the widths, once.  Raises ClusterError when it fails."""
    widths: dict[int, Run] = {}
    for run in plan.runs:
        if run.shape is not None:
            widths.setdefault(run.shape.width, run)
    if plan.sweep.transfer != "mup" or len(widths) < 2:
        return
    chosen = [widths[width] for width in sorted(widths)]
    if read_json(folder / CHECK).get("passed") is not True:
        files = [str(folder / "recipes" / f"{run.name}.yaml") for run in chosen]
        done = subprocess.run([sys.executable, "-m", "vitscale", "job", "coordinates", str(folder / CHECK), *files])
        if done.returncode:
            told = read_json(folder / CHECK)
            raise ClusterError(f"{folder / CHECK}: the coordinate check did not pass, nothing was started"
                               + (f": {told['verdict']}" if "verdict" in told else ""))
    terminal.say(console, f"coordinate check: {read_json(folder / CHECK)['verdict']}")


def submit_stage(runs: Sequence[Run], folder: Path, stage: int, site: Site, at_once: int | None, console: Console) -> bool:
    """Submit as an array what is neither done nor in the queue; whether anything is still to be waited for."""
    rest = [run for run in runs if not is_done(folder / "runs" / run.name)]
    if not rest:
        return False
    queued = queue()
    if queued is None:
        raise ClusterError("squeue: no such program here, there is no SLURM; without --submit the runs go on this machine")
    alive = {entry.job for entry in queued}
    new = [run for run in rest if not ((folder / "runs" / run.name / JOB).exists() and set(jobs_of(folder / "runs" / run.name)) & alive)]
    ready = [run for run in new if run.trunk is None or run.trunk not in {one.name for one in rest}]
    for run in ready:
        branch_off(run, folder)
    if ready:
        listed = folder / f"submit-{stage}.txt"
        write_text(listed, "".join(f"{folder / 'recipes' / run.name}.yaml\n" for run in ready))
        planned = plan_sweep(listed, (), site, None, at_once)
        terminal.say(console, f"submitted: {' '.join(send(planned))}: {plural(len(ready), 'run')}")
    terminal.say(console, f"{len(runs) - len(rest)} of {plural(len(runs), 'run')} done, {len(rest) - len(new)} in the queue already; run "
                 "the same command again when they are done: it submits what failed or waits, then predicts, and goes on")
    return True
