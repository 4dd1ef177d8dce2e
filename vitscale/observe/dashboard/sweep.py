"""A folder of runs as points of a scaling law: size, images, compute and loss of each, and what `vitscale fit` found, if it was run."""

import csv
from pathlib import Path
from typing import Any

from vitscale.cluster.runfolder import ENVIRONMENT, METRICS, last_row, read_object
from vitscale.observe.dashboard.fitted import curves, fitted, plan, verdict
from vitscale.observe.dashboard.folder import Runs
from vitscale.observe.dashboard.table import number

_MOST_ROWS = 5000
_MOST_BYTES = 8 << 20


def sweep_view(runs: Runs, wanted: str) -> dict[str, Any] | None:
    """None: there is no such folder any more.  Points come from the runs themselves, so that they move while the sweep trains; what a run
    does not say of itself, runs.csv may."""
    place = runs.find_group(wanted)
    if place is None:
        return None
    inside = [one for one in runs.places()[0] if one.group == place.id or one.path.parent == place.path]
    table, fit = _table(place.path / "runs.csv"), read_object(place.path / "fit.json")
    jobs = runs.jobs()
    points = [_point(one.path, table.get(one.path.name, {})) | {"id": one.id, "name": one.name, "state": runs.line(one, jobs)["state"]}
              for one in inside]
    for point, level in zip(points, _levels(points), strict=True):
        point["level"] = level
    return {"name": place.name, "id": place.id, "points": points, "fit": fitted(fit), "curves": curves(fit, points),
            "verdict": verdict(place.path), "plan": plan(place.path)}


def _point(folder: Path, row: dict[str, str]) -> dict[str, Any]:
    """parameters, images, compute (FLOP so far), budget (FLOP of all of it), loss: of the last evaluation, else of the last step."""
    environment, step, evaluation = (read_object(folder / ENVIRONMENT), last_row(folder / METRICS, "loss"),
                                     last_row(folder / METRICS, "eval_loss"))
    size, images, flops = number(environment.get("parameters")), number(step.get("images")), number(environment.get("flops_per_image"))
    values = {"parameters": (size, "n"), "images": (images, "d"), "compute": (number(flops * images), "c"),
              "budget": (number(flops * number(environment.get("total_images"))), "budget"), "unique": (number(None), "u"),
              "loss": (number(evaluation.get("eval_loss", step.get("loss"))), "eval_loss"),
              "top1": (number(evaluation.get("eval_top1")), "eval_top1")}
    known = {name: value if value == value else _told(row, column) for name, (value, column) in values.items()}
    return {name: value if value == value else None for name, value in known.items()} | {"held_out": row.get("held_out") == "True"}


def _told(row: dict[str, str], column: str) -> float:
    try:
        return number(float(row.get(column) or "nan"))
    except (ValueError, TypeError):
        return number(None)


def _levels(points: list[dict[str, Any]]) -> list[float | None]:
    """The budget that each point is of: points whose whole compute is nearly the same are of one."""
    known = [at for at, point in enumerate(points) if (point["budget"] or 0) > 0]
    found: list[float | None] = [None] * len(points)
    if known:
        import numpy as np

        from vitscale.scaling.approaches import budgets_of  # SciPy, only where there is a sweep
        from vitscale.scaling.points import Points

        compute = np.array([points[at]["budget"] for at in known])
        for at, level in zip(known, budgets_of(Points({"c": compute}, compute, tuple(points[at]["name"] for at in known))), strict=True):
            found[at] = float(level)
    return found


def _table(path: Path) -> dict[str, dict[str, str]]:
    """runs.csv: run -> its row; what cannot be read is not there."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return {row["run"]: row for _, row in zip(range(_MOST_ROWS), csv.DictReader(file), strict=False) if row.get("run")}
    except (OSError, csv.Error):
        return {}
